"""Ids by the model's own probabilities, one step of the network after another.

Encoder and decoder walk the same steps with as many rows: a parallel run of the network, which an encoder could make,
rounds its sums in another order, and one bit of one logit may change a frequency.

Shape suffixes: B rows, T ids of a picture, K colours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from imagegpt.compression.coder import Coder
from imagegpt.compression.frequencies import MOST_VALUES, from_logits
from imagegpt.engine.decode import Backend
from imagegpt.engine.warp import log_probs
from imagegpt.errors import InputError
from imagegpt.sequence import with_sos

Tell = Callable[[int], None]


def code_ids(
    backend: Backend, coder: Coder, rows: int, ids_BT: NDArray[np.int64] | None = None, tell: Tell | None = None
) -> tuple[NDArray[np.int64], float]:
    """Code rows of ids, position after position, all rows of a position together.

    Args:
        backend: runs the model.
        coder: an encoder, or a decoder.
        rows: B.
        ids_BT: for an encoder.
        tell: called with the number of positions that are done.

    Returns:
        The ids, int64 (B, T), and the model's own negative log-likelihood of them in nats: the sum over all.

    Raises:
        InputError: logits that are not finite.
        DamagedStream: by a decoder.
    """
    length = backend.spec.n_positions
    found_BT, nats = np.empty((rows, length), np.int64), 0.0
    state = backend.prefill(with_sos(np.empty((1, 0), np.int64), backend.spec.sos), np.zeros(rows, np.int64))
    for position in range(length):
        logits_BK = np.asarray(backend.numpy(state.logits_BK), np.float32)
        ids_B = coder.code(from_logits(logits_BK), None if ids_BT is None else ids_BT[:, position])
        nats -= float(log_probs(logits_BK, ids_B).sum())
        found_BT[:, position] = ids_B
        if position + 1 < length:
            state.step(backend.array(ids_B))
        if tell is not None:
            tell(position + 1)
    return found_BT, nats


def check_colors(colors: int) -> None:
    """Refuse ids that can't be coded: of one colour or code, or of more than 65,536."""
    if not 2 <= colors <= MOST_VALUES:
        raise InputError(f"Ids of a codec of {colors} can't be compressed: it must have 2 to {MOST_VALUES:,}.")
