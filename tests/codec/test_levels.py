"""Colours as their own ids: nothing is lost, and the order is that of other files of colours."""

from __future__ import annotations

import numpy as np
import pytest

from imagegpt.codec.levels import COLORS, LevelsCodec

CODEC = LevelsCodec()


def test_every_colour_comes_back():
    """All 2^24, and each is an id of its own."""
    for ids in np.arange(COLORS).reshape(16, 1024, 1024):
        pixels = CODEC.decode(ids)
        assert (pixels.shape, pixels.dtype) == ((1024, 1024, 3), np.uint8)
        np.testing.assert_array_equal(CODEC.encode(pixels), ids)
    assert len(CODEC) == COLORS == 256**3


@pytest.mark.parametrize(
    ("colour", "number"),
    [((0, 0, 0), 0), ((0, 0, 1), 1), ((0, 1, 0), 256), ((1, 0, 0), 65536), ((255, 254, 253), 0xFFFEFD)],
)
def test_an_id_is_written_as_a_colour_in_html(colour, number):
    ids = CODEC.encode(np.array([[colour]], np.uint8))
    assert (ids.dtype, ids.tolist()) == (np.int64, [[number]])
    assert CODEC.decode(number).tolist() == list(colour)


def test_leading_axes_stay():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    assert CODEC.encode(pixels).shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(CODEC.decode(CODEC.encode(pixels)), pixels)
    assert CODEC.decode(CODEC.encode(pixels[:0])).shape == (0, 3, 4, 5, 3)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2, 3)), np.zeros((2, 2, 3), np.int64), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8), 3],
    ids=["floats", "int64", "no channels", "alpha", "number"],
)
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(ValueError, match="uint8 RGB"):
        CODEC.encode(pixels)


@pytest.mark.parametrize(("ids", "words"), [([0, COLORS], f"{COLORS}"), ([-1], "-1"), ([0.5], "whole numbers")])
def test_what_is_no_colour_is_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        CODEC.decode(ids)


def test_it_can_neither_be_kept_nor_looked_at(tmp_path):
    with pytest.raises(NotImplementedError):
        CODEC.store(tmp_path)
    with pytest.raises(NotImplementedError):
        CODEC.picture()
    assert not list(tmp_path.iterdir())
