"""Sources and their records: what every kind of DATA becomes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.pictures import OnError, Picture, Reading, read_picture
from imagegpt.errors import InputError, check_count

Label: TypeAlias = "int | float | Sequence[Any]"


@dataclass(frozen=True)
class Record:
    """One entry of a source, its picture not yet read.

    Args:
        name: says which one it is, in messages.
        picture: a path, the bytes of a file, or an array.
        label: number of its class, or what else it is labelled with.
        ids: (T,), in the place of a picture.
    """

    name: str
    picture: Picture | None = None
    label: Label | None = None
    ids: NDArray[Any] | None = None


@dataclass(frozen=True)
class Tokens:
    """What made the ids of a source that holds ids.

    Args:
        codec: its fingerprint.
        grid: (height, width) of ids.
        entries: by which `imagegpt.codec.stored.read_codec` finds the codec itself in the source's folder; none where
            the source does not hold it.
        checksums: name of a file -> hex digest (SHA-256) of its bytes; `None` where the source has none.
    """

    codec: str
    grid: tuple[int, int]
    # Not compared: the fingerprint stands for the codec.
    entries: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    checksums: Mapping[str, str] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Source:
    """Many pictures, or the ids of many, in an order that stays.

    Args:
        path: where they are, as it was given.
        length: how many.
        records: makes an iterator over those from a start to a stop, which begins without reading what is before.
        labelled: whether its records have labels.
        classes: names of the classes, by label; empty where there are none.
        tokens: what made the ids; `None` where there are pictures.
        ids_NT: all the ids, mapped into memory, where the source holds ids; `length` may be less.
    """

    path: str
    length: int
    records: Callable[[int, int], Iterator[Record]]
    labelled: bool = False
    classes: tuple[str, ...] = ()
    tokens: Tokens | None = None
    ids_NT: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Record]:
        return self.part()

    def part(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """The records from number `start` to before `stop`, or to the end.

        Raises:
            InputError: `start` is below 0.
        """
        check_count("start", start, 0)
        stop = self.length if stop is None else min(stop, self.length)
        return self.records(start, stop) if start < stop else iter(())

    def fingerprint(self) -> str:
        """A hex digest of the content: of labels, names of classes, and bytes of pictures or ids, in their order.

        It reads everything, once, and depends neither on where the data lies nor on which kind of DATA holds it.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        made_by = [self.tokens.codec, *self.tokens.grid] if self.tokens else None
        _add(digest, json.dumps([self.length, self.classes, made_by]).encode())
        for record in self:
            _add(digest, repr(record.label).encode())
            _add(digest, _content(record))
        return digest.hexdigest()[:16]


def read_records(
    source: Source, on_error: OnError = "raise", start: int = 0, stop: int | None = None
) -> Iterator[tuple[Record, Image.Image | str]]:
    """Read a source's pictures one after another.

    Args:
        source: what to read.
        on_error: "raise" stops at the first bad picture; "skip" gives its reason in the picture's place.
        start, stop: numbers of the first record and of the one after the last; default: all.

    Returns:
        Of each record an RGB image, or, with "skip", the sentence that says why there is none.

    Raises:
        InputError: the source holds ids; or, with "raise", a bad picture, named.
    """
    if source.tokens:
        raise InputError(f"{source.path} holds ids, not pictures; give the pictures that they were made from.")
    return ((record, read_record(record, on_error)) for record in source.part(start, stop))


def read_record(record: Record, on_error: OnError = "raise", how: Reading | None = None) -> Image.Image | str:
    """A record's picture in RGB, or as `how` says; see `read_records`."""
    try:
        return read_picture(record.picture, how)
    except InputError as error:
        told = str(error) if record.name in str(error) else f"{record.name}: {error}"
        if on_error != "skip":  # a word that is misspelt leaves nothing out
            raise InputError(told) from None
        return told


def are_labels(labels: NDArray[Any], count: int) -> bool:
    """Whether an array can be the labels of so many records: a number each, or several."""
    return labels.dtype.kind in "biuf" and labels.ndim in (1, 2) and len(labels) == count


def label_array(labels: Sequence[Label | None], numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
    """Labels of records as an array: int64, or float64 where they are no whole numbers; (N,), or (N, n) for n each.

    Args:
        labels: one of each record.
        numbers: of the records, for messages.

    Raises:
        InputError: a record has no label, or they differ in how many numbers they are.
    """
    missing = [number for number, label in zip(numbers, labels, strict=True) if label is None]
    if missing:
        raise InputError(f"Record {missing[0]} has no label, and others have; give all of them labels, or none.")
    try:
        array = np.asarray(labels)
    except ValueError:  # numpy's words for it are about "inhomogeneous shapes"
        raise InputError(f"The labels from record {numbers[0]} on do not all have as many numbers.") from None
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def spans(lengths: Iterable[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where the records from `start` to `stop` lie in files that follow one another.

    Args:
        lengths: how many records each file has.
        start, stop: numbers among all records.

    Yields:
        Number of a file, and the first record and the one after the last within it.
    """
    before = 0
    for number, length in enumerate(lengths):
        first, last = max(start - before, 0), min(stop - before, length)
        if first < last:
            yield number, first, last
        before += length


def _add(digest: Any, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts are the same bytes
    digest.update(part)


def _content(record: Record) -> bytes:
    held = record.picture if record.ids is None else record.ids
    if isinstance(held, (str, os.PathLike)):
        # A file that can't be read is one without content: whoever reads the picture says so.
        with suppress(OSError):
            return Path(held).read_bytes() if Path(held).is_file() else b""
        return b""
    if isinstance(held, bytes):
        return held
    array = np.asarray(held)
    return f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()


def source_of(pictures: list[Picture]) -> Source:
    """Pictures in memory, or paths, as a source."""
    if not pictures:
        raise InputError("No picture was given.")

    def records(start: int, stop: int) -> Iterator[Record]:
        for number in range(start, stop):
            picture = pictures[number]
            named = isinstance(picture, (str, os.PathLike))
            yield Record(str(picture) if named else f"Picture {number}", picture)

    return Source("the pictures", len(pictures), records)
