"""Features in onnxruntime: the blocks up to the deepest layer that is asked for, no cache, no head. No torch.

Shape suffixes: B pictures, S queries of a block, T ids, D width, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from imagegpt.engine.features import Pool
from imagegpt.engine.onnx_backend import open_session
from imagegpt.engine.onnx_picture import PictureBuilder
from imagegpt.engine.onnx_weights import Weights
from imagegpt.spec import ModelSpec


class OnnxFeatures:
    """Features of chosen layers on a CPU; see `imagegpt.engine.features.Extractor`.

    Args:
        spec: the model's numbers.
        weights: see `imagegpt.engine.onnx_weights`: float32, or int8 for the products.
        layers: layers, from 0 to `spec.n_layer`.
        pool: "mean" or "none".

    Raises:
        InputError: the model has an activation that onnxruntime lacks.
    """

    rows = 1  # more are not faster, and one picture's states stay in the caches

    def __init__(self, spec: ModelSpec, weights: Weights, layers: Sequence[int], pool: Pool) -> None:
        used = {name: value for name, value in weights.items() if _is_used(name, spec, max(layers))}
        self._session = open_session(_FeatureBuilder(spec, used).build(layers, pool), used)

    def __call__(self, inputs_BT: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run pictures: for each layer (B, D), or (B, T, D) without pooling."""
        return self._session.run(None, {"ids": inputs_BT})  # pyright: ignore[reportReturnType]


def _is_used(name: str, spec: ModelSpec, blocks: int) -> bool:
    """Whether the first `blocks` blocks and the norm behind them read a weight."""
    _, kind, *rest = name.split(".")
    if kind != "h":
        return kind in ("wte", "wpe") or (kind == "ln_f" and blocks == spec.n_layer)
    return int(rest[0]) < blocks or (int(rest[0]) == blocks and rest[1] == "ln_1")


class _FeatureBuilder(PictureBuilder):
    """The graph: `ids` (B, T) in, one output for each layer."""

    def build(self, layers: Sequence[int], pool: Pool) -> bytes:
        """Put it together."""
        spec, states = self.spec, self.pictures(max(layers))
        along = self.constant("along", np.array([1], np.int64))
        for layer in layers:
            if pool == "mean":
                self.node("ReduceMean", [states[layer], along], f"layer.{layer}", keepdims=0)
                self.output(f"layer.{layer}", TensorProto.FLOAT, ["B", spec.n_embd])
            else:
                self.node("Identity", [states[layer]], f"layer.{layer}")
                self.output(f"layer.{layer}", TensorProto.FLOAT, ["B", spec.n_positions, spec.n_embd])
        return self.serialized()
