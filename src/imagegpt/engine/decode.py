"""The decode loop, written once against a small protocol.

Shape suffixes: R prompts, B rows (samples), P given ids, T ids of a picture, K colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.warp import Sampling
from imagegpt.sequence import with_sos
from imagegpt.spec import ModelSpec


class Rows(Protocol):
    """Sequences on their way; the layout of the cache behind them is the backend's own business."""

    logits_BK: NDArray[np.floating]

    def step(self, ids_B: NDArray[np.int64]) -> None:
        """Append one id to each row; `logits_BK` are then those of the next."""
        ...


class Backend(Protocol):
    """What a backend offers. It holds no state of its own: several decodings may go on at once."""

    spec: ModelSpec

    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> Rows:
        """Begin: run R prompts (SOS first), and make row b a continuation of prompt `rows_B[b]`."""
        ...


def decode(
    backend: Backend,
    prompt_RP: NDArray[np.int64],
    rows_B: NDArray[np.int64],
    sampling: Sampling,
    uniforms_BT: NDArray[np.float64],
    on_step: Callable[[int], None] | None = None,
) -> NDArray[np.int64]:
    """Sample the rest of each row.

    Args:
        backend: runs the model.
        prompt_RP: the given ids of R pictures, without SOS; P may be 0.
        rows_B: the prompt that each row continues; a prompt is run once however many rows share it.
        sampling: temperature and filters.
        uniforms_BT: random numbers, one for each row and position.
        on_step: called after each sampled position with the number of ids drawn in it.

    Returns:
        (B, T) int64: the given ids, then the sampled ones.
    """
    length, given = backend.spec.n_positions, prompt_RP.shape[1]
    ids_BT = np.empty((len(rows_B), length), np.int64)
    ids_BT[:, :given] = prompt_RP[rows_B]
    rows = backend.prefill(with_sos(prompt_RP, backend.spec.sos), rows_B)
    for position in range(given, length):
        ids_BT[:, position] = sampling.choose(rows.logits_BK, uniforms_BT[:, position])
        if on_step is not None:
            on_step(len(rows_B))
        if position + 1 < length:
            rows.step(ids_BT[:, position])
    return ids_BT
