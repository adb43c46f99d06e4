"""Which normal pictures serve for what: a split that the data's size and a seed decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.data.records import Record, Source
from imagegpt.errors import InputError, check_count

COUNTED = 2 / 3  # of what is not held out: the background learns from pictures that the network need not see


class Parts(NamedTuple):
    """Sources that share no record.

    Args:
        background: what the background counts.
        reference: what the methods are fitted to; the background must not know these either, or it would find them
            likelier than normal pictures to come.
        heldout: what thresholds are set by.
    """

    background: Source
    reference: Source
    heldout: Source


def split(source: Source, holdout: float, seed: int) -> Parts:
    """Deal the records out by chance, each part in the source's order.

    Args:
        source: the normal pictures.
        holdout: the part that is held out, above 0 and below 1; of the rest two thirds are the background's.
        seed: decides which record goes where, together with how many there are.

    Raises:
        InputError: no such part, or too few records.
    """
    if not 0 < holdout < 1:
        raise InputError(f"holdout must be a part of the normal pictures, above 0 and below 1, not {holdout}.")
    check_count("seed", seed, 0)
    held = round(holdout * len(source))
    counted = round(COUNTED * (len(source) - held))
    dealt = np.random.default_rng(seed).permutation(len(source))
    parts = np.split(dealt, [held, held + counted])
    if any(not len(part) for part in parts):
        raise InputError(f"{source.path}: {len(source)} normal pictures are too few to be split into three parts.")
    heldout, background, reference = (_some(source, np.sort(part)) for part in parts)
    return Parts(background, reference, heldout)


def _some(source: Source, numbers: NDArray[np.int64]) -> Source:
    """The records of these numbers, which ascend."""

    def records(start: int, stop: int) -> Iterator[Record]:
        wanted = numbers[start:stop]
        first = int(wanted[0])
        chosen = np.zeros(int(wanted[-1]) + 1 - first, bool)
        chosen[wanted - first] = True
        between = source.part(first, int(wanted[-1]) + 1)
        return (record for record, is_chosen in zip(between, chosen, strict=True) if is_chosen)

    return replace(source, length=len(numbers), records=records, ids_NT=None)
