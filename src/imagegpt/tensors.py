"""Safetensors files, by numpy alone: headers, tensors mapped into memory, and files larger than the memory.

The safetensors library would do, but its numpy face has no bfloat16, copies each tensor, and writes only what is in
memory at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U16": "<u2", "U8": "|u1"}


class Entry(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, and a check that the file is as long as they are.

    Raises:
        InputError: the file is damaged; the message names it.
    """
    return _read(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of one safetensors file; an InputError says that the file is damaged."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
        end = max((entry.end for entry in entries.values()), default=8 + length)
        if end != size:
            raise ValueError(f"it should have {end} bytes and has {size}")
        return entries, metadata
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}.") from None


def _entry(value: dict[str, Any], data: int) -> Entry:
    start, end = value["data_offsets"]
    sizes = [*value["shape"], start, end]
    if not isinstance(value["dtype"], str) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"its header says {value}")
    return Entry(value["dtype"], tuple(value["shape"]), data + start, data + end)


def map_tensors(path: Path, only: Container[str] | None = None) -> dict[str, NDArray[np.float32]]:
    """The tensors of one safetensors file as float32.

    float32 stays on the disk until it is read; other float types are converted, so they take memory.

    Args:
        path: the file.
        only: names of those that are wanted; default: all.

    Raises:
        InputError: the file is damaged, or a tensor is of another type.
    """
    entries = read_header(path)
    content = np.memmap(path, np.uint8, "r") if entries else np.empty(0, np.uint8)
    wanted = {name: entry for name, entry in entries.items() if only is None or name in only}
    return {name: _float32(content, entry, f"{path}: {name}") for name, entry in wanted.items()}


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of one safetensors file in their own types, mapped: they stay on the disk until they are read.

    Raises:
        InputError: the file is damaged, or a tensor is of a type that numpy lacks.
    """
    entries = read_header(path)
    content = np.memmap(path, np.uint8, "r") if entries else np.empty(0, np.uint8)
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype not in STORED:
            raise InputError(f"{path}: {name} is of type {entry.dtype}; only {', '.join(STORED)} can be read.")
        raw, dtype = np.asarray(content[entry.start : entry.end]), np.dtype(STORED[entry.dtype])
        _check_size(raw, entry, dtype, f"{path}: {name}")
        tensors[name] = (raw.copy() if entry.start % dtype.itemsize else raw).view(dtype).reshape(entry.shape)
    return tensors


def write_tensors(
    path: Path,
    entries: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    chunks: Callable[[str], Iterable[NDArray[Any]]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file of which no more than a chunk need be in memory.

    Args:
        path: the file.
        entries: name -> type and shape of each tensor.
        chunks: gives a tensor's rows, by its name, in pieces.
        metadata: texts for the header.
    """
    kinds = {np.dtype(dtype): kind for kind, dtype in STORED.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # The widest types first, so that each tensor begins at a multiple of its numbers' size.
    names = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
    for name in names:
        dtype, shape = entries[name]
        start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for name in names:
            for chunk in chunks(name):
                file.write(np.ascontiguousarray(chunk, entries[name][0]).data)


def _check_size(raw: NDArray[np.uint8], entry: Entry, dtype: np.dtype[Any], name: str) -> None:
    if raw.size != dtype.itemsize * int(np.prod(entry.shape, dtype=np.int64)):
        raise InputError(f"{name} has {raw.size} bytes, which is not {entry.dtype} of shape {entry.shape}.")


def _float32(content: NDArray[np.uint8], entry: Entry, name: str) -> NDArray[np.float32]:
    if entry.dtype not in DTYPES:
        raise InputError(f"{name} is of type {entry.dtype}; weights are {', '.join(DTYPES)}.")
    raw = np.asarray(content[entry.start : entry.end])
    _check_size(raw, entry, np.dtype(DTYPES[entry.dtype]), name)
    if entry.start % 4:  # old files are not aligned
        raw = raw.copy()
    values = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
