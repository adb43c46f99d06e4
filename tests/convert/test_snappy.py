"""Snappy: what Google's library packs, streams made by hand, and damage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import varint
from imagegpt.convert.snappy import unpack

REPEATING = st.lists(st.sampled_from([b"model/h0/", b"attn", b"\0" * 70, b"x"]), max_size=60).map(b"".join)


def packed(data: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(data, codec="snappy", asbytes=True)


@given(st.one_of(st.binary(max_size=300), REPEATING))
def test_what_the_library_packs(data):
    assert unpack(packed(data)) == data


@pytest.mark.parametrize("size", [60, 61, 256, 257, 65_536, 70_000])
def test_long_literals(size):
    data = bytes(number * 7919 % 251 for number in range(size))
    assert unpack(packed(data)) == data
    lengths = {1: size - 1 < 256, 2: size - 1 < 65536, 3: True, 4: True}
    for width in [width for width, fits in lengths.items() if fits]:
        stream = bytes([59 + width << 2]) + (size - 1).to_bytes(width, "little") + data
        assert unpack(varint(size) + stream) == data


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"\x07" + b"\x08xab" + b"\x01\x02", b"xababab"),  # the description's own example: back 2, length 4
        (b"\x07" + b"\x08xab" + b"\x0e\x02\x00", b"xababab"),
        (b"\x07" + b"\x08xab" + b"\x0f\x02\x00\x00\x00", b"xababab"),
        (b"\x41" + b"\x00z" + b"\xfe\x01\x00", b"z" * 65),
        (b"\x00", b""),
    ],
)
def test_copies_of_each_width(stream, data):
    assert unpack(stream) == data


def test_a_copy_from_far_back():
    data = bytes(range(256)) * 6
    stream = varint(1540) + b"\xf4\xff\x05" + data + bytes([0x01 | 0x05 << 5, 0xDC])  # back 0x5dc = 1500
    assert unpack(stream) == data + data[36:40]


@pytest.mark.parametrize(
    "stream",
    [
        *(b"", b"\x05", b"\x03\x08xa", b"\x02\x08xab", b"\x04\x08xab", b"\x07\x08xab\x01\x04", b"\x07\x08xab\x01\x00"),
        *(b"\x07\x08xab\x0e\x02", b"\xff\xff\xff\xff\x0f\x08xab", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
        b"\x03\xfc\xff\xff\xff\xff",
    ],
)
def test_damage(stream):
    with pytest.raises(ValueError, match=r"packed block|number in it"):
        unpack(stream)


@given(st.binary(max_size=60))
def test_any_bytes_are_unpacked_or_refused(stream):
    with contextlib.suppress(ValueError):
        assert len(unpack(stream)) <= 32 * len(stream)
