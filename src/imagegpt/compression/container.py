"""The file: what is where in it, and every check that can be made before anything is decoded.

docs/compression.md gives the format byte by byte. Numbers are little-endian; a "short" number has seven bits a byte,
the lowest first, the eighth bit set in all bytes but the last (LEB128).
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from imagegpt.errors import InputError

MAGIC = b"\x89iGPT\r\n\x1a"  # as PNG's: a bit above 127, and line ends that a text transfer would change
VERSION = 1
START = struct.Struct("<8sHIQ")  # magic, version, bytes of the header, bytes of all batches
CHECKSUM = 32  # SHA-256 of all before it
DIGEST = 8  # bytes of what says whether ids or pixels were decoded right
MOST_HEADER, MOST_TEXT = 1 << 16, 1 << 25  # bytes of a header, and of packed text when unpacked
MOST_ROWS = 1 << 10
MOST_TOLD = 200  # characters of a text in the header, which messages repeat
MOST_BATCH = 1 << 31
MOST_PICTURES = 1 << 48
SHORT = 7
READ = 1 << 20


@dataclass(frozen=True)
class Header:
    """What made a file.

    Args:
        model: the model's fingerprint (`imagegpt.checkpoint.fingerprint`).
        name: what the model was called, for messages.
        palette: the fingerprint of its codec.
        grid: (height, width) of ids.
        crop: how pictures came onto the grid; see `imagegpt.codec.pictures.Framing`.
        count: pictures.
        rows: pictures of a batch, at most.
        backend, precision, device: what ran the model.
        lossless: whether the original pixels follow the ids.
        data: the fingerprint of what was compressed.
        versions: name of a package -> its version, for messages.
    """

    model: str
    name: str
    palette: str
    grid: tuple[int, int]
    crop: str
    count: int
    rows: int
    backend: str
    precision: str
    device: str
    lossless: bool
    data: str
    versions: dict[str, str]

    def packed(self) -> bytes:
        """As the file has it: JSON, deflated."""
        return pack_text(asdict(self))


class DamagedFile(Exception):  # noqa: N818 - it says what is the matter
    """What a file says can't be; whoever knows its name makes a sentence of it."""


@dataclass(frozen=True)
class Layout:
    """A file that was checked.

    Args:
        path: where it is.
        header: what made it.
        batches: (first byte, bytes, pictures) of each.
    """

    path: Path
    header: Header
    batches: list[tuple[int, int, int]]

    def read(self, number: int) -> bytes:
        """A batch's bytes."""
        start, length, _ = self.batches[number]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def write_file(path: Path, header: Header, parts: list[Path]) -> None:
    """Write a file of parts that hold batches, each after its length."""
    digest, packed = hashlib.sha256(), header.packed()
    start = START.pack(MAGIC, VERSION, len(packed), sum(part.stat().st_size for part in parts))
    with path.open("wb") as file:
        for piece in chain([start, packed], (piece for part in parts for piece in _pieces(part))):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())


def read_file(path: str | Path) -> Layout:
    """Check a file from end to end, without decoding any of it.

    Raises:
        InputError: it can't be read, is of another kind or of a newer format, is truncated, or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header_bytes, batches_bytes = _read_start(path, file)
            _check_sum(path, file)
            header = parse_header(file.read(header_bytes))
            return Layout(path, header, list(_batches(file, batches_bytes, header)))
    except DamagedFile as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}.") from None


def _read_start(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Bytes of the header and of the batches."""
    start, size = file.read(START.size), path.stat().st_size
    if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
        raise InputError(f"{path} was not made by `imagegpt compress`: it begins like another kind of file.")
    if len(start) < START.size:
        raise InputError(f"{path} is truncated: it ends after {size} bytes.")
    _, version, header_bytes, batches_bytes = START.unpack(start)
    if version != VERSION:
        hint = "a newer imagegpt reads it" if version > VERSION else "it is damaged"
        raise InputError(f"{path} says that it is of format {version}, and this imagegpt reads {VERSION}: {hint}.")
    whole = START.size + header_bytes + batches_bytes + CHECKSUM
    if size < whole:
        raise InputError(f"{path} is truncated: it should have {whole:,} bytes and has {size:,}.")
    if size > whole:
        raise DamagedFile(f"it should have {whole:,} bytes and has {size:,}")
    if header_bytes > MOST_HEADER:
        raise DamagedFile(f"its header has {header_bytes:,} bytes")
    return header_bytes, batches_bytes


def _check_sum(path: Path, file: BinaryIO) -> None:
    """Leaves the file at its header."""
    digest, left = hashlib.sha256(), path.stat().st_size - CHECKSUM
    file.seek(0)
    while left:
        piece = file.read(min(left, READ))
        if not piece:
            raise DamagedFile("it became shorter while it was read")
        digest.update(piece)
        left -= len(piece)
    if file.read(CHECKSUM) != digest.digest():
        raise DamagedFile("its checksum is wrong")
    file.seek(START.size)


def _batches(file: BinaryIO, left: int, header: Header) -> Iterator[tuple[int, int, int]]:
    """Where the batches are, from the place on at which the file is."""
    there, pictures = file.tell(), 0
    end = there + left
    while there < end:
        file.seek(there)
        fields_ = Fields(file.read(32))
        length = fields_.short(MOST_BATCH)
        before = fields_.at
        rows = fields_.short(header.rows)
        if not rows or there + before + length > end or fields_.at - before > length:
            raise DamagedFile(f"its batch at byte {there:,} can't be")
        yield there + before, length, rows
        there, pictures = there + before + length, pictures + rows
    if pictures != header.count:
        raise DamagedFile(f"it holds {pictures:,} pictures, not {header.count:,}")


def parse_header(packed: bytes) -> Header:
    """The header of a file.

    Raises:
        DamagedFile: it is none.
    """
    found = unpack_text(packed)
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(Header)}:
        raise DamagedFile("its header lacks something, or has too much")
    texts = ("model", "name", "palette", "crop", "backend", "precision", "device", "data")
    numbers = {"count": MOST_PICTURES, "rows": MOST_ROWS}
    grid, versions = found["grid"], found["versions"]
    if not (
        all(_is_told(found[name]) for name in texts)
        and all(_is_count(found[name], most) for name, most in numbers.items())
        and isinstance(found["lossless"], bool)
        and isinstance(grid, list)
        and len(grid) == 2
        and all(_is_count(side, MOST_ROWS) for side in grid)
        and isinstance(versions, dict)
        and all(map(_is_told, chain(versions, versions.values())))
    ):
        raise DamagedFile("its header holds a value that can't be")
    return Header(**{**found, "grid": tuple(grid)})


def pack_text(content: Any) -> bytes:
    """JSON, deflated; nothing for nothing."""
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9) if content else b""


def unpack_text(packed: bytes) -> Any:
    """What `pack_text` packed; a `DamagedFile` says that it is nothing of the kind, or would be too long."""
    if not packed:
        return {}
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MOST_TEXT)
        if not unpacker.eof or unpacker.unused_data:
            raise DamagedFile("a text in it has no end")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError):
        raise DamagedFile("a text in it can't be unpacked") from None


def pack_short(number: int) -> bytes:
    """A number of at least 0, seven bits a byte."""
    found = bytearray()
    while number >> SHORT:
        found.append(number & 0x7F | 0x80)
        number >>= SHORT
    return bytes([*found, number])


class Fields:
    """A batch's bytes, read from the front; a `DamagedFile` says that they end too soon."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def short(self, most: int) -> int:
        """The next number; it must not be above `most`."""
        number = shift = 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            if number > most or shift > 64:
                raise DamagedFile(f"it holds the number {number:,} where {most:,} is the most")
            if not byte & 0x80:
                return number
            shift += SHORT

    def take(self, length: int) -> bytes:
        """The next bytes."""
        found = self._content[self.at : self.at + length]
        if len(found) < length:
            raise DamagedFile("a batch ends too soon")
        self.at += length
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._content) - self.at)


def _is_told(value: Any) -> bool:
    """Whether a text can stand in a message."""
    return isinstance(value, str) and len(value) <= MOST_TOLD and value.isprintable()


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(READ):
            yield piece
