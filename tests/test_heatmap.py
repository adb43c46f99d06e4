"""Heat maps: colours whose steps look alike, and a scale that says what they mean."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagegpt import heatmap
from imagegpt.heatmap import draw_heatmap, draw_scale, oklab_to_srgb, uniform_colors


def srgb_to_oklab(rgb):
    """The other way round, by Ottosson's forward matrices."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T


def test_equal_steps_look_equal():
    """In OKLab, for all but rounding to eight bits: four steps apart, so that this is small."""
    lab = srgb_to_oklab(uniform_colors() / 255)
    steps = np.linalg.norm(lab[4:] - lab[:-4], axis=1)
    assert steps.std() / steps.mean() < 0.08


def test_more_is_always_lighter():
    lightness = srgb_to_oklab(uniform_colors() / 255)[:, 0]
    assert (np.diff(lightness[::4]) > 0).all()
    assert lightness[0] < 0.2
    assert lightness[-1] > 0.9


def test_no_colour_is_out_of_reach_of_a_screen():
    """Clipping would make steps unequal: what the map goes through lies inside."""
    lab = srgb_to_oklab(uniform_colors() / 255)
    linear = (lab @ heatmap.TO_LMS.T) ** 3 @ heatmap.TO_RGB.T
    assert linear.min() > -0.01
    assert linear.max() < 1.01


def test_the_two_ways_are_inverse():
    rgb = np.random.default_rng(0).random((100, 3))
    np.testing.assert_allclose(oklab_to_srgb(srgb_to_oklab(rgb)), rgb, atol=1e-4)


def test_numbers_become_squares_of_their_colour():
    image = draw_heatmap(np.array([[0.0, 3.0], [6.0, 99.0]]), 6)
    assert image.size == (128, 128)
    colors = uniform_colors()
    for (x, y), number in {(0, 0): 0, (127, 0): 128, (0, 127): 255, (127, 127): 255}.items():
        assert image.getpixel((x, y)) == tuple(colors[number])
    assert len(image.crop((0, 0, 64, 64)).getcolors()) == 1


@pytest.mark.parametrize("top", [1.0, 6.238])
def test_the_scale_goes_from_nothing_to_the_top(top):
    scale = draw_scale(top, "nats", 100)
    assert scale.height == 100
    assert scale.getpixel((3, 99)) == tuple(uniform_colors()[0])
    assert scale.getpixel((3, 0)) == tuple(uniform_colors()[-1])
    assert np.array(scale.convert("L"))[:, heatmap.BAR + 2 :].min() < 200  # there are words beside it
    assert isinstance(scale, Image.Image)
