"""A sorted table of keys and values in one file: LevelDB's table format, as TensorFlow writes it.

Sources: LevelDB's doc/table_format and table/format.cc; TensorFlow's core/lib/io/table_format.txt says that its tables
are the same without filter blocks. From the front: data blocks, an (empty) block of other blocks, a block with the last
key and the place of each data block, and a footer of 48 bytes: the places of the last two blocks, zeros, a magic
number. Behind each block stand its kind (0 plain, 1 Snappy) and the masked CRC32C of both. A block holds entries, whose
keys leave out what they share with the key before, then the places of the entries that leave out nothing.

The blocks must lie one behind the other from the first byte to the footer, so that each byte is checked by a CRC or by
being where it must be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from imagegpt.convert.crc32c import crc32c, masked
from imagegpt.convert.snappy import unpack
from imagegpt.convert.wire import read_varint
from imagegpt.errors import InputError

FOOTER, MAGIC = 48, 0xDB4775248B80FB57
TRAILER = 5  # bytes behind a block
PLAIN, SNAPPY = 0, 1
MOST_BYTES = 1 << 23  # of a table: one of the large model has about 100 KB
MOST_MEMORY = 1 << 27  # of what is in it: keys that share much, and packed blocks, need more than they take in the file
_OVERHEAD = 128  # bytes of memory of an entry, about
Entry = tuple[bytes, bytes]


def read_table(path: Path) -> list[Entry]:
    """All keys and values of a table, in the order of the keys.

    Args:
        path: the file; it is read whole.

    Raises:
        InputError: it is missing, too large or damaged; the message names it.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, and no more than {MOST_BYTES:,} are read")
        return _entries(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged or no index of a TensorFlow checkpoint: {error}.") from None


def _entries(data: bytes) -> list[Entry]:
    others, index = _footer(data)
    _check_places([others, index], len(data) - FOOTER)
    if any(True for _ in _block(data, *others)):
        raise ValueError("it has blocks of a kind that TensorFlow does not write")
    parts = list(_block(data, *index))
    places = [_place(value, 0)[0] for _, value in parts]
    _check_places(places, others[0], start=0)
    entries, memory, last = [], 0, None
    for (last_key, _), place in zip(parts, places, strict=True):
        for key, value in _block(data, *place):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            last = key
            memory += len(key) + len(value) + _OVERHEAD
            if memory > MOST_MEMORY:
                raise ValueError("it holds more than any checkpoint needs")
            entries.append((key, value))
        if last is None or last > last_key:
            raise ValueError("its keys are not where they should be")
    return entries


def _footer(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """The places of the block of other blocks and of the block of data blocks."""
    if len(data) < FOOTER or data[-8:] != MAGIC.to_bytes(8, "little"):
        raise ValueError("it does not end as one does")
    footer = data[-FOOTER:-8]
    others, at = _place(footer, 0)
    index, at = _place(footer, at)
    if any(footer[at:]):
        raise ValueError("its last bytes make no sense")
    return others, index


def _place(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, without what stands behind it, and where the place ends."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _check_places(places: list[tuple[int, int]], end: int, start: int | None = None) -> None:
    """Refuse blocks that do not lie one behind the other and fill what they should."""
    at = places[0][0] if start is None else start
    for offset, size in places:
        if offset != at:
            raise ValueError("its blocks are not where they should be")
        at = offset + size + TRAILER
    if at != end:
        raise ValueError("its blocks do not fill the file")


def _block(data: bytes, offset: int, size: int) -> Iterator[Entry]:
    """The entries of one block, after its checksum was compared."""
    content, kind = data[offset : offset + size], data[offset + size]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + TRAILER], "little")
    if masked(crc32c(data[offset : offset + size + 1])) != stored:
        raise ValueError(f"the checksum of the {size} bytes from {offset} on is wrong")
    if kind not in (PLAIN, SNAPPY):
        raise ValueError(f"a block is packed in an unknown way ({kind})")
    return _block_entries(unpack(content) if kind == SNAPPY else content)


def _block_entries(content: bytes) -> Iterator[Entry]:
    if len(content) < 4:
        raise ValueError("a block is cut off")
    (restarts,) = struct.unpack("<I", content[-4:])
    end = len(content) - 4 * (restarts + 1)
    if end < 0:
        raise ValueError("a block is cut off")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(content, at)
        own, at = read_varint(content, at)
        size, at = read_varint(content, at)
        if shared > len(key) or at + own + size > end:
            raise ValueError("an entry is cut off")
        key = key[:shared] + content[at : at + own]
        yield key, content[at + own : at + own + size]
        at += own + size
