"""The rule that makes whole numbers of probabilities, and the coder that must use exactly these."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.compression.coder import DamagedStream, Decoder, Encoder, check_length
from imagegpt.compression.frequencies import (
    FLOOR_PART,
    TOTAL,
    bits,
    floor_of,
    from_logits,
    from_weights,
    least_bits,
    spare_of,
)
from imagegpt.errors import InputError
from reference.range_coding import decode_fraction, decode_words, encode_fraction, ideal_bits

pytest.importorskip("constriction")
VALUES = st.integers(2, 700)
SEEDS = st.integers(0, 2**32 - 1)


def logits_of(seed: int, rows: int, values: int, spread: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, values)) * spread).astype(np.float32)


def by_hand(row: np.ndarray) -> list[int]:
    """The documented rule, value by value."""
    exp = np.exp(row.astype(np.float64) - float(row.max()))
    probabilities = exp / exp.sum()
    floor = max(1, 2**24 // (1024 * len(row)))
    spare = 2**24 - floor * len(row)
    found = [floor + int(p * spare) for p in probabilities.tolist()]
    found[int(np.argmax(found))] += 2**24 - sum(found)
    return found


@given(VALUES, SEEDS, st.sampled_from([0.0, 0.1, 5.0, 1e4]))
def test_logits_become_whole_numbers_by_the_documented_rule(values, seed, spread):
    logits = logits_of(seed, 3, values, spread)
    found = from_logits(logits)
    assert found.dtype == np.int64 and (found.sum(1) == TOTAL).all() and (found >= floor_of(values)).all()
    assert found.tolist() == [by_hand(row) for row in logits]


@given(VALUES, SEEDS)
def test_likelier_ids_never_get_less(values, seed):
    logits = logits_of(seed, 1, values)[0]
    ordered = from_logits(logits[None])[0][np.argsort(logits, kind="stable")]
    assert (np.diff(ordered) >= 0).all()


@given(st.integers(2, 300), SEEDS, st.integers(1, 2**32 - 1))
def test_weights_become_whole_numbers_exactly(values, seed, most):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, most, (4, values), endpoint=True) * (rng.random((4, values)) < 0.3)
    weights[:, rng.integers(values)] += weights.sum(1) == 0
    found = from_weights(weights)
    spare, floor = spare_of(values), floor_of(values)
    for row, got in zip(weights.tolist(), found.tolist(), strict=True):
        expected = [floor + weight * spare // sum(row) for weight in row]
        expected[expected.index(max(expected))] += TOTAL - sum(expected)
        assert got == expected


@pytest.mark.parametrize("values", [2, 3, 16, 512, 4096, 1 << 14, 1 << 16])
def test_the_floor_takes_little_and_is_never_nothing(values):
    assert floor_of(values) >= 1 and values * floor_of(values) <= TOTAL / min(FLOOR_PART, TOTAL / values)
    cost = least_bits(values)
    certain = np.zeros((1, values), np.float32)
    certain[0, 1] = 1e4
    assert 0.0005 < cost < 0.006 and cost == pytest.approx(bits(from_logits(certain), np.array([1])), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad):
    logits = np.zeros((2, 4), np.float32)
    logits[1, 2] = bad
    with pytest.raises(InputError, match="not all finite"):
        from_logits(logits)


@given(VALUES, SEEDS, st.sampled_from([0.01, 1.0, 30.0]))
def test_constriction_uses_exactly_these_frequencies(values, seed, spread):
    """Another decoder, in Python's integers, reads what it wrote: one wrong frequency would put it out of step."""
    frequencies = from_logits(logits_of(seed, 60, values, spread))
    rng = np.random.default_rng(seed)
    symbols = np.where(rng.random(60) < 0.5, frequencies.argmax(1), rng.integers(0, values, 60))
    encoder = Encoder()
    encoder.code(frequencies[:25], symbols[:25])
    encoder.code(frequencies[25:], symbols[25:])
    words = encoder.words()
    assert decode_words(np.frombuffer(words, "<u4").tolist(), frequencies.tolist()) == symbols.tolist()
    decoder = Decoder(words)
    assert np.concatenate([decoder.code(part, None) for part in (frequencies[:31], frequencies[31:])]).tolist() == (
        symbols.tolist()
    )
    ideal = ideal_bits(symbols.tolist(), frequencies.tolist())
    assert bits(frequencies, symbols) == pytest.approx(ideal)
    assert ideal - 1 <= 8 * len(words) <= ideal * (1 + 1e-4) + 64


@given(st.integers(2, 20), SEEDS)
def test_frequencies_are_a_code_by_themselves(values, seed):
    frequencies = from_logits(logits_of(seed, 12, values)).tolist()
    symbols = np.random.default_rng(seed).integers(0, values, 12).tolist()
    number, places = encode_fraction(symbols, frequencies)
    assert places <= ideal_bits(symbols, frequencies) + 2
    assert decode_fraction(number, places, frequencies) == symbols


def test_a_decoder_does_not_run_past_the_end_for_ever():
    frequencies = from_logits(np.tile(np.float32([50, 0, 0, 0]), (1000, 1)))
    for words in (b"", bytes(4), bytes(8)):
        decoder, coded = Decoder(words), 0
        with pytest.raises(DamagedStream, match="too short"):
            while coded < 10**6:
                coded += len(decoder.code(frequencies, None))
        assert coded < 2 * (64 + 64) / least_bits(4)
    with pytest.raises(DamagedStream, match="whole word"):
        Decoder(b"abc")
    with pytest.raises(DamagedStream, match="too short"):
        check_length(bytes(40), 10**7, 512)
    check_length(bytes(40), 10**5, 512)


def test_words_that_no_encoder_makes():
    with pytest.raises(DamagedStream):
        Decoder(b"\xff" * 40).code(from_logits(np.zeros((100, 16), np.float32)), None)
