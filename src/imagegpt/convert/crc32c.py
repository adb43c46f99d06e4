"""CRC32C by numpy alone: the checksum of TensorFlow's checkpoints, at gigabytes a second.

The checksum (RFC 3720, appendix B.4) is the rest of the message, read as a polynomial over GF(2), modulo

    P = x^32 + x^28 + x^27 + x^26 + x^25 + x^23 + x^22 + x^20 + x^19 + x^18 + x^14 + x^13 + x^11 + x^10 + x^9 + x^8
        + x^6 + 1.

P divides S = x^6777 + x^484 + x^100 + 1, and so it divides S with all exponents doubled as often as one likes, which is
a square of a square ... of S. So what stands at the front of a long message may be added (XOR) at three places further
on and then be forgotten: the rest stays the same. That shortens a message of any length to 6777 bytes, by three XORs of
long arrays. The rest of these is the sum of the rests of their bits, which are in a table.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

# S, the sparse multiple of P whose two highest exponents are furthest apart among those of degree below 8000.
HIGHEST, *LOWER = 6777, 484, 100, 0
REVERSED = 0x82F63B78  # P without x^32, the lowest exponent first: bytes are read from their lowest bit
UNIT = 16  # bytes that an exponent of S counts for, in long messages; a power of two
PIECE = 1 << 20  # bytes of a message that are copied at once; at least four
_MASK_ADDED = 0xA282EAD8


def crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """The CRC32C of bytes.

    Args:
        data: bytes, or a uint8 array of one dimension, which may be mapped from a file: a megabyte is copied at a time.
    """
    message = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray, memoryview)) else data
    is_long = len(message) > HIGHEST
    if is_long:
        message = _shortened(message)
    # By the rule 32 zeros follow, and the first 32 bits of all that are turned; of a long message they are already.
    padded = np.zeros(len(message) + 4, np.uint8)
    padded[:-4] = message
    if not is_long:
        padded[:4] ^= 255
    bits = np.unpackbits(padded, bitorder="little").astype(bool)
    return int(np.bitwise_xor.reduce(_powers()[-len(bits) :][bits], initial=np.uint32(0))) ^ 0xFFFFFFFF


@cache
def _powers() -> NDArray[np.uint32]:
    """The rests of x^n modulo P for the bits of the longest message that is not shortened, down to x^0."""
    power, powers = 1 << 31, []
    for _ in range(8 * (HIGHEST + 4)):
        powers.append(power)
        power = power >> 1 ^ (REVERSED if power & 1 else 0)
    return np.array(powers[::-1], np.uint32)


def masked(crc: int) -> int:
    """A CRC as it is stored: turned by 15 bits, plus a constant, so that a CRC of CRCs is no special case."""
    return ((crc >> 15 | crc << 17) + _MASK_ADDED) & 0xFFFFFFFF


def _shortened(message: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most `HIGHEST` bytes with the same rest modulo P; the register's start is added to the first four."""
    buffer = np.empty(min(len(message), HIGHEST * UNIT + PIECE), np.uint8)
    held = 0
    for start in range(0, len(message), PIECE):
        piece = message[start : start + PIECE]
        buffer[held : held + len(piece)] = piece
        if start == 0:
            buffer[:4] ^= 255
        held += len(piece)
        folded = _fold(buffer[:held], UNIT)
        buffer[: held - folded] = buffer[folded:held].copy()
        held -= folded
    rest = buffer[:held]
    return rest[_fold(rest, 1) :]


def _fold(message: NDArray[np.uint8], unit: int) -> int:
    """Add the front of a message further on, in place, until the rest is short; how many bytes may be forgotten."""
    step = (HIGHEST - LOWER[0]) * unit
    start, end = 0, len(message) - HIGHEST * unit
    while start < end:
        front = message[start : min(start + step, end)]
        for exponent in LOWER:
            to = start + (HIGHEST - exponent) * unit
            message[to : to + len(front)] ^= front
        start += len(front)
    return start
