"""Our network against transformers' and against numpy, through files in both directions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

from decoding import decode
from imagegpt.config import ImageGPTConfig
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling
from imagegpt.model.heads import ImageGPTForCausalImageModeling as Ours
from imagegpt.model.loading import load_generative
from imagegpt.pipeline import ImageGPT
from reference import network

BASE = {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def random_numbers(seed):
    rng = random.Random(seed)
    n_head = rng.choice([1, 2, 3, 4])
    return {
        "vocab_size": rng.randint(2, 40),
        "n_positions": rng.randint(16, 40),
        "n_embd": n_head * rng.choice([8, 12, 16]),
        "n_layer": rng.randint(1, 3),
        "n_head": n_head,
        "n_inner": rng.choice([None, 24, 50]),
        # Each of the four in turn, so that none is left out by chance.
        "activation_function": ("quick_gelu", "gelu", "gelu_new", "relu")[seed % 4],
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3, 0.1]),
        "scale_attn_weights": rng.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": rng.random() < 0.5,
        "reorder_and_upcast_attn": rng.random() < 0.3,
    }


def make(kind, numbers, seed=0):
    """A model with large weights and biases: of fresh ones (norms 1, biases 0) a wrong use would not show."""
    config = (PeerConfig if kind is Peer else ImageGPTConfig)(**numbers)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def random_ids(model, rows=2, length=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, model.config.n_positions if length is None else length)
    return torch.randint(0, model.config.vocab_size, shape, generator=generator)


def state_of(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module", params=range(20))
def saved_peer(request, tmp_path_factory):
    peer = make(Peer, random_numbers(request.param), request.param)
    folder = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(folder)
    return peer, folder


@torch.no_grad()
def test_logits_of_a_checkpoint_of_transformers_equal_its_own(saved_peer):
    peer, folder = saved_peer
    ids = random_ids(peer)
    expected = peer(ids).logits
    assert expected.std() > 0.2  # large weights: logits that say something
    torch.testing.assert_close(Ours.from_pretrained(folder)(ids).logits, expected, **TOLERANCE)


@pytest.mark.parametrize("seed", range(100, 120))
@torch.no_grad()
def test_logits_of_our_checkpoint_equal_in_transformers(seed, tmp_path):
    ours = make(Ours, random_numbers(seed), seed)
    ours.save_pretrained(tmp_path)
    ids = random_ids(ours)
    theirs = Peer.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, **TOLERANCE)


@torch.no_grad()
def test_logits_equal_the_numpy_reference(saved_peer):
    peer, folder = saved_peer
    ids = random_ids(peer, rows=1, length=12)
    expected = network.logits(state_of(peer), peer.config.to_dict(), ids[0].numpy())
    np.testing.assert_allclose(Ours.from_pretrained(folder)(ids).logits[0].numpy(), expected, atol=1e-5, rtol=1e-5)


def test_greedy_ids_of_both_our_ways_equal_generate_of_transformers(saved_peer):
    peer, folder = saved_peer
    ours = load_generative(folder, torch.float32, torch.device("cpu"))
    length, sos = peer.config.n_positions, peer.config.vocab_size - 1
    prompt = random_ids(peer, length=length - 10).clamp(max=sos - 1)
    inputs = torch.cat([torch.full((2, 1), sos), prompt], 1)
    expected = peer.generate(inputs, max_new_tokens=10, do_sample=False)[:, 1:]
    by_generate = ours.generate(inputs, max_new_tokens=10, do_sample=False)[:, 1:]
    by_engine = decode(TorchBackend(ours), prompt.numpy(), np.arange(2), Sampling(0), np.zeros((2, length)))
    assert by_generate.tolist() == expected.tolist()
    assert by_engine.tolist() == expected.tolist()


def test_greedy_pipeline_equals_generate_of_transformers(tiny_folder):
    peer = Peer.from_pretrained(tiny_folder).eval()
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    result = model.complete(picture, keep=0.5, temperature=0)
    inputs = torch.tensor([[16, *model.encode(picture)[0, :32]]])
    assert result.ids[0].tolist() == peer.generate(inputs, max_new_tokens=32, do_sample=False)[0, 1:].tolist()


def transpose_square(model, name):
    weight = model.get_parameter(name)
    weight.copy_(weight.T.clone())


def exchange_queries_and_keys(model):
    bias = model.get_parameter("transformer.h.0.attn.c_attn.bias")
    weight = model.get_parameter("transformer.h.0.attn.c_attn.weight")
    for tensor in (bias, weight):
        q, k, v = tensor.clone().chunk(3, dim=-1)
        tensor.copy_(torch.cat([k, q, v], -1))


WRONG = {
    "attention c_proj transposed": lambda m: transpose_square(m, "transformer.h.1.attn.c_proj.weight"),
    "mlp c_proj transposed": lambda m: transpose_square(m, "transformer.h.0.mlp.c_proj.weight"),
    "q and k exchanged": exchange_queries_and_keys,
    "no attention bias": lambda m: m.get_parameter("transformer.h.0.attn.c_proj.bias").zero_(),
    "no norm weight": lambda m: m.get_parameter("transformer.h.1.ln_2.weight").fill_(1),
    "no final norm weight": lambda m: m.get_parameter("transformer.ln_f.weight").fill_(1),
    "positions one off": lambda m: m.get_parameter("transformer.wpe.weight").copy_(m.transformer.wpe.weight.roll(1, 0)),
}


# The proof that the tests above can fail: each of these mistakes is far above their tolerance.
@pytest.mark.parametrize("mistake", WRONG.values(), ids=WRONG.keys())
@torch.no_grad()
def test_a_wrong_use_of_the_weights_is_noticed(mistake):
    peer = make(Peer, {**BASE, "n_inner": 32})
    ours = Ours(ImageGPTConfig(**BASE, n_inner=32)).eval()
    ours.load_state_dict(peer.state_dict())
    ids = random_ids(peer)
    expected = peer(ids).logits
    torch.testing.assert_close(ours(ids).logits, expected, **TOLERANCE)
    mistake(ours)
    assert (ours(ids).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changed",
    [
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 0.1},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_head": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_number_of_the_function_matters(changed):
    peer = make(Peer, BASE)
    ours = Ours(ImageGPTConfig(**{**BASE, **changed})).eval()
    ours.load_state_dict(peer.state_dict())
    ids = random_ids(peer)
    assert (ours(ids).logits - peer(ids).logits).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_states_and_attentions_equal_those_of_transformers(tmp_path):
    peer = make(Peer, {**BASE, "n_layer": 3})
    peer.save_pretrained(tmp_path)
    ours = Ours.from_pretrained(tmp_path, attn_implementation="eager")
    peer.set_attn_implementation("eager")
    ids = random_ids(peer)
    got, expected = (model(ids, output_hidden_states=True, output_attentions=True) for model in (ours, peer))
    assert len(got.hidden_states) == 4
    assert len(got.attentions) == 3
    for mine, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    for mine, theirs in zip(got.attentions, expected.attentions, strict=True):
        assert mine.shape == (2, 2, 16, 16)
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


@torch.no_grad()
def test_loss_on_plain_labels_equals_that_of_transformers():
    peer = make(Peer, BASE)
    ours = Ours(ImageGPTConfig(**BASE)).eval()
    ours.load_state_dict(peer.state_dict())
    ids = random_ids(peer).clamp(max=15)
    torch.testing.assert_close(ours(ids, labels=ids).loss, peer(ids, labels=ids).loss, **TOLERANCE)


def test_parameter_names_and_shapes_are_those_of_transformers():
    ours, theirs = (make(kind, {**BASE, "n_inner": 24}).state_dict() for kind in (Ours, Peer))
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}
