"""DiffusersVQ against diffusers' own forward, on tiny models with random weights."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegpt.codec import diffusers_vq
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import find_framed, load_preprocessor, save_preprocessor
from imagegpt.codec.stored import holds_vqmodel, read_codec
from imagegpt.errors import InputError, MissingExtra

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make(halvings: int = 1, seed: int = 0, **numbers: Any) -> Any:
    torch.manual_seed(seed)
    blocks = halvings + 1
    given = {
        "block_out_channels": [8] * blocks,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "num_vq_embeddings": 24,
        "sample_size": 16,
        **numbers,
    }
    model = diffusers.VQModel(**given).eval()
    with torch.no_grad():  # codes where the vectors are, so that pictures have several
        z = model.encode(torch.rand(4, 3, 64, 64) * 2 - 1).latents.permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(z[torch.randperm(len(z))[: given["num_vq_embeddings"]]])
    return model


VARIANTS = {
    "plain": {},
    "looks codes up": {"lookup_from_codebook": True},
    "spatial norm": {"norm_type": "spatial", "block_out_channels": [32, 32]},
    "own code width": {"vq_embed_dim": 6},
    "no attention": {"mid_block_add_attention": False},
    "attention in its blocks": {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    },
}


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    make().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    """One that a test may spoil."""
    for path in stored.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


# --- the same as diffusers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
def test_ids_and_pixels_are_those_of_diffusers_own_forward(variant, size):
    model = make(**VARIANTS[variant])
    codec = diffusers_vq.DiffusersVQ(model)
    image = pictures(3, *size)
    x_BCHW = torch.from_numpy(image / 127.5 - 1).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.quantize(model.encode(x_BCHW).latents)[2][2].view(3, size[0] // 2, size[1] // 2)
        seen = ((model(x_BCHW).sample + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    ids = codec.encode(image)
    np.testing.assert_array_equal(ids, expected.numpy())
    assert len(np.unique(ids)) > 3
    decoded = codec.decode(ids)
    assert np.abs(decoded.astype(int) - seen.numpy()).max() <= 1  # z + (e - z) is e but for the last bit
    assert (decoded == seen.numpy()).mean() > 0.99
    assert decoded.std() > 1


@pytest.mark.parametrize(("halvings", "factor"), [(1, 2), (2, 4), (3, 8), (4, 16)])
def test_the_factor_is_what_the_blocks_make_of_it(halvings, factor):
    codec = diffusers_vq.DiffusersVQ(make(halvings))
    assert codec.factor == factor
    ids = codec.encode(pictures(1, 32, 16))
    assert ids.shape == (1, 32 // factor, 16 // factor)
    assert codec.decode(ids).shape == (1, 32, 16, 3)
    assert (len(codec), codec.name) == (24, f"VQModel of 24 codes for {factor} x {factor} pixels")


@pytest.mark.parametrize("at_once", [1, 24 * 10, 1 << 22])
def test_in_parts_the_codes_are_the_same(at_once, monkeypatch):
    codec, image = diffusers_vq.DiffusersVQ(make()), pictures(2, 16, 16)
    expected = codec.encode(image)
    sizes, inner = [], codec.model.quantize.forward
    monkeypatch.setattr(codec.model.quantize, "forward", lambda z: sizes.append(len(z)) or inner(z))
    monkeypatch.setattr(diffusers_vq, "AT_ONCE", at_once)
    np.testing.assert_array_equal(codec.encode(image), expected)
    assert max(sizes) == min(128, max(1, at_once // 24))
    assert sum(sizes) == 128


def test_nothing_of_it_learns_and_half_precision_becomes_float32():
    codec = diffusers_vq.DiffusersVQ(make().half().train())
    assert not codec.training or not codec.model.training
    assert {weight.dtype for weight in codec.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in codec.parameters())


# --- what it can't be


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"in_channels": 1}, "in_channels is 1"),
        ({"out_channels": 4}, "out_channels is 4"),
        ({"halvings": 0}, "a code for each pixel"),
    ],
)
def test_a_model_that_is_no_codec_is_refused(numbers, words, tmp_path):
    halvings = numbers.get("halvings", 1)
    shapes = {name: value for name, value in numbers.items() if name != "halvings"}
    model = diffusers.VQModel(
        block_out_channels=[8] * (halvings + 1),
        down_block_types=["DownEncoderBlock2D"] * (halvings + 1),
        up_block_types=["UpDecoderBlock2D"] * (halvings + 1),
        norm_num_groups=4,
        **shapes,
    )
    with pytest.raises(InputError, match=words):
        diffusers_vq.DiffusersVQ(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path.name}: .*{words}"):
        diffusers_vq.DiffusersVQ.load(tmp_path)


# --- the fingerprint


def test_the_fingerprint_knows_weights_and_the_numbers_that_they_do_not_show():
    made = [make(), make(seed=1), make(act_fn="relu"), make(norm_num_groups=2)]
    prints = [diffusers_vq.DiffusersVQ(model).fingerprint for model in made]
    assert len(set(prints)) == 4
    same = [make(), make(sample_size=32), make(scaling_factor=1.0), make(lookup_from_codebook=True), make().double()]
    assert {diffusers_vq.DiffusersVQ(model).fingerprint for model in same} == {prints[0]}


def test_every_weight_that_ids_and_pixels_depend_on_is_in_it():
    expected = diffusers_vq.DiffusersVQ(make()).fingerprint
    for name in ("encoder.conv_in.bias", "quant_conv.weight", "quantize.embedding.weight", "decoder.conv_out.bias"):
        model = make()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-3
        assert diffusers_vq.DiffusersVQ(model).fingerprint != expected, name


# --- folders


def test_a_folder_of_diffusers_is_a_codec_with_a_framing(stored):
    codec, framing = find_framed(str(stored))
    assert isinstance(codec, diffusers_vq.DiffusersVQ)
    assert framing == Framing(16, 16, "none")
    assert codec.fingerprint == diffusers_vq.DiffusersVQ(make()).fingerprint
    image = pictures(2, 16, 16)
    np.testing.assert_array_equal(codec.encode(image), diffusers_vq.DiffusersVQ(make()).encode(image))


def test_a_preprocessors_file_in_the_folder_comes_first(folder):
    (folder / "preprocessor_config.json").write_text(json.dumps({"vqmodel": ".", "size": 8, "crop": "center"}))
    codec, framing = load_preprocessor(folder)
    assert isinstance(codec, diffusers_vq.DiffusersVQ)
    assert framing == Framing(8, 8, "center")


def test_it_is_kept_beside_a_model_as_diffusers_reads_it(stored, tmp_path):
    codec = diffusers_vq.DiffusersVQ.load(stored)
    save_preprocessor(tmp_path, codec, Framing(16, 16))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["vqmodel"] == "vqmodel"
    assert sorted(path.name for path in (tmp_path / "vqmodel").iterdir()) == ["config.json", WEIGHTS]
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "vqmodel")
    for (name, weight), (other, again) in zip(make().named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, again), name
    assert load_preprocessor(tmp_path)[0].fingerprint == codec.fingerprint


def test_old_names_of_attention_are_read(folder):
    """Those that diffusers wrote up to 0.16, as in CompVis' published models."""
    tensors, old = (
        load_file(folder / WEIGHTS),
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert any(".query." in key for key in tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert diffusers_vq.DiffusersVQ.load(folder).fingerprint == diffusers_vq.DiffusersVQ(make()).fingerprint


def test_pictures_are_tokenised_with_a_folder_of_diffusers(stored, tmp_path):
    from PIL import Image

    from imagegpt.cli.tokenize import tokenize
    from imagegpt.data.tokens import IDS

    (tmp_path / "pictures").mkdir()
    image = pictures(3, 16, 16)
    for number, one in enumerate(image):
        Image.fromarray(one).save(tmp_path / "pictures" / f"{number}.png")
    tokenize(str(tmp_path / "pictures"), out=tmp_path / "ids", codec=str(stored), json_=True)
    codec = diffusers_vq.DiffusersVQ.load(stored)
    np.testing.assert_array_equal(np.load(tmp_path / "ids" / IDS).reshape(3, 8, 8), codec.encode(image))
    meta = json.loads((tmp_path / "ids" / "meta.json").read_text())
    assert (meta["codec"], meta["grid"]) == (codec.fingerprint, [8, 8])
    assert read_codec(meta, tmp_path / "ids").fingerprint == codec.fingerprint


def test_without_diffusers_its_extra_is_named(stored, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r'needs diffusers: pip install "imagegpt\[diffusers\]"'):
        find_framed(str(stored))


# --- what can't be used


def refused(folder, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        diffusers_vq.DiffusersVQ.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def rewrite(folder, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"_class_name": "AutoencoderKL"}', "\udcff", None])
def test_a_folder_of_something_else_is_named(folder, text):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not holds_vqmodel(folder)
    refused(folder, r"holds no VQModel: it has no config\.json of one")
    with pytest.raises(InputError, match="has no preprocessor_config"):
        load_preprocessor(folder)


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "cut"])
def test_missing_or_damaged_weights_are_named(folder, content):
    if content is None:
        (folder / WEIGHTS).unlink()
    else:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9] if content == "cut" else content)
    refused(folder, "holds no VQModel that can be used")


def test_a_pickle_is_never_read(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, "holds no VQModel that can be used")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("quantize.embedding.weight", lambda t: None, r"the weights lack quantize\.embedding\.weight"),
        ("quantize.embedding.weight", lambda t: t[1:].clone(), "can be used"),
        ("quant_conv.bias", lambda t: t.fill_(float("nan")), "not finite"),
        ("encoder.conv_in.weight", lambda t: t.fill_(float("-inf")), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, name, change, words):
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = change(tensors[name])
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)
    refused(folder, words)


@pytest.mark.parametrize(
    "entries",
    [
        {"block_out_channels": "wide"},
        {"block_out_channels": [7, 8]},
        {"num_vq_embeddings": -3},
        {"num_vq_embeddings": "many"},
        {"down_block_types": ["Nothing", "DownEncoderBlock2D"]},
        {"act_fn": "none such"},
        {"norm_num_groups": 0},
        {"norm_type": "none such"},
    ],
)
def test_numbers_that_can_not_be_are_refused(folder, entries):
    rewrite(folder, **entries)
    refused(folder, "can be used|the weights lack|the weights hold what")


@pytest.mark.parametrize("size", [None, 0, "16", 16.5, [16, 16], True])
def test_a_size_that_is_none_is_named(folder, size):
    rewrite(folder, sample_size=size)
    with pytest.raises(InputError, match="sample_size of a VQModel must be a side in pixels") as caught:
        find_framed(str(folder))
    assert str(folder) in str(caught.value)
