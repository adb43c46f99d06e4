"""A model's parameters as the onnxruntime graph wants them: float32, or eight bits.

In int8 a weight has one scale for `BLOCK` inputs of an output, and onnxruntime gives the other factor of each product
one scale for as many numbers of a row, whatever else is in the batch. The cache has one scale for each channel of keys
and values.

Shape suffixes: N heads, M positions, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.checkpoint import HEAD
from imagegpt.spec import ModelSpec

BLOCK = 256  # the most that MatMulNBits has; 128 would save 0.01 % nats/token (docs/log.md)
Weights = dict[str, NDArray[Any]]


def cache_names(spec: ModelSpec) -> list[str]:
    """Names of the cache's tensors, (B, N, M, H) each: keys and values of every layer."""
    return [f"{kind}.{layer}" for layer in range(spec.n_layer) for kind in ("key", "value")]


def float_weights(tensors: Mapping[str, NDArray[np.float32]]) -> Weights:
    """The parameters by the names of a checkpoint; the head, the one that is stored output-first, is turned."""
    turned = {name: np.ascontiguousarray(tensors[name].T) for name in (HEAD,) if name in tensors}
    return {**tensors, **turned}


def int8_weights(spec: ModelSpec, tensors: Mapping[str, NDArray[np.float32]]) -> Weights:
    """The parameters with every weight of a product as `levels` and `scales` in its place."""
    weights = float_weights(tensors)
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    names = [f"transformer.h.{layer}.{part}" for layer in range(spec.n_layer) for part in parts]
    for name in [*names, *(["lm_head"] if HEAD in tensors else [])]:
        levels, scales = quantize_blocks(weights.pop(f"{name}.weight"))
        weights |= {f"{name}.levels": levels, f"{name}.scales": scales}
    return weights


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A weight (inputs, outputs) in 8 bits, as MatMulNBits wants it: symmetric, one scale for `BLOCK` inputs.

    Returns:
        (outputs, blocks, BLOCK) levels around 128, padded with zeros, and (outputs, blocks) scales.
    """
    inner, outer = weight.shape
    count = -(-inner // BLOCK)
    blocks = np.zeros((outer, count * BLOCK), np.float32)
    blocks[:, :inner] = weight.T
    blocks = blocks.reshape(outer, count, BLOCK)
    scales = np.abs(blocks).max(2) / np.float32(127)
    scales[scales == 0] = 1
    levels = np.rint(blocks / scales[..., None]) + 128
    return levels.astype(np.uint8), scales.astype(np.float32)
