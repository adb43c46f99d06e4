"""What the index of a TensorFlow checkpoint says: its header and, of each tensor, the type, shape, place and checksum.

Sources: TensorFlow's core/protobuf/tensor_bundle.proto (BundleHeaderProto, BundleEntryProto), framework/types.proto,
tensor_shape.proto, tensor_slice.proto and, for the keys of slices, core/lib/strings/ordered_code.cc.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from imagegpt.convert.wire import Message

# TensorFlow's numbers of types -> numpy's types. bfloat16, texts and others have none.
DTYPES = {
    **{1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1"},
    **{17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8"},
}
VERSION = 1  # of the format, in 2016 and since
MOST_DIMENSIONS, MOST_SHARDS = 32, 99_999  # numpy's limit before 2.0; five digits
MOST_ELEMENTS = 1 << 48
Extents = tuple[tuple[int, int], ...]  # of a slice, for each dimension: start and length; length -1 is all of it


@dataclass(frozen=True)
class Record:
    """One tensor, or one slice of a tensor.

    Args:
        dtype: numpy's name; `None` for a type that numpy lacks.
        shape: of the tensor or of the slice.
        shard, offset, size: where its bytes are; meaningless for a tensor in slices.
        crc: masked CRC32C of its bytes.
        slices: of a tensor in slices.
    """

    dtype: str | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[Extents, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(data: bytes) -> int:
    """The number of shards, from the value of the empty key.

    Raises:
        ValueError: no header, numbers of big-endian machines, or a later format.
    """
    header = Message(data)
    shards, version = header.number(1), header.one(3)
    if header.number(2):
        raise ValueError("its numbers are big-endian, which are not read: save it on another machine")
    if version.number(2) > VERSION:  # what a reader must know at least
        raise ValueError("it is of a later format")
    if not 1 <= shards <= MOST_SHARDS:
        raise ValueError(f"it claims to have {shards} shards")
    return shards


def read_record(data: bytes) -> Record:
    """The value of a tensor's key; a ValueError says that it makes no sense."""
    entry = Message(data)
    shape = _shape(entry.one(2))
    slices = tuple(_extents(Message(part), shape) for part in entry.all(7))
    record = Record(
        dtype=DTYPES.get(entry.number(1)),
        shape=shape,
        shard=entry.number(3),
        offset=entry.number(4),
        size=entry.number(5),
        crc=entry.number(6),
        slices=slices,
    )
    if min(record.shard, record.offset, record.size) < 0:
        raise ValueError("a tensor lies nowhere")
    return record


def _shape(message: Message) -> tuple[int, ...]:
    shape = tuple(Message(dimension).number(1) for dimension in message.all(2))
    known = len(shape) <= MOST_DIMENSIONS and min(shape, default=0) >= 0 and not message.number(3)
    if not known or math.prod(size or 1 for size in shape) > MOST_ELEMENTS:  # numpy's bound, for empty arrays too
        raise ValueError("a tensor has no known shape")
    return shape


def _extents(message: Message, shape: tuple[int, ...]) -> Extents:
    parts = [Message(part) for part in message.all(1)]
    extents = tuple((part.number(1), part.number(2, -1)) for part in parts)
    if len(extents) != len(shape):
        raise ValueError("a slice has other dimensions than its tensor")
    for (start, length), size in zip(extents, shape, strict=True):
        if length == -1 and start == 0:
            continue
        if start < 0 or length < 1 or start + length > size:
            raise ValueError("a slice lies outside of its tensor")
    return extents


def slice_shape(extents: Extents, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a slice of a tensor."""
    return tuple(size if length == -1 else length for (_, length), size in zip(extents, shape, strict=True))


def slice_key(name: bytes, extents: Extents) -> bytes:
    """The key under which a slice is stored: a code in which the order of bytes is that of what they mean."""
    numbers = b"".join(_signed(number) for extent in extents for number in extent)
    return _unsigned(0) + _escape(name) + b"\0\1" + _unsigned(len(extents)) + numbers


def _escape(name: bytes) -> bytes:
    special = {0: b"\0\xff", 255: b"\xff\0"}
    return b"".join(special.get(byte, bytes([byte])) for byte in name)


def _unsigned(number: int) -> bytes:
    """The number of bytes, and the bytes, the highest first."""
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "big")


def _signed(number: int) -> bytes:
    """n bytes for 7 n - 1 bits and the sign; the n highest bits are turned, which tells n and puts signs in order."""
    size = 1
    while not -1 << 7 * size - 1 <= number < 1 << 7 * size - 1:
        size += 1
    turned = (1 << size) - 1 << 7 * size
    return (number & (1 << 8 * size) - 1 ^ turned).to_bytes(size, "big")
