"""The strength of a penalty is chosen on training pictures that are held out; the fit is then made on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, check_count
from imagegpt.metrics import Index, chunks
from imagegpt.painting import Progress
from imagegpt.probe.samples import Split, folds_of, hold_out

if TYPE_CHECKING:
    from imagegpt.probe.linear import LinearProbe


class Candidate(NamedTuple):
    """A probe fitted with one strength."""

    strength: float
    probe: LinearProbe
    iterations: int = 0
    converged: bool = True


Solve = Callable[[Index, Sequence[float]], Iterator[Candidate]]


class Selection(NamedTuple):
    """How a strength is found.

    Args:
        strength: given, so that nothing is chosen; or None.
        strengths: to choose from.
        held_out: part of each class that is held out.
        folds: of a stratified cross-validation in its place.
        seed: of what is held out.
    """

    strength: float | None
    strengths: Sequence[float]
    held_out: float
    folds: int | None
    seed: int

    def run(
        self, x_ND: NDArray[Any], y_N: Index, solve: Solve, progress: Progress | None = None
    ) -> tuple[Candidate, dict[float, float]]:
        """Choose, then fit to all rows.

        Args:
            x_ND, y_N: features and labels, checked.
            solve: fits to the rows of an index, with each of some strengths.
            progress: called with (fits done, fits in all).

        Returns:
            The fit to all rows, and the accuracy at each strength on the rows held out, empty where one was given.

        Raises:
            InputError: a strength that is not positive, a seed below 0, or no rows to hold out.
        """
        check_count("seed", self.seed, 0)
        strengths = sorted(set(self.strengths if self.strength is None else [self.strength]))
        if not strengths or not all(0 < strength < math.inf for strength in strengths):
            raise InputError(f"Strengths must be positive numbers, not {', '.join(map(str, strengths)) or 'none'}.")
        splits = self._splits(y_N) if len(strengths) > 1 else []
        correct, done = dict.fromkeys(strengths, 0), 0
        for split in splits:
            for candidate in solve(split.fit, strengths):
                correct[candidate.strength] += _correct(candidate.probe, x_ND, y_N, split.held)
                done = _tell(progress, done, len(splits) * len(correct) + 1)
        judged = sum(len(split.held) for split in splits)
        accuracies = {strength: count / judged for strength, count in correct.items()} if splits else {}
        # of equally good ones the strongest: less to go wrong on pictures of another kind
        best = max(accuracies, key=lambda strength: (accuracies[strength], strength)) if splits else strengths[0]
        [candidate] = solve(np.arange(len(y_N)), [best])
        _tell(progress, done, done + 1)
        return candidate, accuracies

    def _splits(self, y_N: Index) -> list[Split]:
        if self.folds is not None:
            return folds_of(y_N, self.folds, self.seed)
        return hold_out(y_N, self.held_out, self.seed)


def _correct(probe: LinearProbe, x_ND: NDArray[Any], y_N: Index, index: Index) -> int:
    parts = (index[part] for part in chunks(len(index), x_ND.shape[1]))
    return sum(int((probe.scores(x_ND[part]).argmax(1) == y_N[part]).sum()) for part in parts)


def _tell(progress: Progress | None, done: int, total: int) -> int:
    if progress is not None:
        progress(done + 1, total)
    return done + 1
