"""CRC32C bit by bit, as RFC 3720 defines it."""

from __future__ import annotations

POLYNOMIAL = 0x11EDC6F41  # x^32 and the others, the highest first


def crc32c(data: bytes) -> int:
    """The message and 32 zeros as one long polynomial, divided by `POLYNOMIAL`; bits of a byte from the lowest."""
    bits = [byte >> place & 1 for byte in data for place in range(8)] + [0] * 32
    for place in range(32):
        bits[place] ^= 1
    rest = 0
    for bit in bits:
        rest = rest << 1 | bit
        if rest >> 32:
            rest ^= POLYNOMIAL
    return int(f"{rest:032b}"[::-1], 2) ^ 0xFFFFFFFF
