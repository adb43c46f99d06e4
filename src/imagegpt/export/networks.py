"""The exported functions in torch: what graphs are compared with, and what torch's own programs are made of.

Shape suffixes: B rows, S new ids, P ids before them, M = P + S, D width, N heads, H head width, K colours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imagegpt.checkpoint import weights_file
from imagegpt.errors import InputError, reason
from imagegpt.export.check import Outputs, in_two_parts
from imagegpt.export.graphs import LOGITS, STATES
from imagegpt.export.options import Function
from imagegpt.export.source import Source
from imagegpt.model.loading import load_classifier, load_generative
from imagegpt.model.modeling import ImageGPTModel

Past = list[tuple[torch.Tensor, torch.Tensor]]


class States(nn.Module):
    """`input_ids` (B, S) to the states behind the final norm, and those of chosen layers, (B, S, D) each."""

    def __init__(self, trunk: ImageGPTModel, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.trunk, self.hidden = trunk, list(hidden)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run."""
        found = self.trunk(input_ids, use_cache=False, output_hidden_states=bool(self.hidden), return_dict=True)
        return found.last_hidden_state, *(found.hidden_states[layer] for layer in self.hidden)


class Classes(nn.Module):
    """`input_ids` (B, S) to logits (B, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Run."""
        return self.network(input_ids, use_cache=False, return_dict=True).logits


class Decoder(nn.Module):
    """`input_ids` (B, S) and each layer's keys and values (B, N, P, H) to logits (B, S, K) and those of P + S ids."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, past_key_values: Past) -> tuple[torch.Tensor, Past]:
        """Run."""
        before, new = past_key_values[0][0].shape[2], input_ids.shape[1]
        positions = torch.arange(before, before + new, device=input_ids.device)
        # A ready mask: which of the shorter forms would do depends on the lengths, and one program is for all.
        seen = torch.arange(before + new, device=input_ids.device) <= positions[:, None]
        trunk = self.network.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=seen[None, None].expand(input_ids.shape[0], 1, -1, -1),
            position_ids=positions[None],
            use_cache=True,
            return_dict=True,
        )
        return self.network.logits(trunk.last_hidden_state), list(trunk.past_key_values)


def load_functions(
    source: Source, functions: Sequence[Function], hidden: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> dict[Function, nn.Module]:
    """The functions of a model folder, for inference on the CPU; those of one network share its weights.

    Raises:
        InputError: weights that are missing or damaged.
    """
    cpu, found = torch.device("cpu"), {}
    drawing = load_generative(source.folder, dtype, cpu) if source.draws else None
    classifier = load_classifier(source.folder, dtype, cpu) if "classification" in functions else None
    if "decoder" in functions:
        found["decoder"] = Decoder(drawing)
    if classifier is not None:
        found["classification"] = Classes(classifier)
    if "model" in functions:
        network = drawing or classifier
        found["model"] = States(_trunk(source, dtype) if network is None else network.transformer, hidden)
    return {name: found[name].eval().requires_grad_(False) for name in functions}


def run_function(
    network: Any, source: Source, function: Function, ids_BS: NDArray[np.int64], hidden: Sequence[int] = ()
) -> Outputs:
    """Outputs of a function, by the names that they have in an export; the decoder's logits alone, in two calls."""
    ids = torch.from_numpy(ids_BS)
    if function == "classification":
        return {LOGITS: _numpy(network(ids))}
    if function == "model":
        names = [STATES, *(f"hidden_states.{layer}" for layer in hidden)]
        return {name: _numpy(value) for name, value in zip(names, network(ids), strict=True)}
    dtype = next(network.parameters(), torch.empty(0)).dtype
    past, logits = empty_past(source, len(ids), dtype), []
    for part in in_two_parts(ids_BS):
        new, past = network(torch.from_numpy(part), past)
        logits.append(_numpy(new))
    return {LOGITS: np.concatenate(logits, 1)}


def empty_past(source: Source, rows: int, dtype: torch.dtype, length: int = 0) -> Past:
    """Keys and values of so many ids, all zero: (B, N, P, H) of each layer."""
    spec = source.spec
    shapes = [(rows, spec.heads(layer), length, spec.head_width) for layer in range(spec.n_layer)]
    return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for shape in shapes]


def _numpy(value: torch.Tensor) -> NDArray[np.float32]:
    return value.detach().float().numpy()


def _trunk(source: Source, dtype: torch.dtype) -> ImageGPTModel:
    """A trunk without a head that this package reads."""
    try:
        return ImageGPTModel.from_pretrained(source.folder, dtype=dtype, attn_implementation="sdpa")
    except Exception as error:  # a damaged .bin file makes the unpickler raise nearly anything
        raise InputError(f"{weights_file(source.folder)} can't be loaded: {reason(error)}") from error
