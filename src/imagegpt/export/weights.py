"""A model's parameters as an exported graph holds them: which type each has, and its numbers when they are written.

Precisions: fp32; fp16, in which the weights of the norms stay float32; int8, in which the weights of the blocks'
products are bytes with one scale for each output, and all others (embeddings, biases, norms, heads) are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.checkpoint import HEAD, SCORE
from imagegpt.errors import InputError
from imagegpt.export.options import OnnxPrecision
from imagegpt.export.source import Parameters

LEVELS, SCALES = ".levels", ".scales"
# Of a weight's levels. Processors without VNNI add two products of an unsigned and a signed byte in 16 bits: with
# levels up to 64 that can't overflow. Unsigned levels could not either; where there is VNNI or AMX, their products take
# up to 20 times as long.
PEAK = 64
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Weight:
    """Numbers that are not read yet.

    Args:
        dtype, shape: of the whole.
        read: gives them.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def find_weight(name: str, parameters: Parameters, precision: OnnxPrecision) -> Weight:
    """What a graph calls `name`: a parameter by its name in a checkpoint, or the levels or scales of one.

    The heads are turned to (width, outputs), as all other weights of products are stored.
    """
    if name.endswith(LEVELS):
        source = name.removesuffix(LEVELS) + ".weight"
        return Weight(np.dtype(np.int8), parameters.shape(source), lambda: quantize(parameters[source])[0])
    if name.endswith(SCALES):
        source = name.removesuffix(SCALES) + ".weight"
        shape = parameters.shape(source)[1:]
        return Weight(np.dtype(np.float32), shape, lambda: quantize(parameters[source])[1])
    shape = parameters.shape(name)
    if name in (HEAD, SCORE):
        shape = shape[::-1]
    if precision == "fp16" and not is_norm(name):
        return Weight(np.dtype(np.float16), shape, lambda: _half(name, _oriented(name, parameters)))
    return Weight(np.dtype(np.float32), shape, lambda: _oriented(name, parameters))


def is_norm(name: str) -> bool:
    """Whether a parameter is the weight of a norm."""
    return name.split(".")[-2].startswith("ln_")


def quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight (inputs, outputs) as levels from -`PEAK` to `PEAK`, and (outputs,) the scales of these."""
    scales = np.abs(weight).max(0) / np.float32(PEAK)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales


def _oriented(name: str, parameters: Parameters) -> NDArray[np.float32]:
    return np.ascontiguousarray(parameters[name].T) if name in (HEAD, SCORE) else parameters[name]


def _half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{name} has numbers beyond fp16's 65504; export in fp32.")
    return half
