"""The file: short numbers, packed text, the header, and what a foreign, old, cut or damaged file is told."""

from __future__ import annotations

import json
import struct
import zlib
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressing import resealed
from imagegpt.compression.container import (
    CHECKSUM,
    MAGIC,
    MOST_PICTURES,
    MOST_TEXT,
    START,
    VERSION,
    DamagedFile,
    Fields,
    Header,
    pack_short,
    pack_text,
    parse_header,
    read_file,
    unpack_text,
    write_file,
)
from imagegpt.errors import InputError

HEADER = Header(
    *("0" * 16, "nano", "1" * 16, (8, 8), "center", 5, 3, "onnx", "fp32", "cpu", False, "2" * 16, {"numpy": "2.0"})
)
TEXT = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(), lambda inner: st.lists(inner, max_size=4)
)


def block(rows: int, rest: bytes = b"") -> bytes:
    content = pack_short(rows) + rest
    return pack_short(len(content)) + content


@pytest.fixture
def made(tmp_path):
    """Writes a file of batches that hold nothing."""

    def write(*rows, header=HEADER):
        part = tmp_path / "part"
        part.write_bytes(b"".join(block(count, bytes(20)) for count in rows))
        write_file(tmp_path / "a.igpt", header, [part])
        return tmp_path / "a.igpt"

    return write


@given(st.integers(0, 2**60))
def test_short_numbers_come_back(number):
    packed = pack_short(number)
    fields = Fields(packed + b"rest")
    assert fields.short(2**60) == number and fields.rest() == b"rest"
    assert len(packed) == max(1, -(-number.bit_length() // 7))


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80" * 100_000, b"\xff" * 12, pack_short(11)])
def test_short_numbers_that_are_none(content):
    with pytest.raises(DamagedFile):
        Fields(content).short(10)


@given(st.dictionaries(st.text(), TEXT, min_size=1))
def test_text_comes_back(content):
    assert unpack_text(pack_text(content)) == content


def test_nothing_takes_nothing():
    assert pack_text({}) == b"" and unpack_text(b"") == {}


@pytest.mark.parametrize(
    "packed",
    [
        b"no text",
        zlib.compress(b"{"),
        zlib.compress(b'"' + b"a" * MOST_TEXT + b'"'),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b"1" * 6000),
        zlib.compress(b"\xff"),
        zlib.compress(b"{}") + b"more",
        zlib.compress(b"{}")[:-2],
    ],
)
def test_text_that_is_none_or_too_long(packed):
    with pytest.raises(DamagedFile):
        unpack_text(packed)


def test_what_is_written_is_read(made):
    layout = read_file(made(3, 2))
    assert layout.header == HEADER
    assert [rows for _, _, rows in layout.batches] == [3, 2]
    assert [layout.read(number) for number in range(2)] == [pack_short(3) + bytes(20), pack_short(2) + bytes(20)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("count", True),
        ("count", MOST_PICTURES + 1),
        ("rows", 1 << 20),
        ("rows", "3"),
        ("grid", [8]),
        ("grid", [8, -1]),
        ("grid", [8, 10**9]),
        ("grid", 64),
        ("lossless", 1),
        ("model", None),
        ("name", "a\nb"),
        ("device", "\x1b[2J"),
        ("name", "x" * 201),
        ("versions", ["2.0"]),
        ("versions", {"numpy": 2}),
    ],
)
def test_a_header_with_a_value_that_cant_be(field, value):
    with pytest.raises(DamagedFile, match="value that can't be"):
        parse_header(pack_text({**asdict(HEADER), field: value}))


@pytest.mark.parametrize("change", [lambda found: found.pop("rows"), lambda found: found.update(more=1)])
def test_a_header_of_other_fields(change):
    found = asdict(HEADER)
    change(found)
    with pytest.raises(DamagedFile, match="lacks something"):
        parse_header(pack_text(found))
    with pytest.raises(DamagedFile, match="lacks something"):
        parse_header(zlib.compress(json.dumps([1, 2]).encode()))


def told(path) -> str:
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_foreign_files(made, tmp_path):
    for content in (b"", b"PK\x03\x04 and more", MAGIC[:3] + b"x" * 99, b"\x00" * 4000):
        (tmp_path / "b.igpt").write_bytes(content)
        assert "not made by `imagegpt compress`" in told(tmp_path / "b.igpt")
    assert "can't be read" in told(tmp_path / "absent.igpt")
    assert "can't be read" in told(tmp_path)


def test_other_formats(made):
    path = made(3, 2)
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, 8, VERSION + 1)
    path.write_bytes(resealed(bytes(content)))
    assert f"of format {VERSION + 1}, and this imagegpt reads {VERSION}: a newer" in told(path)
    struct.pack_into("<H", content, 8, 0)
    path.write_bytes(content)
    assert "it is damaged" in told(path)


def test_cut_files(made):
    path = made(3, 2)
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        assert "truncated" in told(path)
    path.write_bytes(content + b"x")
    assert "is damaged: it should have" in told(path)


def test_every_flipped_bit_is_noticed(made):
    path = made(3, 2)
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        told(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "checksum is wrong" in told(path)


def test_batches_that_cant_be(made):
    for rows in ((3,), (3, 3), (3, 0, 2), (5,), ()):
        told(made(*rows))
    path = made(3, 2)
    content = path.read_bytes()
    end = len(content) - CHECKSUM
    for place in range(end - 46, end):
        for value in (0, 0x7F, 0x80, 0xFF):
            changed = bytearray(content)
            changed[place] = value
            path.write_bytes(resealed(bytes(changed)))
            with suppress(InputError):
                assert sum(rows for _, _, rows in read_file(path).batches) == 5


def test_a_header_that_is_too_long(made):
    path = made(3, 2, header=replace(HEADER, versions={str(number): str(number**2) for number in range(30_000)}))
    assert "its header has" in told(path)
    assert START.size == 22
