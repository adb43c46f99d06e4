"""Numbers and messages as Protocol Buffers write them (protobuf.dev, "Encoding"): as much as a checkpoint has."""

from __future__ import annotations

import struct

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Value = int | bytes


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first.

    Args:
        data: bytes with the number in them.
        at: where it begins.

    Returns:
        The number, below 2^64, and where it ends.

    Raises:
        ValueError: it is cut off, has more than 64 bits, or more bytes than it needs, which no writer makes.
    """
    number = 0
    for count, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << 7 * count
        if byte < 128:
            if number >> 64 or (count and not byte):
                break
            return number, at + count + 1
    raise ValueError("a number in it is cut off or too long")


class Message:
    """The fields of one message, by their numbers.

    Args:
        data: the message.

    Raises:
        ValueError: it is no message, or is cut off.
    """

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[Value]] = {}
        at = 0
        while at < len(data):
            tag, at = read_varint(data, at)
            value, at = _read_value(data, at, tag & 7)
            self._fields.setdefault(tag >> 3, []).append(value)

    def __contains__(self, field: int) -> bool:
        return field in self._fields

    def number(self, field: int, default: int = 0) -> int:
        """A field of type int64, int32, enum or fixed32; the last one counts where there are several."""
        value = self._fields.get(field, [default])[-1]
        if isinstance(value, bytes):
            raise ValueError(f"field {field} of a record is no number")
        return value - (1 << 64) if value >> 63 == 1 else value

    def all(self, field: int) -> list[bytes]:
        """All values of a field that holds texts, bytes or messages."""
        values = self._fields.get(field, [])
        if not all(isinstance(value, bytes) for value in values):
            raise ValueError(f"field {field} of a record is a number")
        return values  # pyright: ignore[reportReturnType]

    def one(self, field: int) -> Message:
        """A field that is a message; an empty one where there is none."""
        return Message(b"".join(self.all(field)))  # by the rule, messages that come in parts are joined


def _read_value(data: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == _VARINT:
        return read_varint(data, at)
    if kind == _BYTES:
        size, at = read_varint(data, at)
    elif kind in (_FIXED64, _FIXED32):
        size = 8 if kind == _FIXED64 else 4
    else:
        raise ValueError("a record in it is of an unknown kind")
    if at + size > len(data):
        raise ValueError("a record in it is cut off")
    value = data[at : at + size]
    if kind == _BYTES:
        return value, at + size
    return struct.unpack("<Q" if kind == _FIXED64 else "<I", value)[0], at + size
