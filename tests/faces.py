"""The three public classes at a tiny size, for tests of what every model on transformers' base classes must do."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.model.modeling import ImageGPTModel

Trunk, Causal, Classifier = ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification
FACES = [Trunk, Causal, Classifier]
K, T, D, LAYERS, HEADS, CLASSES = 16, 12, 32, 2, 2, 3
SOS = K
NUMBERS = {
    **{"vocab_size": K + 1, "n_positions": T, "n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "num_labels": CLASSES},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}

each_face = pytest.mark.parametrize("face", FACES)


def make(face: Any, **numbers: Any) -> Any:
    """A tiny model in evaluation mode, without dropout; its trunk has the same large weights whatever the face."""
    model = face(ImageGPTConfig(**{**NUMBERS, **numbers})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = name.removeprefix("transformer.")
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("ln_" in name))
    return model


def random_ids(rows: int = 2, length: int = T, seed: int = 0) -> torch.Tensor:
    return torch.randint(K, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding_mask(*rows: str) -> torch.Tensor:
    """(B, T) from rows like "..1111": dots are padding."""
    return torch.tensor([[int(mark != ".") for mark in row] for row in rows])


def labels_for(face: Any, ids: torch.Tensor) -> torch.Tensor:
    """Labels that the face's head takes: the ids themselves, or a class for each row."""
    return ids if face is Causal else torch.arange(len(ids)) % CLASSES


def main_output(output: Any) -> torch.Tensor:
    """Logits, or the trunk's states."""
    return output.last_hidden_state if "last_hidden_state" in output else output.logits


def assert_equal(got: Any, expected: Any, atol: float = 1e-5) -> None:
    """Compare tensors, and caches, tuples and lists of them."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, atol=atol, rtol=atol)
    elif expected is None or isinstance(expected, (bool, int, float, str)):
        assert got == expected
    else:
        if hasattr(expected, "layers"):
            got, expected = ([(layer.keys, layer.values) for layer in cache.layers] for cache in (got, expected))
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other, atol)


def assert_same_weights(got: Any, expected: Any) -> None:
    """Name for name and bit for bit."""
    state = got.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
