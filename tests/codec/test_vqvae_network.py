"""The VQ-VAE's network: every convolution against loops in float64, first weights, fingerprint, precisions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.model import VQVAE
from reference.vqvae import SlowNetwork, quantize


def make(factor: int = 2, blocks: int = 1, seed: int = 0, **numbers) -> VQVAE:
    torch.manual_seed(seed)
    small = {"num_codes": 16, "code_width": 3, "width": 8, "block_width": 4}
    return VQVAE(VQVAEConfig(factor=factor, blocks=blocks, **{**small, **numbers})).eval()


def slow_of(codec: VQVAE) -> SlowNetwork:
    weights = {name: weight.numpy() for name, weight in codec.state_dict().items()}
    return SlowNetwork(weights, codec.config.factor, codec.config.blocks)


GRIDS = [(2, 1, (2, 2)), (2, 0, (1, 3)), (4, 2, (2, 1)), (4, 0, (1, 1)), (8, 1, (1, 2))]


@pytest.mark.parametrize(("factor", "blocks", "grid"), GRIDS)
def test_ids_and_pixels_are_those_of_loops_in_float64(factor, blocks, grid):
    codec = make(factor, blocks)
    slow, rng = slow_of(codec), np.random.default_rng(1)
    image = rng.integers(0, 256, (3, grid[0] * factor, grid[1] * factor, 3), dtype=np.uint8)
    z_BChw = np.stack([slow.encode(np.moveaxis(one, -1, 0) / 127.5 - 1) for one in image])
    z_VC = np.moveaxis(z_BChw, 1, -1).reshape(-1, 3)
    with torch.no_grad():  # codes among the vectors, so that there are several of them
        codec.quantizer.codebook.copy_(torch.from_numpy(rng.normal(z_VC.mean(0), z_VC.std(0), (16, 3))))
    codes = codec.quantizer.codebook.numpy().astype(np.float64)
    chosen_BChw, ids_Bhw, _ = quantize(z_BChw, codes)
    np.testing.assert_array_equal(codec.encode(image), ids_Bhw)
    assert len(np.unique(ids_Bhw)) > 1
    painted = np.stack([np.moveaxis(slow.decode(chosen), 0, -1) for chosen in chosen_BChw])
    levels = np.clip(127.5 * (painted + 1), 0, 255)
    assert np.abs(codec.decode(ids_Bhw) - levels).max() <= 0.501  # rounded, and no more


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_forward_is_encoding_and_decoding(factor):
    codec = make(factor)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 8, 3), dtype=np.uint8)
    x_BCHW = torch.from_numpy(image / 127.5 - 1).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        output = codec(x_BCHW)
    np.testing.assert_array_equal(output.ids.numpy(), codec.encode(image))
    levels = ((output.reconstruction + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert np.abs(levels.numpy() - codec.decode(codec.encode(image))).max() <= 1
    assert output.vectors.shape == (2, 3, 16 // factor, 8 // factor)
    codes_BChw = codec.quantizer.codebook[output.ids].permute(0, 3, 1, 2)
    np.testing.assert_allclose(
        output.commitment.item(), (output.vectors - codes_BChw).square().mean().item(), rtol=1e-5
    )


def test_every_weight_but_the_codes_learns():
    codec = make(blocks=2)
    output = codec(torch.randn(2, 3, 8, 8))
    (output.reconstruction.square().mean() + output.commitment).backward()
    still = {name for name, weight in codec.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert still == {"quantizer.codebook", "quantizer.counts"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_forward_runs_in_other_precisions(dtype):
    codec = make().to(dtype)
    output = codec(torch.randn(2, 3, 8, 8, dtype=dtype))
    assert output.reconstruction.dtype == dtype
    assert output.reconstruction.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_codec_of_another_precision_codes_nearly_the_same(dtype):
    codec = make()
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        vectors = codec.encoder(torch.from_numpy(image / 127.5 - 1).float().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        codec.quantizer.codebook.copy_(vectors.reshape(-1, 3)[::16])
    ids = codec.encode(image)
    same = (copy.deepcopy(codec).to(dtype).encode(image) == ids).mean()
    assert same > (0.999 if dtype == torch.float64 else 0.8)
    with torch.autocast("cpu", torch.bfloat16):
        assert (codec.encode(image) == ids).mean() > 0.8


# --- the first weights


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_same_seed_has_the_same_first_weights(factor):
    first, again, other = make(factor, seed=1), make(factor, seed=1), make(factor, seed=2)
    for (name, weight), same, differs in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same)
        assert name == "quantizer.counts" or not torch.equal(weight, differs)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_first_weights_neither_drown_nor_blow_up_what_goes_through(factor):
    codec = make(factor, blocks=2, width=64, code_width=32, block_width=32)
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(16, 3, 4, 4) * 2 - 1, (32, 32), mode="bilinear")
    with torch.no_grad():
        z = codec.encoder(smooth)
        seen = codec.decoder(torch.randn(16, 32, 8, 8))
    differ = z - z.mean((0, 2, 3), keepdim=True)  # what tells pictures apart, and no bias
    rounded = z.abs().max() / 256  # a step of bfloat16
    assert 4 * rounded < differ.std() < 2
    assert 0.02 < seen.std() < 2


def test_on_the_meta_device_it_takes_no_memory_and_knows_its_shapes():
    with torch.device("meta"):
        codec = VQVAE(VQVAEConfig(num_codes=1 << 40))
        output = VQVAE(VQVAEConfig())(torch.empty(2, 3, 32, 48))
    assert {weight.device.type for weight in codec.parameters()} == {"meta"}
    assert len(codec) == 1 << 40
    assert output.reconstruction.shape == (2, 3, 32, 48)
    assert output.ids.shape == (2, 8, 12)


# --- fingerprint


def test_the_fingerprint_knows_every_weight_but_the_counts():
    codec = make()
    expected = codec.fingerprint
    for name, weight in codec.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
            assert (codec.fingerprint == expected) == (name == "quantizer.counts"), name
            weight.copy_(kept)
    assert codec.fingerprint == expected


def test_the_fingerprint_is_of_numbers_not_of_how_they_are_kept():
    codec = make()
    expected = codec.fingerprint
    assert codec.double().fingerprint == expected
    assert codec.float().fingerprint == expected
    assert codec.to(memory_format=torch.channels_last).fingerprint == expected
    half = codec.bfloat16().fingerprint
    assert half != expected
    assert codec.float().fingerprint == half


def test_networks_of_other_shapes_have_other_fingerprints():
    prints = {make(factor, blocks).fingerprint for factor in (2, 4, 8) for blocks in (0, 1, 2)}
    assert len(prints) == 9


# --- the numbers of a config

BAD = [
    ("factor", 1),
    ("factor", 3),
    ("factor", 16),
    ("factor", 2.0),
    ("factor", True),
    ("factor", None),
    ("factor", "4"),
    ("factor", [4]),
    ("num_codes", 1),
    ("num_codes", 0),
    ("num_codes", 16.0),
    ("code_width", 0),
    ("width", 1),
    ("width", "8"),
    ("blocks", -1),
    ("blocks", True),
    ("block_width", 0),
    ("commitment", -0.1),
    ("commitment", float("inf")),
    ("commitment", float("nan")),
    ("decay", 1.0),
    ("decay", -1),
    ("decay", False),
    ("decay", "0.9"),
    ("restart", 1),
    ("restart", None),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_numbers_that_can_not_be_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        VQVAEConfig(**{name: value})


def test_numbers_at_the_edge_can_be():
    config = VQVAEConfig(
        factor=8, num_codes=2, code_width=1, width=2, blocks=0, block_width=1, commitment=0, decay=0, restart=0
    )
    codec = VQVAE(config)
    assert codec.decode(codec.encode(np.zeros((8, 16, 3), np.uint8))).shape == (8, 16, 3)
