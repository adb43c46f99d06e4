"""Whole pictures in onnxruntime: the blocks over all ids at once, without a cache. No torch.

`onnx_features.py` and `onnx_score.py` add what they want of the states.

Shape suffixes: B pictures, S queries of a block, T ids, N heads, H head width.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from imagegpt.engine.onnx_graph import CONTRIB, GraphBuilder

QUERIES = 128  # that attend together: half of what a T x T product costs, and the scores stay in a core's cache


class PictureBuilder(GraphBuilder):
    """The graph of whole pictures: `ids` (B, T) in."""

    def pictures(self, blocks: int) -> list[str]:
        """The normalised states before each of the first `blocks` blocks and after the last, (B, T, D) each."""
        self.input("ids", TensorProto.INT64, ["B", self.spec.n_positions])
        colors = self.node("Gather", ["transformer.wte.weight", "ids"], "colors")
        embedded = self.node("Add", [colors, "transformer.wpe.weight"], "embedded")
        return list(self.states(embedded, blocks))

    def attention(self, layer: int, qkv: str) -> str:
        """Causal attention, a block of queries after the other, each over the keys up to its own end.

        onnxruntime's attention operators compute all T x T scores of which half is thrown away, and go through them
        more often: they take twice the time (docs/log.md).
        """
        heads, scale = self.spec.heads(layer), self.spec.attention_scale(layer)
        parts = self._heads_of(layer, qkv)
        attended = []
        for start, end in query_blocks(self.spec.n_positions):
            name = f"{layer}.{start}"
            queries = self._slice(parts[0], start, end, f"{name}.queries")
            keys, values = (self._slice(part, 0, end, f"{name}.{of}") for part, of in zip(parts[1:], "kv", strict=True))
            scores = self.node("FusedMatMul", [queries, keys], f"{name}.scores", CONTRIB, alpha=scale, transB=1)
            masked = self.node("Add", [scores, self._mask(start, end)], f"{name}.masked")
            probs = self.node("Softmax", [masked], f"{name}.probs", axis=-1)
            attended.append(self.node("MatMul", [probs, values], f"{name}.attended"))
        joined = self.node("Concat", attended, f"{layer}.joined", axis=2)
        turned = self.node("Transpose", [joined], f"{layer}.turned", perm=[0, 2, 1, 3])
        shape = self.constant(f"merged.{heads}", np.array([0, 0, heads * self.spec.head_width]))
        return self.node("Reshape", [turned, shape], f"{layer}.attended")

    def _heads_of(self, layer: int, qkv: str) -> list[str]:
        """Queries, keys and values, (B, N, T, H) each."""
        heads = self.spec.heads(layer)
        shape = self.constant(f"split.{heads}", np.array([0, 0, 3 * heads, self.spec.head_width]))
        split = self.node("Reshape", [qkv, shape], f"{layer}.split")
        turned = self.node("Transpose", [split], f"{layer}.qkv", perm=[0, 2, 1, 3])
        parts = [f"{layer}.{part}" for part in ("queries", "keys", "values")]
        self.nodes.append(helper.make_node("Split", [turned], parts, axis=1, num_outputs=3))
        return parts

    def _slice(self, x: str, start: int, end: int, output: str) -> str:
        """Positions `start` to `end` of (B, N, T, H)."""
        if (start, end) == (0, self.spec.n_positions):
            return x
        bounds = [self.constant(f"number.{number}", np.array([number])) for number in (start, end, 2)]
        return self.node("Slice", [x, *bounds], output)

    def _mask(self, start: int, end: int) -> str:
        """(S, end): minus infinity where a key comes after the query."""
        mask = np.triu(np.full((end - start, end), -np.inf, np.float32), start + 1)
        return self.constant(f"mask.{start}", mask)


def query_blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]
