"""The likelihood of pictures by the very steps that would draw them, by any backend.

Eight-bit arithmetic rounds differently over a whole picture than step by step: nano's log-likelihoods came out up to
0.06 % apart (docs/log.md), so what int8 would draw is scored as it would be drawn.

Shape suffixes: B pictures, T ids, K colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.decode import Backend
from imagegpt.engine.warp import softmax, wide


class StepScorer:
    """What each id costs; see `imagegpt.engine.score.Scorer`.

    Args:
        backend: runs the model.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend, self.rows = backend, min(backend.rows, backend.rows_that_fit(1))

    def __call__(
        self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """-log p of each id, and the entropy of its place, (B, T) nats each."""
        surprise_BT, entropy_BT = np.empty(ids_BT.shape, np.float32), np.empty(ids_BT.shape, np.float32)
        each = np.arange(len(ids_BT))
        rows = self._backend.prefill(inputs_BT[:1, :1], np.zeros(len(ids_BT), np.int64))  # SOS
        for position, ids_B in enumerate(ids_BT.T):
            if position:
                rows.step(self._backend.array(inputs_BT[:, position]))
            probs_BK = softmax(wide(self._backend.numpy(rows.logits_BK)))
            log_probs_BK = np.log(np.maximum(probs_BK, np.finfo(np.float64).tiny))
            surprise_BT[:, position] = -log_probs_BK[each, ids_B]
            entropy_BT[:, position] = -(probs_BK * log_probs_BK).sum(1)
        return surprise_BT, entropy_BT
