"""The range coder: symbols and their frequencies to 32-bit words, and back.

Range coding is Martin's (1979) practical form of arithmetic coding: it comes within a few bits of the information of
a message (Shannon 1948), however long that is. The coder itself is the one of `constriction` (Bamler 2022).

Encoder and decoder have one face, `code`: whoever describes a message calls it in one order, with the symbols when
they are known, and gets the symbols back. So both directions run the same code and can't fall out of step.

Shape suffixes: N symbols that are coded together, S values that a symbol may have.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imagegpt.compression.frequencies import bits, least_bits
from imagegpt.errors import MissingExtra

WORD = np.dtype("<u4")
SLACK = 64  # bits that a stream may lack: the coder ends it with as few as make it unambiguous


class DamagedStream(Exception):  # noqa: N818 - it says what is the matter
    """The words are no message of these symbols; the caller says of which file, and what to do."""


class Coder(Protocol):
    """One direction of the range coder."""

    def code(self, frequencies_NS: NDArray[np.int64], known_N: NDArray[Any] | None) -> NDArray[np.int64]:
        """Code the next symbols.

        Args:
            frequencies_NS: of each symbol's values; rows sum to 2^24, none is below 1.
            known_N: the symbols; `None` where they are to be decoded.

        Returns:
            The symbols.
        """
        ...


class Encoder:
    """Symbols to words; see `Coder`.

    Raises:
        MissingExtra: constriction is missing (extra "compress").
    """

    def __init__(self) -> None:
        constriction = _constriction()
        self._encoder = constriction.stream.queue.RangeEncoder()
        self._family = constriction.stream.model.Categorical(perfect=False)

    def code(self, frequencies_NS: NDArray[np.int64], known_N: NDArray[Any] | None) -> NDArray[np.int64]:
        """Append symbols, which must be known."""
        assert known_N is not None
        self._encoder.encode(known_N.astype(np.int32), self._family, _as_constriction_wants(frequencies_NS))
        return known_N.astype(np.int64)

    def words(self) -> bytes:
        """The message so far, as little-endian 32-bit words."""
        return self._encoder.get_compressed().astype(WORD).tobytes()


class Decoder:
    """Words to symbols; see `Coder`.

    Args:
        words: made by an `Encoder`.

    Raises:
        MissingExtra: constriction is missing (extra "compress").
        DamagedStream: no whole words; or, when symbols are decoded, words that no encoder makes, or too few of them.
    """

    def __init__(self, words: bytes) -> None:
        constriction = _constriction()
        if len(words) % WORD.itemsize:
            raise DamagedStream("it does not end with a whole word")
        self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, WORD).astype(np.uint32))
        self._family = constriction.stream.model.Categorical(perfect=False)
        self._left = 8 * len(words) + SLACK

    def code(self, frequencies_NS: NDArray[np.int64], known_N: NDArray[Any] | None) -> NDArray[np.int64]:
        """The next symbols."""
        try:
            found_N = self._decoder.decode(self._family, _as_constriction_wants(frequencies_NS)).astype(np.int64)
        except AssertionError:  # what constriction raises
            raise DamagedStream("no encoder makes such words") from None
        self._left -= bits(frequencies_NS, found_N)
        if self._left < 0:  # past its end a decoder reads zeros for ever
            raise DamagedStream("it is too short for what it must hold")
        return found_N


def check_length(words: bytes, symbols: int, values: int) -> None:
    """Refuse, before memory is taken for them, more symbols than words can hold.

    Args:
        words: of a message.
        symbols: how many it is said to hold.
        values: that each may have.

    Raises:
        DamagedStream: they are too many.
    """
    if symbols * least_bits(values) > 8 * len(words) + SLACK:
        raise DamagedStream("it is too short for what it must hold")


def _as_constriction_wants(frequencies_NS: NDArray[np.int64]) -> NDArray[np.float32]:
    """Numbers of which constriction makes exactly these frequencies.

    Its model (perfect=False) gives each value 1 of 2^24 and shares out the rest by the numbers it is given: to what
    lies below value s it gives floor(scale * sum of the numbers before s), scale being the rest over the sum of all.
    Of frequencies less 1 that sum is the rest itself, so the scale is 1; and all partial sums are whole numbers below
    2^24, which float32 holds exactly. A test decodes its words by another coder, written with Python's integers.
    """
    return (frequencies_NS - 1).astype(np.float32)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise MissingExtra("Compression", "constriction", "compress") from None
    return constriction
