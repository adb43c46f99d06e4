"""Range coding with Python's whole numbers: a decoder of constriction's words, and arithmetic coding by fractions.

Slow and obvious. The decoder was written from the description of a range coder with words of 32 bits and a state of 64
(Martin 1979; Bamler 2022), and takes the frequencies as they are: if it decodes what constriction has encoded, then
constriction has used the same frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, log2

MASK = (1 << 64) - 1


def decode_words(words: Sequence[int], frequencies: Sequence[Sequence[int]], bits: int = 24) -> list[int]:
    """One symbol for each row of frequencies, which sum to 2 ** bits."""
    padded = [*map(int, words), *[0] * (2 * len(frequencies) + 4)]
    lower, width, point, at = 0, MASK, padded[0] << 32 | padded[1], 2
    found = []
    for row in frequencies:
        assert sum(row) == 1 << bits
        unit = width >> bits
        symbol, below = 0, 0
        while (point - lower & MASK) // unit >= below + row[symbol]:
            below += row[symbol]
            symbol += 1
        found.append(symbol)
        lower, width = lower + unit * below & MASK, unit * row[symbol]
        if width >> 32 == 0:
            lower, width, point = lower << 32 & MASK, width << 32, (point << 32 & MASK) | padded[at]
            at += 1
    return found


def encode_fraction(symbols: Sequence[int], frequencies: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Arithmetic coding without any rounding: a number and how many binary places of it name the message.

    The interval of a message is as wide as the product of its symbols' shares; a number of ceil(-log2 width) + 1 places
    lies in it with all that begin like it.
    """
    low, width = Fraction(0), Fraction(1)
    for symbol, row in zip(symbols, frequencies, strict=True):
        total = sum(row)
        low += width * Fraction(sum(row[:symbol]), total)
        width *= Fraction(row[symbol], total)
    places = ceil(-log2(width)) + 1
    return ceil(low * 2**places), places


def decode_fraction(number: int, places: int, frequencies: Sequence[Sequence[int]]) -> list[int]:
    """What `encode_fraction` encoded."""
    point, found = Fraction(number, 2**places), []
    for row in frequencies:
        total, below, symbol = sum(row), 0, 0
        while point >= Fraction(below + row[symbol], total):
            below += row[symbol]
            symbol += 1
        found.append(symbol)
        point = (point - Fraction(below, total)) / Fraction(row[symbol], total)
    return found


def ideal_bits(symbols: Sequence[int], frequencies: Sequence[Sequence[int]]) -> float:
    """The information of a message (Shannon 1948)."""
    return sum(-log2(row[symbol] / sum(row)) for symbol, row in zip(symbols, frequencies, strict=True))
