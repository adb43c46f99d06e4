"""Sampling pixels, clustering them, and the error of a palette, each against what it must be by its definition."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest

from imagegpt.codec.fit import LUMA, PixelSample, cluster_colors, palette_error
from imagegpt.codec.palette import PaletteCodec
from imagegpt.errors import InputError


def numbered(start: int, stop: int) -> np.ndarray:
    """Pixels that tell their number."""
    numbers = np.arange(start, stop)
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], 1).astype(np.uint8)


def numbers(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(int) @ [1 << 16, 1 << 8, 1]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)


# --- PixelSample


def sampled(parts: list[np.ndarray], size: int, seed: int = 0) -> list[int]:
    sample = PixelSample(size, seed)
    for part in parts:
        sample.add(part)
    return sorted(numbers(sample.pixels).tolist())


def test_few_pixels_are_all_kept():
    assert sampled([numbered(0, 7), numbered(7, 10)], 10) == list(range(10))
    assert sampled([numbered(0, 7)], 10) == list(range(7))
    assert sampled([], 10) == []


def test_of_many_the_number_asked_for_is_kept_and_none_twice():
    kept = sampled([numbered(0, 60), numbered(60, 61), numbered(61, 300)], 50)
    assert len(set(kept)) == 50
    assert set(kept) < set(range(300))


@pytest.mark.parametrize("cuts", [[0, 100], [0, 3, 9, 20, 21, 55, 100], [0, 20, 100], list(range(101))])
def test_every_pixel_is_kept_equally_often(cuts):
    size, rounds = 20, 1500
    counts = np.zeros(100)
    for seed in range(rounds):
        parts = [numbered(start, stop) for start, stop in itertools.pairwise(cuts)]
        counts[sampled(parts, size, seed)] += 1
    # without replacement, the statistic is chi-square of 99 degrees times the part that is left out
    share = size / 100
    statistic = ((counts - rounds * share) ** 2).sum() / (rounds * share * (1 - share))
    assert 55 < statistic < 155  # mean 100, standard deviation 14: four of them to either side


def test_pairs_are_kept_together_as_often_as_chance_has_it():
    rounds = 3000
    both = sum({90, 91} <= set(sampled([numbered(0, 40), numbered(40, 100)], 50, seed)) for seed in range(rounds))
    chance = 50 / 100 * 49 / 99
    assert abs(both - rounds * chance) < 4 * math.sqrt(rounds * chance * (1 - chance))


def test_pictures_of_any_shape_are_offered_pixel_by_pixel():
    assert sampled([numbered(0, 12).reshape(2, 6, 3), numbered(12, 14).reshape(1, 2, 1, 3)], 20) == list(range(14))


def test_a_sample_is_the_same_for_the_same_seed():
    parts = [numbered(0, 500), numbered(500, 900)]
    assert sampled(parts, 30, seed=3) == sampled(parts, 30, seed=3)
    assert sampled(parts, 30, seed=3) != sampled(parts, 30, seed=4)


@pytest.mark.parametrize("size", [0, -1])
def test_a_sample_of_nothing_is_refused(size):
    with pytest.raises(InputError, match="at least one pixel"):
        PixelSample(size)


# --- cluster_colors


def test_clustering_is_the_same_for_the_same_seed():
    flat = pictures(800)
    np.testing.assert_array_equal(cluster_colors(flat, 12, 3), cluster_colors(flat, 12, 3))
    assert not np.array_equal(cluster_colors(flat, 12, 3), cluster_colors(flat, 12, 4))


def test_colours_come_from_dark_to_light_and_equally_dark_ones_by_red_green_blue():
    luma = cluster_colors(pictures(800), 20) @ LUMA
    assert (np.diff(luma) >= 0).all()
    grey = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 3).reshape(-1, 3)
    found = cluster_colors(np.random.default_rng(0).permutation(grey), len(grey))
    np.testing.assert_allclose(found, grey / 127.5 - 1, atol=1e-6)


def test_colours_are_the_means_of_the_pixels_nearest_to_them():
    flat = pictures(2000)
    centers = cluster_colors(flat, 8)
    assert (centers.shape, centers.dtype) == ((8, 3), np.float32)
    scaled = flat / 127.5 - 1
    nearest = ((scaled[:, None] - centers) ** 2).sum(2).argmin(1)
    means = np.stack([scaled[nearest == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(centers, means, atol=0.02)  # Lloyd's iterations stop a little early


def test_well_parted_groups_are_found_whole():
    groups = np.array([[20, 20, 20], [230, 30, 40], [40, 220, 50], [60, 40, 230], [240, 240, 240]])
    rng = np.random.default_rng(0)
    flat = (groups[rng.integers(0, 5, 3000)] + rng.integers(-6, 7, (3000, 3))).astype(np.uint8)
    found = 127.5 * (cluster_colors(flat, 5) + 1)
    distance = np.abs(found[:, None] - groups).max(2)
    assert (distance.min(0) < 1).all()


@pytest.mark.parametrize("colors", [0, -1, 4, 100])
def test_more_colours_than_there_are_or_none_are_refused(colors):
    flat = np.repeat(pictures(3), 50, 0)
    with pytest.raises(InputError, match=f"^{colors} colours can't be fitted to 3 distinct ones; ask for 1 to 3"):
        cluster_colors(flat, colors)


def test_no_pixels_at_all_are_refused():
    with pytest.raises(InputError, match="0 distinct"):
        cluster_colors(np.zeros((0, 3), np.uint8), 1)


def test_without_sklearn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[probe\]"):
        cluster_colors(pictures(5), 2)


# --- palette_error


def test_the_error_of_one_grey_on_all_greys_is_that_of_a_uniform_distribution():
    # Levels -128 to 127 around 128: the mean square is (256^2 + 2) / 12, as 1/256 sum (x - 128)^2 = 5461.5.
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    found = palette_error(PaletteCodec([[0.0, 0.0, 0.0]]), [greys])
    assert found["rmse"] == pytest.approx(math.sqrt(5461.5))
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / math.sqrt(5461.5)))
    assert found["pixels"] == 256


def test_black_and_white_on_all_greys():
    # 0..127 are black and 128..255 white: 1/128 sum of x^2 for x below 128 = 127 * 255 / 6.
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    found = palette_error(PaletteCodec([[-1, -1, -1], [1, 1, 1]]), [greys])
    assert found["rmse"] == pytest.approx(math.sqrt(127 * 255 / 6))


def test_pictures_count_by_their_pixels():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((3, 4, 3), 255, np.uint8)
    found = palette_error(PaletteCodec([[-1, -1, -1]]), iter([black, white]))
    assert found["rmse"] == pytest.approx(255 * math.sqrt(12 / 16))
    assert found["pixels"] == 16


def test_a_palette_of_all_colours_loses_nothing():
    flat = pictures(10)
    assert palette_error(PaletteCodec(flat / 127.5 - 1), [flat]) == {"rmse": 0.0, "psnr": math.inf, "pixels": 10}


def test_more_colours_lose_less():
    flat = pictures(3000)
    errors = [palette_error(PaletteCodec(cluster_colors(flat, count)), [flat])["rmse"] for count in (2, 8, 32, 128)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3
