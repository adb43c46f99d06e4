"""Safetensors files, by numpy alone: their headers, and their tensors mapped into memory.

The safetensors library would do, but its numpy face has no bfloat16 and copies each tensor.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


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
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
        end = max((entry.end for entry in entries.values()), default=8 + length)
        if end != size:
            raise ValueError(f"it should have {end} bytes and has {size}")
        return entries
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}.") from None


def _entry(value: dict[str, Any], data: int) -> Entry:
    start, end = value["data_offsets"]
    sizes = [*value["shape"], start, end]
    if not isinstance(value["dtype"], str) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"its header says {value}")
    return Entry(value["dtype"], tuple(value["shape"]), data + start, data + end)


def map_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of one safetensors file as float32.

    float32 stays on the disk until it is read; other float types are converted, so they take memory.

    Raises:
        InputError: the file is damaged, or a tensor is of another type.
    """
    entries = read_header(path)
    content = np.memmap(path, np.uint8, "r") if entries else np.empty(0, np.uint8)
    return {name: _float32(content, entry, f"{path}: {name}") for name, entry in entries.items()}


def _float32(content: NDArray[np.uint8], entry: Entry, name: str) -> NDArray[np.float32]:
    if entry.dtype not in DTYPES:
        raise InputError(f"{name} is of type {entry.dtype}; weights are {', '.join(DTYPES)}.")
    raw = np.asarray(content[entry.start : entry.end])
    if raw.size != np.dtype(DTYPES[entry.dtype]).itemsize * int(np.prod(entry.shape, dtype=np.int64)):
        raise InputError(f"{name} has {raw.size} bytes, which is not {entry.dtype} of shape {entry.shape}.")
    if entry.start % 4:  # old files are not aligned
        raw = raw.copy()
    values = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
