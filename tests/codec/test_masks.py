"""Masks on the grid."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagegpt.codec.masks import read_masks
from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError

GRID = Framing(2, 3)  # 2 high, 3 wide


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def one(mask, picture: Image.Image, framing: Framing = GRID) -> np.ndarray:
    (painted,) = read_masks(mask, [picture], framing)
    assert painted.dtype == bool
    assert painted.shape == (framing.height, framing.width)
    return painted


def test_a_mask_of_the_grids_size_is_taken_as_it_is():
    mask = np.array([[True, False, True], [False, True, False]])
    for picture in (blank(3, 2), blank(300, 17), blank(1, 1)):
        np.testing.assert_array_equal(one(mask, picture), mask)


@pytest.mark.parametrize("crop", ["none", "center", "random"])
def test_a_mask_of_the_grids_size_is_not_cropped(crop):
    mask = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(one(mask, blank(50, 9), Framing(2, 3, crop)), mask)


@pytest.mark.parametrize(("level", "painted"), [(0, False), (127, False), (128, True), (255, True)])
def test_grey_is_painted_from_the_middle_on(level, painted):
    mask = np.full((2, 3), 255, np.uint8)
    mask[1, 1] = level
    assert one(mask, blank(9, 9))[1, 1] == painted


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize(("pixels", "painted"), [(0, False), (7, False), (8, True), (9, True), (16, True)])
def test_a_cell_is_painted_if_half_of_it_is_whatever_the_pictures_filter(pixels, painted, resample):
    mask = np.zeros((8, 12), bool)
    mask[:4, :4].flat[:pixels] = True
    mask[4:, 8:] = True
    found = one(mask, blank(12, 8), Framing(2, 3, resample=resample))
    np.testing.assert_array_equal(found, [[painted, False, False], [False, False, True]])


def test_cells_are_counted_where_the_picture_does_not_divide():
    mask = np.zeros((7, 11), bool)
    mask[:, 6:] = True  # of 11 columns a cell has 3 2/3: the middle one, 3.67 to 7.33, is painted by 1.33 only
    np.testing.assert_array_equal(one(mask, blank(11, 7)), [[False, False, True]] * 2)


def test_a_center_crop_cuts_the_mask_where_it_cuts_the_picture():
    mask = np.zeros((4, 20), bool)
    mask[:2, 7:9] = True  # the crop takes columns 7 to 13
    mask[:, :7] = True
    np.testing.assert_array_equal(
        one(mask, blank(20, 4), Framing(2, 3, "center")), [[True, False, False], [False, False, False]]
    )
    squashed = one(mask, blank(20, 4), Framing(2, 3))
    np.testing.assert_array_equal(squashed, [[True, False, False], [True, False, False]])


def test_a_mask_whose_painted_part_is_cut_off_paints_nothing():
    mask = np.zeros((4, 20), bool)
    mask[:, :7] = True
    with pytest.raises(InputError, match="paints nothing"):
        one(mask, blank(20, 4), Framing(2, 3, "center"))


def test_a_mask_of_the_pictures_size_with_a_random_crop_is_refused():
    with pytest.raises(InputError, match='crop="random"'):
        one(np.ones((4, 6), bool), blank(6, 4), Framing(2, 3, "random"))


def test_colours_count_by_their_lightness():
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    np.testing.assert_array_equal(one(mask, blank(9, 9)), [[False, True, False], [False] * 3])


def test_a_list_is_one_for_each_and_anything_else_one_for_all():
    masks = [np.arange(6).reshape(2, 3) == number for number in range(2)]
    pictures = [blank(9, 9), blank(5, 5)]
    for given in (masks, tuple(masks)):
        np.testing.assert_array_equal(read_masks(given, pictures, GRID), np.stack(masks))
    np.testing.assert_array_equal(read_masks(masks[1], pictures, GRID), np.stack([masks[1], masks[1]]))
    large = np.zeros((9, 9), bool)
    large[:4, :3] = True
    found = read_masks([large, masks[1]], pictures, GRID)
    np.testing.assert_array_equal(found, [masks[0], masks[1]])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_masks_is_refused(count):
    with pytest.raises(InputError, match=f"There are 2 pictures and {count} masks; give one, or one for each"):
        read_masks([np.ones((2, 3), bool)] * count, [blank(9, 9)] * 2, GRID)


@pytest.mark.parametrize("size", [(2, 3), (9, 10), (10, 9), (4, 4), (1, 1)])
def test_another_size_is_refused_with_all_sizes(size):
    with pytest.raises(InputError, match=rf"mask is {size[0]} x {size[1]}; .* 9 x 9, .* 3 x 2\."):
        one(Image.new("L", size, 255), blank(9, 9))


def test_one_mask_for_pictures_of_two_sizes_must_be_of_the_grids():
    with pytest.raises(InputError, match="5 x 5"):
        read_masks(np.ones((9, 9), bool), [blank(9, 9), blank(5, 5)], GRID)


@pytest.mark.parametrize("mask", [np.zeros((2, 3), bool), np.full((2, 3), 127, np.uint8), np.zeros((9, 9), bool)])
def test_a_mask_that_paints_nothing_is_refused(mask):
    with pytest.raises(InputError, match=r"paints nothing: white \(or True\)"):
        one(mask, blank(9, 9))


def test_a_photo_that_a_camera_turned_and_its_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: 20 x 10 becomes 10 x 20
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    from imagegpt.codec.pictures import read_picture

    picture = read_picture(tmp_path / "turned.jpg")
    mask = np.zeros((20, 10), bool)
    mask[10:] = True
    np.testing.assert_array_equal(one(mask, picture), [[False] * 3, [True] * 3])
