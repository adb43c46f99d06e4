"""TensorFlow's checkpoints, version 2, without TensorFlow: an index, and shards with the tensors' bytes.

`model.ckpt-STEP.index` says where in `model.ckpt-STEP.data-00000-of-00002` and so on each tensor lies. All that it says
is compared with the sizes of the files when a checkpoint is opened; the bytes of a tensor are compared with their
CRC32C when it is read. The names of the shards follow from that of the index and from numbers: nothing that is read
names a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.convert.crc32c import crc32c, masked
from imagegpt.convert.records import Extents, Record, read_header, read_record, slice_key, slice_shape
from imagegpt.convert.sstable import read_table
from imagegpt.errors import InputError, reason

INDEX = ".index"
MOST_SLICES = 4096  # of a tensor: each is compared with all others


@dataclass(frozen=True)
class Piece:
    """Bytes of a tensor that lie together: all of them, or a slice's."""

    name: str
    record: Record
    extents: Extents = ()


def find_index(source: Path, step: int | None = None) -> Path:
    """The index that a path means.

    Args:
        source: a folder with one, or with one of that step; the file itself; or its path without the ending, as
            TensorFlow has it.
        step: of training, where a folder has several.

    Raises:
        InputError: there is none, or there are several.
    """
    if not os.path.isdir(source):  # unlike Path's methods, those of os.path take any name
        index = source if source.name.endswith(INDEX) else source.with_name(source.name + INDEX)
        if not os.path.isfile(index):
            raise InputError(f"There is no TensorFlow checkpoint {source}: no folder, and no file {index}.")
        if step not in (None, step_of(index)):
            raise InputError(f"{index} is not of step {step}.")
        return index
    found = sorted(path for path in source.glob(f"*{INDEX}") if path.is_file())
    steps = ", ".join(str(step_of(path) or path.name) for path in found)
    if not found:
        raise InputError(f"{source} has no TensorFlow checkpoint: no file that ends in {INDEX}.")
    wanted = [path for path in found if step in (None, step_of(path))]
    if len(wanted) != 1:
        raise InputError(f"{source} has checkpoints of these steps: {steps}; name one of them (--step).")
    return wanted[0]


def step_of(index: Path) -> int | None:
    """The step in the name of an index."""
    match = re.search(rf"-(\d{{1,18}}){re.escape(INDEX)}$", index.name)
    return int(match[1]) if match else None


class Bundle:
    """An open checkpoint.

    Args:
        index: its index file.

    Attributes:
        path: the index.
        files: the index, and the shards that tensors lie in.
        shapes: name -> shape of every tensor.

    Raises:
        InputError: the index is damaged, a shard is missing or too short, or one does not fit the other; the message
            names the file.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        table = read_table(index)
        try:
            self._shards, records, stored = _sorted_out(table)
            self._pieces = {name: list(_pieces(name, record, stored)) for name, record in records.items()}
            if stored:
                raise ValueError("it has slices of no tensor")
        except ValueError as error:
            raise InputError(f"{index} is damaged: {error}.") from None
        self._records = records
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self._check_places()
        shards = {piece.record.shard for pieces in self._pieces.values() for piece in pieces}
        self.files = [index, *(self._shard(shard) for shard in sorted(shards))]
        self.shapes = {name: record.shape for name, record in records.items()}

    def dtype(self, name: str) -> str | None:
        """numpy's name of a tensor's type, little-endian; `None` for a type that numpy lacks."""
        return self._records[name].dtype

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        return sum(piece.record.size for piece in self._pieces[name])

    def check(self, name: str) -> None:
        """Compare a tensor's bytes with their checksums; what numpy has no type for is passed over.

        Raises:
            InputError: they differ; the message names the file.
        """
        if self.dtype(name) is None:  # the checksum of texts is not that of their bytes
            return
        for piece in self._pieces[name]:
            self._bytes(piece)

    def read(self, name: str) -> NDArray[Any]:
        """A tensor, mapped from its file; one in slices is put together in memory.

        Raises:
            InputError: its bytes and their checksum differ, or numpy lacks its type; the message names the file.
        """
        record = self._records[name]
        if record.dtype is None:
            raise InputError(f"{self.path}: {name} is of a type that numpy lacks.")
        if not record.slices:
            return self._bytes(self._pieces[name][0]).view(record.dtype).reshape(record.shape)
        whole = np.empty(record.shape, record.dtype)
        for piece in self._pieces[name]:
            place = tuple(slice(start, None if length < 0 else start + length) for start, length in piece.extents)
            part = self._bytes(piece).view(record.dtype)
            whole[place] = part.reshape(piece.record.shape)
        return whole

    def _bytes(self, piece: Piece) -> NDArray[np.uint8]:
        record = piece.record
        if not record.size:
            return np.empty(0, np.uint8)
        raw = self._map(record.shard)[record.offset : record.offset + record.size]
        if masked(crc32c(raw)) != record.crc:
            raise InputError(f"{self._shard(record.shard)} is damaged: the checksum of {piece.name} is wrong.")
        return raw

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if shard not in self._maps:
            try:
                self._maps[shard] = np.asarray(np.memmap(self._shard(shard), np.uint8, "r"))
            except (OSError, ValueError) as error:  # it may have changed since it was measured
                raise InputError(f"{self._shard(shard)} can't be read: {reason(error)}.") from None
        return self._maps[shard]

    def _shard(self, number: int) -> Path:
        stem = self.path.name.removesuffix(INDEX)
        return self.path.with_name(f"{stem}.data-{number:05}-of-{self._shards:05}")

    def _check_places(self) -> None:
        """Refuse shards that are missing or too short, and tensors that share bytes."""
        pieces = [piece for pieces in self._pieces.values() for piece in pieces]
        pieces.sort(key=lambda piece: (piece.record.shard, piece.record.offset, piece.record.size))
        shard, size, end = -1, 0, 0
        for piece in pieces:
            record = piece.record
            if record.shard != shard:
                shard, size, end = record.shard, self._size_of(record.shard), 0
            if record.offset < end:
                raise InputError(f"{self.path} is damaged: {piece.name} lies where another tensor does.")
            end = record.offset + record.size
            if end > size:
                raise InputError(
                    f"{self._shard(shard)} is cut off, or not this checkpoint's: it has {size:,} bytes, and by "
                    f"{self.path.name} {piece.name} ends at {end:,}."
                )

    def _size_of(self, shard: int) -> int:
        path = self._shard(shard)
        if shard >= self._shards:
            raise InputError(f"{self.path} is damaged: it names shard {shard} of {self._shards}.")
        if not path.is_file():
            raise InputError(f"{path} is missing, in which {self.path.name} says tensors are.")
        return path.stat().st_size


def _sorted_out(table: list[tuple[bytes, bytes]]) -> tuple[int, dict[str, Record], dict[bytes, Record]]:
    """The number of shards, the tensors by their names, and the slices by their keys."""
    if not table or table[0][0]:
        raise ValueError("it has no header")
    shards = read_header(table[0][1])
    records = {key: read_record(value) for key, value in table[1:]}
    names = {_name(key): record for key, record in records.items() if key[0]}
    return shards, names, {key: record for key, record in records.items() if not key[0]}


def _name(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError("a tensor's name is no text") from None


def _pieces(name: str, record: Record, stored: dict[bytes, Record]) -> Iterator[Piece]:
    """A tensor's bytes; its slices are taken out of `stored`."""
    if not record.slices:
        yield _checked(Piece(name, record))
        return
    if len(record.slices) > MOST_SLICES:
        raise ValueError(f"{name} is in more than {MOST_SLICES} slices")
    parts = []
    for extents in record.slices:
        part = stored.pop(slice_key(name.encode(), extents), None)
        if part is None or (part.dtype, part.shape) != (record.dtype, slice_shape(extents, record.shape)):
            raise ValueError(f"a slice of {name} is missing or is another's")
        parts.append(_checked(Piece(name, part, extents)))
    _check_filled(name, record, parts)
    yield from parts


def _checked(piece: Piece) -> Piece:
    record = piece.record
    if record.dtype is not None and record.size != record.elements * np.dtype(record.dtype).itemsize:
        raise ValueError(f"{piece.name} has {record.size} bytes, which is not {record.dtype} of shape {record.shape}")
    return piece


def _check_filled(name: str, record: Record, parts: list[Piece]) -> None:
    """Refuse slices that leave gaps or overlap: they divide the tensor if they have its size and are apart."""
    if sum(part.record.elements for part in parts) != record.elements:
        raise ValueError(f"the slices of {name} do not fill it")
    boxes = np.array([[(s, s + n) for (s, _), n in zip(p.extents, p.record.shape, strict=True)] for p in parts])
    for number in range(len(boxes) - 1):
        later = boxes[number + 1 :]
        apart = (later[..., 0] >= boxes[number, :, 1]) | (later[..., 1] <= boxes[number, :, 0])
        if not apart.any(1).all():
            raise ValueError(f"the slices of {name} overlap")
