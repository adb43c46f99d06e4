"""The numbers of a picture on which every method rests, each in nats for each id.

Shape suffixes: B pictures, T ids, S statistics.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagegpt.anomaly.background import Background
from imagegpt.anomaly.compressors import compressed
from imagegpt.codec.codec import Codec
from imagegpt.engine.score import Scores

# The model's mean surprise; its mean entropy, which is the surprise that it expects; the standard deviation of the
# surprise over the ids; the background's mean surprise; the length of a losslessly compressed file.
STATISTICS = ("nats", "entropy", "spread", "background", "compressed")
MOST = 1e6  # nats: what an id that can't be counts as, so that all stays finite


def measure(
    ids_BT: NDArray[np.int64], scores: Scores, background: Background, codec: Codec, compressor: str
) -> NDArray[np.float64]:
    """The statistics of pictures, (B, S), in the order of `STATISTICS`.

    Args:
        ids_BT: the pictures.
        scores: what the model says of them.
        background: the small model beside it.
        codec: whose ids they are.
        compressor: see `compressed`.
    """
    surprise_BT = np.minimum(scores.surprise.astype(np.float64), MOST)
    columns = (
        surprise_BT.mean(1),
        scores.entropy.mean(1, dtype=np.float64),
        surprise_BT.std(1),
        background.surprise(ids_BT).mean(1),
        compressed(ids_BT, codec, background.grid, compressor),
    )
    return np.stack(columns, 1)


def column(x_BS: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """One statistic, (B,)."""
    return x_BS[:, STATISTICS.index(name)]
