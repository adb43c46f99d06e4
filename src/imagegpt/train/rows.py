"""What the two makers of batches, of stored ids and of pictures, have in common.

Shape suffixes: B rows of this process, T ids of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegpt.data.records import Label

AHEAD = 4  # batches that are made before they are asked for


@dataclass(frozen=True)
class Batch:
    """A process's rows of a global batch.

    Args:
        position: number of the global batch since the start of training.
        ids_BT: int64.
        labels: one for each row; `None` where the source has none.
        numbers: (B,) int64, of the rows' records in the source.
    """

    position: int
    ids_BT: NDArray[np.int64]
    labels: list[Label | None] | None
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.numbers)
