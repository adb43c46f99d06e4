"""Tokenised data sets: a folder of ids that a codec made of pictures once.

`meta.json` holds `codec` (its fingerprint), `grid` ([height, width] of ids), `count` and `classes` (names, perhaps
none); `ids.npy` (count, T) uint16; `labels.npy`, if there are labels, has one row for each picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.data.records import Record, Source, Tokens, are_labels
from imagegpt.errors import InputError, reason

META, IDS, LABELS = "meta.json", "ids.npy", "labels.npy"


def open_tokens(folder: Path, name: str) -> Source:
    """A tokenised data set, mapped into memory.

    Raises:
        InputError: a file is missing or damaged, or the files don't agree with one another.
    """
    tokens, count, classes = _read_meta(folder / META)
    ids_NT = _map(folder / IDS)
    length = math.prod(tokens.grid)
    if ids_NT.dtype != np.uint16 or ids_NT.shape != (count, length):
        raise InputError(
            f"{folder / IDS} holds {ids_NT.dtype} {ids_NT.shape}; by {META} it should be uint16 {(count, length)}."
        )
    labels = _map(folder / LABELS) if (folder / LABELS).exists() else None
    if labels is not None and not are_labels(labels, count):
        raise InputError(f"{folder / LABELS} holds {labels.dtype} {labels.shape}; it should have {count} numbers.")

    def records(start: int, stop: int) -> Iterator[Record]:
        for number in range(start, stop):
            label = None if labels is None else labels[number].tolist()
            yield Record(f"{name}, row {number}", label=label, ids=ids_NT[number])

    return Source(name, count, records, labels is not None, classes, tokens, ids_NT)


def _read_meta(path: Path) -> tuple[Tokens, int, tuple[str, ...]]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        codec, (height, width), count = meta["codec"], meta["grid"], meta["count"]
        classes = tuple(meta.get("classes") or ())
        if not isinstance(codec, str) or not all(isinstance(name, str) for name in classes):
            raise ValueError("codec and classes must be texts")
        if not all(type(number) is int and number > 0 for number in (height, width, count)):
            raise ValueError("grid and count must be whole numbers of at least 1")
    except KeyError as key:
        raise InputError(f"{path} has no entry {key}.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} can't be used: {reason(error)}.") from None
    return Tokens(codec, (height, width)), count, classes


def _map(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a memmap's own rows are slow to cut
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} can't be read: {reason(error)}") from None
