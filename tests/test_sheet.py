"""Contact sheets: every cell is found by its pixels, not by the sheet's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagegpt.sheet import (
    CAPTION,
    CELL,
    GAP,
    Cell,
    comparison_sheet,
    completion_sheet,
    draw_sheet,
    enlarge,
    sample_sheet,
    shrink,
)


def noise(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def places(sheet: Image.Image, part: np.ndarray) -> list[tuple[int, int]]:
    """(left, top) of every place where the sheet shows exactly these pixels."""
    pixels, (height, width) = np.asarray(sheet), part.shape[:2]
    last_row, last_column = pixels.shape[0] - height, pixels.shape[1] - width
    first = (pixels[: last_row + 1, : last_column + 1] == part[0, 0]).all(2)
    final = (pixels[height - 1 :, width - 1 :] == part[-1, -1]).all(2)
    found = [
        (int(x), int(y))
        for y, x in np.argwhere(first & final)
        if np.array_equal(pixels[y : y + height, x : x + width], part)
    ]
    return sorted(found, key=lambda place: place[::-1])


def squares(image: Image.Image, factor: int) -> np.ndarray:
    return np.asarray(image).repeat(factor, 0).repeat(factor, 1)


@pytest.mark.parametrize(("side", "factor"), [(8, 16), (32, 4), (48, 2), (100, 1), (200, 1)])
def test_enlarge_makes_every_id_a_square(side, factor):
    np.testing.assert_array_equal(np.asarray(enlarge(noise(0, side))), squares(noise(0, side), factor))


@pytest.mark.parametrize("size", [(640, 480), (10, 20), (1, 1), (5000, 1), (1, 5000)])
def test_shrink_fits_a_picture_into_a_cell(size):
    small = shrink(Image.new("RGB", size, (9, 8, 7)))
    assert max(small.size) == 128
    assert min(small.size) >= 1
    assert small.getpixel((0, 0)) == (9, 8, 7)
    if min(size) > 5:
        assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_completion_sheet_shows_each_picture_in_its_place():
    inputs = [noise(seed, 128) for seed in (0, 1)]
    seen = [noise(seed) for seed in (2, 3)]
    samples = [[noise(10 * row + i) for i in range(4, 7)] for row in (1, 2)]
    sheet = completion_sheet(inputs, seen, samples)
    rows = [
        [
            places(sheet, np.asarray(inputs[row])),
            places(sheet, squares(seen[row], 16)),
            *(places(sheet, squares(image, 16)) for image in samples[row]),
        ]
        for row in (0, 1)
    ]
    assert all(len(found) == 1 for row in rows for found in row)
    lefts, tops = ([[found[0][axis] for found in row] for row in rows] for axis in (0, 1))
    assert lefts[0] == lefts[1] == sorted(lefts[0])
    assert len(set(lefts[0])) == 5
    assert len(set(tops[0])) == len(set(tops[1])) == 1
    assert tops[1][0] >= tops[0][0] + 128


def test_many_samples_go_on_in_further_rows():
    samples = [noise(seed) for seed in range(10)]
    sheet = completion_sheet([noise(99, 128)], [noise(98)], [samples])
    found = [places(sheet, squares(image, 16)) for image in samples]
    assert all(len(place) == 1 for place in found)
    tops = [place[0][1] for place in found]
    assert tops == sorted(tops)
    assert tops[:8] == tops[:1] * 8
    assert tops[8] == tops[9] > tops[0]
    assert found[8][0][0] == found[0][0][0]  # under the first sample


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4)])
def test_a_sample_sheet_is_about_square(count, columns):
    samples = [noise(seed) for seed in range(count)]
    sheet = sample_sheet(samples)
    found = [places(sheet, squares(image, 16)) for image in samples]
    assert all(len(place) == 1 for place in found)
    assert [place[0] for place in found] == sorted((place[0] for place in found), key=lambda at: at[::-1])
    assert len({place[0][0] for place in found}) == columns


def test_cells_do_not_cover_one_another_and_small_ones_are_centred():
    small, large = Image.new("RGB", (10, 20), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
    sheet = np.asarray(draw_sheet([[Cell(small), Cell(large)]]))
    red, blue = (np.argwhere((sheet == colour).all(2)) for colour in [(255, 0, 0), (0, 0, 255)])
    assert (len(red), len(blue)) == (200, 1600)
    assert abs(red[:, 0].mean() - blue[:, 0].mean()) <= 0.5


def test_a_caption_is_written_above_its_cell():
    image = Image.new("RGB", (40, 40), (0, 0, 255))
    plain, named = (np.asarray(draw_sheet([[Cell(image, words)]])) for words in ("", "abc"))
    assert named.shape[0] > plain.shape[0]
    top = np.argwhere((named == (0, 0, 255)).all(2))[:, 0].min()
    ink = np.argwhere((named < 200).all(2))[:, 0]
    assert len(ink)
    assert ink.max() < top


def test_a_comparison_sheet_has_a_row_for_each_version_with_its_words():
    rows = {"before": np.zeros((3, 8, 8, 3), np.uint8), "after": np.full((3, 8, 8, 3), 100, np.uint8)}
    sheet = np.asarray(comparison_sheet(rows))
    assert sheet.shape == (GAP + 2 * (CELL + GAP + CAPTION), GAP + 3 * (CELL + GAP), 3)
    for row, level in enumerate((0, 100)):
        top = GAP + CAPTION + row * (CELL + GAP + CAPTION)
        for column in range(3):
            left = GAP + column * (CELL + GAP)
            assert (sheet[top : top + CELL, left : left + CELL] == level).all()
        assert (sheet[top - CAPTION : top] < 255).any()
