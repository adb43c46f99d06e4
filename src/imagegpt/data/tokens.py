"""Tokenised data sets: a folder of ids that a codec made of pictures once.

`meta.json` holds `codec` (its fingerprint), `grid` ([height, width] of ids), `count` and `classes` (names, perhaps
none); `ids.npy` (count, T) uint16; `labels.npy`, if there are labels, has one row for each picture. What
`imagegpt.tokenization` writes has in `meta.json` also the codec itself, such as the colours of a palette, or the name
of the folder beside it in which a network lies, and `checksums` of the other two files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.codec import Codec
from imagegpt.codec.stored import entries_of, read_codec
from imagegpt.data.records import Record, Source, Tokens, are_labels
from imagegpt.errors import InputError, reason

META, IDS, LABELS = "meta.json", "ids.npy", "labels.npy"
DIGEST = re.compile("[0-9a-f]{64}")


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


def verify(folder: str | Path) -> bool:
    """Compare the files of a tokenised data set with what its `meta.json` says of them; everything is read once.

    Returns:
        Whether there are checksums: a folder that another program wrote may have none.

    Raises:
        InputError: a file is not what was written; the message names it.
    """
    folder = Path(folder)
    tokens = _read_meta(folder / META)[0]
    checksums = tokens.checksums
    if checksums is None:
        return False
    if tokens.entries:
        stored_codec(tokens, folder)
    for name in (IDS, LABELS):
        path = folder / name
        if name in checksums or path.exists():
            _verify(path, checksums.get(name))
    return True


def stored_codec(tokens: Tokens, folder: str | Path) -> Codec:
    """The codec that is kept with ids, which made them.

    Args:
        tokens: with entries that say where it is.
        folder: of the data set.

    Raises:
        InputError: it is damaged, or another one.
    """
    try:
        codec = read_codec(tokens.entries, Path(folder))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder} holds ids, and their codec can't be used: {reason(error)}") from None
    if codec.fingerprint != tokens.codec:
        raise InputError(
            f"{folder} holds ids of the codec {tokens.codec}, and beside them another, {codec.fingerprint}; make them "
            "again."
        )
    return codec


def _verify(path: Path, digest: str | None) -> None:
    if digest is None:
        raise InputError(f"{path} is there, and {META} has no checksum of it; make the data set again.")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None
    if found != digest:
        raise InputError(f"{path} is damaged: its bytes are not those of the checksum in {META}; make it again.")


def _read_meta(path: Path) -> tuple[Tokens, int, tuple[str, ...]]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        codec, (height, width), count = meta["codec"], meta["grid"], meta["count"]
        classes = tuple(meta.get("classes") or ())
        if not isinstance(codec, str) or not all(isinstance(name, str) for name in classes):
            raise ValueError("codec and classes must be texts")
        if not all(type(number) is int and number > 0 for number in (height, width, count)):
            raise ValueError("grid and count must be whole numbers of at least 1")
        tokens = Tokens(codec, (height, width), entries_of(meta), _checksums(meta))
    except KeyError as key:
        raise InputError(f"{path} has no entry {key}.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} can't be used: {reason(error)}.") from None
    return tokens, count, classes


def _checksums(meta: dict[str, Any]) -> dict[str, str] | None:
    checksums = meta.get("checksums")
    if checksums is None:
        return None
    known = IDS in checksums and checksums.keys() <= {IDS, LABELS}
    if not known or not all(DIGEST.fullmatch(digest) for digest in checksums.values()):
        raise ValueError(f"checksums must be the SHA-256 digests of {IDS} and, if there are labels, of {LABELS}")
    return checksums


def _map(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a memmap's own rows are slow to cut
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} can't be read: {reason(error)}") from None
