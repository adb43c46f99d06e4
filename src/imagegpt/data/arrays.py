"""Pictures as arrays in an .npz file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from imagegpt.data.records import Record, Source, are_labels
from imagegpt.errors import InputError, reason

PICTURES, LABELS = ("images", "x", "data", "arr_0"), ("labels", "y", "label")
# Of a split: as Keras and as MedMNIST name them.
SPLIT_PICTURES, SPLIT_LABELS = ("x_{}", "{}_images"), ("y_{}", "{}_labels")


def open_arrays(path: Path, split: str, name: str, label_column: str | None = None) -> Source:
    """An .npz file of pictures: (N, height, width), (N, height, width, 1) or (N, height, width, 3) uint8.

    What is not compressed is mapped into memory; what is compressed is read whole.

    Raises:
        InputError: it is damaged, or holds no such array.
    """
    held = _names(path)
    there = f"it holds {', '.join(held) or 'nothing'}."
    usual = _usual(SPLIT_PICTURES if split else PICTURES, split)
    wanted = next((entry for entry in usual if entry in held), None)
    if wanted is None:
        raise InputError(f"{name}: {path} holds no array {' or '.join(usual)}; {there}")
    if label_column not in (None, *held):
        raise InputError(f"{path} holds no array {label_column}; {there}")
    usual = [label_column] if label_column else _usual(SPLIT_LABELS if split else LABELS, split)
    labelled_by = next((entry for entry in usual if entry in held), None)
    images = _pictures(path, wanted)
    labels = None if labelled_by is None else _labels(path, labelled_by, len(images))

    def records(start: int, stop: int) -> Iterator[Record]:
        for number in range(start, stop):
            label = None if labels is None else labels[number].tolist()
            yield Record(f"{name}, picture {number}", images[number], label)

    return Source(name, len(images), records, labels is not None)


def _names(path: Path) -> list[str]:
    with _damage_told(path), zipfile.ZipFile(path) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]


def _usual(names: tuple[str, ...], split: str) -> list[str]:
    return [name.format(split) for name in names]


def _pictures(path: Path, name: str) -> NDArray[np.uint8]:
    images = _read(path, name)
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"{path}: {name} is {images.dtype} {images.shape}; pictures are uint8 (N, height, width), with 1 or 3 "
            "channels last if there are any."
        )
    return images


def _labels(path: Path, name: str, count: int) -> NDArray[Any]:
    labels = _read(path, name)
    if not are_labels(labels, count):
        raise InputError(f"{path}: {name} is {labels.dtype} {labels.shape}; there should be {count} labels.")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # as MedMNIST writes them


def _read(path: Path, name: str) -> NDArray[Any]:
    """One array: mapped into memory as it lies in the file, or unpacked."""
    with _damage_told(path), zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as file:
            shape, fortran, dtype = _header(file)
            if dtype.hasobject:
                raise InputError(f"{path}: {name} holds pickled objects, which are not read; save it as numbers.")
            if info.compress_type == zipfile.ZIP_STORED and 0 not in shape:
                start = _start(path, info.header_offset) + file.tell()
                return np.asarray(np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C"))
        return np.load(path, allow_pickle=False)[name]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:  # the third is for the names of structures
        raise ValueError("it holds no array of numbers")
    return readers[version](file)


def _start(path: Path, header: int) -> int:
    """Where an entry's content begins: behind its own header, whose two last fields have a length of their own."""
    with path.open("rb") as file:
        file.seek(header + 26)
        return header + 30 + sum(struct.unpack("<HH", file.read(4)))


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # RuntimeError: it is encrypted, or compressed in a way that Python can't read.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise InputError(f"{path} can't be read as .npz: {reason(error)}") from None
