"""CRC32C: published values, a slow reference, and the polynomial that makes it fast."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.convert import crc32c as fast
from reference.checksum import POLYNOMIAL
from reference.checksum import crc32c as slow

# RFC 3720, appendix B.4; the last is the check value of the catalogue of CRCs.
PUBLISHED = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (
        bytes.fromhex("01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018")
        + bytes.fromhex("28000000 00000000 02000000 00000000"),
        0xD9963A56,
    ),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


def message(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def table_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


TABLE = [table_of(byte) for byte in range(256)]


def by_table(data: np.ndarray) -> int:
    """Byte by byte, as everybody does it."""
    register = 0xFFFFFFFF
    for byte in data.tolist():
        register = TABLE[(register ^ byte) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "value"), PUBLISHED)
def test_published_values(data, value):
    assert fast.crc32c(data) == slow(data) == value
    assert fast.crc32c(np.frombuffer(data, np.uint8)) == value


@given(st.binary(max_size=200))
def test_short_messages_equal_the_reference(data):
    assert fast.crc32c(data) == slow(data)


def test_the_long_polynomial_is_a_multiple_of_the_short_one():
    rest = sum(1 << exponent for exponent in (fast.HIGHEST, *fast.LOWER))
    while rest.bit_length() >= POLYNOMIAL.bit_length():
        rest ^= POLYNOMIAL << rest.bit_length() - POLYNOMIAL.bit_length()
    assert rest == 0


@pytest.mark.parametrize("size", [6776, 6777, 6778, 13069, 13071, 20_000])
def test_messages_around_the_long_polynomial_equal_the_reference(size):
    data = message(size)
    assert fast.crc32c(data) == slow(data.tobytes()) == by_table(data)


@pytest.mark.parametrize(("unit", "piece"), [(1, 64), (1, 1000), (2, 7000), (4, 30_000), (16, 1 << 20)])
@pytest.mark.parametrize("size", [6778, 14_000, 40_001])
def test_however_it_is_cut(monkeypatch, unit, piece, size):
    monkeypatch.setattr(fast, "UNIT", unit)
    monkeypatch.setattr(fast, "PIECE", piece)
    data = message(size)
    assert fast.crc32c(data) == by_table(data)


def test_a_message_of_several_pieces():
    data = message(2 * fast.PIECE + 12_345)
    assert fast.crc32c(data) == by_table(data)


def test_a_message_is_not_changed_and_may_be_read_only():
    data = message(300_000)
    before = data.copy()
    data.flags.writeable = False
    fast.crc32c(data)
    np.testing.assert_array_equal(data, before)


def test_a_flipped_bit_anywhere_in_a_long_message_is_noticed():
    data = message(500_000)
    value = fast.crc32c(data)
    for place in np.random.default_rng(0).integers(0, len(data), 60):
        data[place] ^= 1 << int(place) % 8
        assert fast.crc32c(data) != value
        data[place] ^= 1 << int(place) % 8
    assert fast.crc32c(data) == value


@given(st.integers(0, 2**32 - 1))
def test_a_mask_can_be_taken_off(crc):
    turned = (fast.masked(crc) - 0xA282EAD8) % 2**32
    assert (turned << 15 | turned >> 17) % 2**32 == crc
