"""The likelihood of pictures in onnxruntime: all blocks over all ids at once, and the head. No torch.

Shape suffixes: B pictures, T ids, K colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from imagegpt.engine.onnx_backend import open_session
from imagegpt.engine.onnx_picture import PictureBuilder
from imagegpt.engine.onnx_weights import Weights
from imagegpt.spec import ModelSpec


class OnnxScorer:
    """What each id costs, on a CPU; see `imagegpt.engine.score.Scorer`.

    Args:
        spec: the model's numbers.
        weights: see `imagegpt.engine.onnx_weights`, float32.

    Raises:
        InputError: the model has an activation that onnxruntime lacks.
    """

    rows = 1  # more are not faster, and one picture's states stay in the caches

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._session = open_session(_ScoreBuilder(spec, weights).build(), weights)

    def __call__(
        self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """-log p of each id, and the entropy of its place, (B, T) nats each."""
        return tuple(self._session.run(None, {"ids": inputs_BT, "targets": ids_BT}))  # pyright: ignore[reportReturnType]


class _ScoreBuilder(PictureBuilder):
    """The graph: `ids` (B, T) that are read and `targets` (B, T) in, `surprise` and `entropy` (B, T) out."""

    def build(self) -> bytes:
        """Put it together."""
        length = self.spec.n_positions
        states = self.pictures(self.spec.n_layer)[-1]
        logits = self.product(states, self.spec.n_embd, "lm_head", output="logits")
        log_probs = self.node("LogSoftmax", [logits], "log_probs", axis=-1)
        self.input("targets", TensorProto.INT64, ["B", length])
        last = self.constant("last_axis", np.array([-1], np.int64))
        targets = self.node("Unsqueeze", ["targets", last], "targets.column")
        chosen = self.node("GatherElements", [log_probs, targets], "chosen", axis=-1)
        self.node("Neg", [self.node("Squeeze", [chosen, last], "chosen.row")], "surprise")
        self.output("surprise", TensorProto.FLOAT, ["B", length])
        # A colour that can't be has probability 0 and a log of minus infinity, whose product is no number.
        least = self.constant("least", np.array(np.finfo(np.float32).min))
        weighed = self.node(
            "Mul", [self.node("Exp", [log_probs], "probs"), self.node("Max", [log_probs, least], "log")], "weighed"
        )
        self.node("Neg", [self.node("ReduceSum", [weighed, last], "negative_entropy", keepdims=0)], "entropy")
        self.output("entropy", TensorProto.FLOAT, ["B", length])
        return self.serialized()
