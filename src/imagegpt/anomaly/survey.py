"""A detector over DATA: a row for each picture as it comes, and what there was in all.

Shape suffixes: N pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.anomaly.detector import Detector, Verdicts
from imagegpt.anomaly.methods import METHODS
from imagegpt.codec.pictures import OnError
from imagegpt.data.ids import Ids
from imagegpt.data.records import Source
from imagegpt.errors import InputError
from imagegpt.painting import Progress

COLUMNS: tuple[str, ...] = ("data", "image", "score", "p_value", "anomaly", *METHODS)
Row = dict[str, Any]


@dataclass(eq=False)
class Survey:
    """One source's pictures.

    Args:
        detector: says of each how little it is like the normal ones.
        source: the pictures, or their ids.
        method: gives `score`, `p_value` and `anomaly` of a row.
        fpr: the false-positive rate; default: the detector's own.
        on_error: "raise", or "skip" what can't be read.
        keep: keep every method's scores: 40 bytes a picture.

    Attributes:
        pictures, flagged: how many there were so far, and how many of them the method flags.
        skipped: a sentence for each that could not be read.
    """

    detector: Detector
    source: Source
    method: str
    fpr: float | None = None
    on_error: OnError = "raise"
    keep: bool = False
    pictures: int = field(default=0, init=False)
    flagged: int = field(default=0, init=False)
    skipped: list[str] = field(default_factory=list, init=False)
    _kept: list[dict[str, NDArray[np.float64]]] = field(default_factory=list, init=False, repr=False)

    def rows(self, progress: Progress | None = None) -> Iterator[list[Row]]:
        """The pictures' rows, each with `COLUMNS`, batch by batch.

        Args:
            progress: called with (pictures done, pictures in all).

        Raises:
            InputError: as `Detector.score_source`, or no picture can be read.
        """
        found = self.detector.score_source(self.source, fpr=self.fpr, on_error=self.on_error, progress=progress)
        for batch, verdicts in found:
            self.skipped += batch.skipped
            self.pictures += len(batch)
            self.flagged += int(verdicts.flagged(self.method).sum())
            if self.keep:
                self._kept.append(verdicts.scores)
            yield self._rows(batch, verdicts)
        if not self.pictures:
            raise InputError(f"{self.source.path}: none of its {len(self.source)} pictures can be read.")

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Each method's scores of the pictures so far, (N,), where they are kept."""
        return {method: np.concatenate([np.empty(0), *(kept[method] for kept in self._kept)]) for method in METHODS}

    def _rows(self, batch: Ids, verdicts: Verdicts) -> list[Row]:
        columns = [
            [self.source.path] * len(batch),
            batch.names,
            verdicts.scores[self.method].tolist(),
            verdicts.p_values[self.method].tolist(),
            verdicts.flagged(self.method).tolist(),
            *(verdicts.scores[method].tolist() for method in METHODS),
        ]
        return [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]
