"""Unpack what Snappy has packed (google/snappy, format_description.txt): small blocks, byte by byte."""

from __future__ import annotations

from imagegpt.convert.wire import read_varint

_MOST_TIMES = 32  # a copy of 64 bytes takes three: nothing can grow more


def unpack(data: bytes) -> bytes:
    """The content of one packed block.

    Raises:
        ValueError: it is damaged.
    """
    size, at = read_varint(data, 0)
    if size > _MOST_TIMES * len(data):
        raise ValueError("a packed block claims to hold more than it can")
    content = bytearray()
    while at < len(data):
        at = _literal(content, data, at) if data[at] & 3 == 0 else _copy(content, data, at)
        if len(content) > size:
            break
    if len(content) != size:
        raise ValueError("a packed block does not hold what it claims")
    return bytes(content)


def _literal(content: bytearray, data: bytes, at: int) -> int:
    """Append bytes as they are; lengths above 60 stand in one to four bytes behind the tag."""
    length, at = (data[at] >> 2) + 1, at + 1
    if length > 60:
        width = length - 60
        length, at = int.from_bytes(_take(data, at, width), "little") + 1, at + width
    content += _take(data, at, length)
    return at + length


def _copy(content: bytearray, data: bytes, at: int) -> int:
    """Append bytes that were there before; what is appended may be read again by the same copy."""
    tag, at = data[at], at + 1
    kind = tag & 3
    width = (0, 1, 2, 4)[kind]
    back = int.from_bytes(_take(data, at, width), "little")
    length = (tag >> 2) + 1
    if kind == 1:
        back, length = back | tag >> 5 << 8, (tag >> 2 & 7) + 4
    if not 0 < back <= len(content):
        raise ValueError("a packed block refers to what is not there")
    start = len(content) - back
    repeated = bytes(content[start : start + length])
    content += (repeated * (length // len(repeated) + 1))[:length]
    return at + width


def _take(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise ValueError("a packed block is cut off")
    return data[at : at + count]
