"""read_picture and Framing: every kind of source, against values worked out by hand or by another library."""

from __future__ import annotations

import colorsys
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt.codec.pictures import Framing, read_picture, read_pictures
from imagegpt.errors import InputError

COLOURS = [(200, 30, 90), (10, 220, 40), (0, 0, 0), (255, 255, 255), (17, 99, 250), (128, 128, 128)]


def pixels_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def row_of(mode: str, values) -> Image.Image:
    """A picture of one row, pixel by pixel, without any conversion."""
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- modes


def ycbcr(r, g, b):
    """JPEG's matrix (ITU-T T.871)."""
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return round(luma), round(128 + 0.564334 * (b - luma)), round(128 + 0.713267 * (r - luma))


def hsv(r, g, b):
    return tuple(round(255 * part) for part in colorsys.rgb_to_hsv(r / 255, g / 255, b / 255))


@pytest.mark.parametrize(
    ("mode", "convert", "tolerance"),
    [
        ("RGB", lambda r, g, b: (r, g, b), 0),
        ("RGBA", lambda r, g, b: (r, g, b, 255), 0),
        ("RGBX", lambda r, g, b: (r, g, b, 0), 0),
        ("CMYK", lambda r, g, b: (255 - r, 255 - g, 255 - b, 0), 1),
        ("YCbCr", ycbcr, 2),
        ("HSV", hsv, 5),
    ],
)
def test_colour_modes_give_the_colours_that_they_hold(mode, convert, tolerance):
    image = row_of(mode, [convert(*colour) for colour in COLOURS])
    assert np.abs(pixels_of(read_picture(image))[0] - COLOURS).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 1], [0, 255]),
        ("L", [0, 77, 255], [0, 77, 255]),
        ("LA", [(77, 255), (200, 255)], [77, 200]),
        ("I;16", [0, 32768, 65535, 257], [0, 128, 255, 1]),
        ("I", [0, 77, 255], [0, 77, 255]),
        ("I", [0, 32768, 65535], [0, 128, 255]),
        ("F", [0.0, 77.0, 255.0], [0, 77, 255]),
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
    ],
)
def test_grey_modes_give_equal_channels(mode, values, expected):
    np.testing.assert_array_equal(pixels_of(read_picture(row_of(mode, values)))[0], np.repeat([expected], 3, 0).T)


def test_lab_pictures_are_converted_by_their_meaning():
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = ImageCms.applyTransform(row_of("RGB", COLOURS), to_lab)
    assert lab.mode == "LAB"
    # 8-bit LAB is coarse where the colours are dark or saturated
    assert np.abs(pixels_of(read_picture(lab))[0] - COLOURS).max() <= 16


def test_palette_pictures_take_their_colours_from_the_palette():
    image = Image.new("P", (6, 1))
    image.putpalette([part for colour in COLOURS for part in colour])
    for x in range(6):
        image.putpixel((x, 0), 5 - x)
    np.testing.assert_array_equal(pixels_of(read_picture(image))[0], COLOURS[::-1])


def palette_picture() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


def test_a_palettes_transparent_colour_is_white():
    image = palette_picture()
    image.info["transparency"] = 1
    assert pixels_of(read_picture(image))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_palette_with_alpha_is_laid_on_white():
    image = Image.new("PA", (3, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    for x, value in enumerate([(0, 255), (1, 0), (1, 102)]):
        image.putpixel((x, 0), value)
    # 102 / 255 = 0.4 of the colour, 0.6 of white
    assert np.abs(pixels_of(read_picture(image))[0] - [[0, 0, 0], [255, 255, 255], [233, 193, 173]]).max() <= 1


@pytest.mark.parametrize("alpha", [0, 1, 51, 128, 254, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode, alpha):
    part = alpha / 255
    if mode == "RGBA":
        image = row_of(mode, [(*colour, alpha) for colour in COLOURS])
        base = np.array(COLOURS)
    else:
        image = row_of(mode, [(value, alpha) for value in (0, 77, 200)])
        base = np.repeat([[0], [77], [200]], 3, 1)
    assert np.abs(pixels_of(read_picture(image))[0] - (part * base + (1 - part) * 255)).max() <= 1


def test_premultiplied_alpha_is_laid_on_white():
    image = row_of("RGBA", [(200, 30, 90, 128), (9, 9, 9, 0)])
    expected = pixels_of(read_picture(image))
    assert np.abs(pixels_of(read_picture(image.convert("RGBa"))) - expected).max() <= 2


def test_premultiplied_grey_alpha_is_laid_on_white():
    image = row_of("LA", [(200, 128), (9, 0)])
    assert np.abs(pixels_of(read_picture(image.convert("La"))) - pixels_of(read_picture(image))).max() <= 2


# --- files


@pytest.mark.parametrize(
    ("image", "transparent", "expected"),
    [
        (row_of("L", [7, 9]), 7, [[255] * 3, [9] * 3]),
        (row_of("RGB", [(1, 2, 3), (9, 8, 7)]), (1, 2, 3), [[255] * 3, [9, 8, 7]]),
        (palette_picture(), 0, [[255] * 3, [200, 100, 50]]),
        (row_of("1", [0, 1]), 0, [[255] * 3, [255] * 3]),
    ],
    ids=["L", "RGB", "P", "1"],
)
def test_a_pngs_transparent_colour_is_white(image, transparent, expected):
    data = encoded(image, transparency=transparent)
    assert b"tRNS" in data
    assert pixels_of(read_picture(data))[0].tolist() == expected


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (32768, 128), (0, 0), (200, 1), (257 * 60, 60)])
def test_sixteen_bit_grey_png_is_scaled(value, expected):
    data = encoded(Image.fromarray(np.full((2, 3), value, np.uint16)))
    assert data[24] == 16  # the header's bit depth
    assert (pixels_of(read_picture(data)) == expected).all()


def test_sixteen_bit_grey_png_keeps_its_transparent_colour():
    data = encoded(Image.fromarray(np.array([[700, 40000]], np.uint16)), transparency=700)
    assert b"tRNS" in data
    assert pixels_of(read_picture(data))[0].tolist() == [[255] * 3, [156] * 3]


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colour_png(kind, channels):
    row = b"\0" + struct.pack(f">{channels}H", *[32768, 0, 65535, 65535][:channels])
    assert read_picture(raw_png(1, 1, 16, kind, row)).getpixel((0, 0)) == (128, 0, 255)


# An orientation and where the stored picture's four corners (top left, top right, bottom left, bottom right) come.
TURNS = {1: "ABCD", 2: "BADC", 3: "DCBA", 4: "CDAB", 5: "ACBD", 6: "CADB", 7: "DBCA", 8: "BDAC"}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(orientation):
    corners = {"A": (255, 0, 0), "B": (0, 255, 0), "C": (0, 0, 255), "D": (255, 255, 255)}
    image = Image.new("RGB", (48, 32))
    for letter, box in zip("ABCD", [(0, 0), (24, 0), (0, 16), (24, 16)], strict=True):
        image.paste(corners[letter], (*box, box[0] + 24, box[1] + 16))
    exif = Image.Exif()
    exif[0x112] = orientation
    upright = read_picture(encoded(image, "JPEG", exif=exif, quality=95, subsampling=0))
    assert upright.size == ((48, 32) if orientation < 5 else (32, 48))
    right, bottom = upright.width - 3, upright.height - 3
    seen = [upright.getpixel(at) for at in [(2, 2), (right, 2), (2, bottom), (right, bottom)]]
    expected = [corners[letter] for letter in TURNS[orientation]]
    assert np.abs(np.array(seen) - expected).max() <= 10


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert read_picture(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_single_pixel_is_a_picture():
    assert pixels_of(read_picture(encoded(Image.new("RGB", (1, 1), (3, 4, 5))))).tolist() == [[[3, 4, 5]]]


def test_paths_strings_bytes_and_images_give_the_same(tmp_path):
    original = noise(5, 7)
    path = tmp_path / "picture.png"
    Image.fromarray(original).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), original, torch.from_numpy(original)):
        np.testing.assert_array_equal(pixels_of(read_picture(source)), original)


# --- arrays and tensors


@pytest.mark.parametrize("kind", ["last", "first", "tensor last", "tensor first"])
def test_channels_come_last_or_first(kind):
    original = noise(5, 7)
    array = original if "last" in kind else np.moveaxis(original, 2, 0)
    source = torch.from_numpy(np.ascontiguousarray(array)) if "tensor" in kind else array
    np.testing.assert_array_equal(pixels_of(read_picture(source)), original)


def test_where_both_axes_could_be_channels_the_last_is():
    original = noise(3, 7)
    np.testing.assert_array_equal(pixels_of(read_picture(original)), original)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (1, 4, 6)])
def test_grey_arrays(shape):
    grey = noise(4, 6)[..., 0]
    np.testing.assert_array_equal(pixels_of(read_picture(grey.reshape(shape))), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("axis", [0, 2])
def test_a_fourth_channel_is_alpha(axis):
    array = np.full((5, 6, 4), 100, np.uint8)
    array[..., 3] = 0
    array[0, 0, 3] = 255
    image = read_picture(np.moveaxis(array, 2, axis))
    assert (image.size, image.getpixel((0, 0)), image.getpixel((1, 0))) == ((6, 5), (100,) * 3, (255,) * 3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_up_to_one_are_scaled(kind):
    array = np.array([[0, 0.25, 0.5, 1]], kind)
    assert pixels_of(read_picture(array))[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.int16])
def test_numbers_up_to_255_are_levels(kind):
    array = np.array([[0, 2, 128, 255]], kind)
    assert pixels_of(read_picture(array))[0, :, 0].tolist() == [0, 2, 128, 255]


def test_uint16_and_bool_arrays():
    assert pixels_of(read_picture(np.array([[0, 32768, 65535]], np.uint16)))[0, :, 1].tolist() == [0, 128, 255]
    assert pixels_of(read_picture(np.array([[True, False]])))[0, :, 1].tolist() == [255, 0]


def test_a_tensor_that_asks_for_gradients():
    assert read_picture(torch.ones(3, 4, 5, requires_grad=True)).getpixel((0, 0)) == (255, 255, 255)


def test_a_bfloat16_tensor():
    assert read_picture(torch.full((3, 4, 5), 0.5, dtype=torch.bfloat16)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4)),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((3, 0, 0), np.float32),
        np.full((4, 5), np.nan),
        np.full((4, 5, 3), np.inf),
        np.array([[0.5, -0.1]]),
        np.array([[-1, 5]], np.int64),
        np.array([[0, 256.5]]),
        np.array([[0, 70000]], np.int64),
        np.zeros((5,)),
        np.zeros((5, 6, 2)),
        np.zeros((5, 6, 7)),
        np.zeros((4, 5), complex),
        np.array([["a"]]),
        torch.zeros(0, 3),
        torch.zeros(5),
    ],
    ids=lambda array: f"{array.dtype}{tuple(array.shape)}",
)
def test_arrays_that_are_no_pictures_are_refused(array):
    with pytest.raises(InputError):
        read_picture(array)


# --- errors


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: there is no such file"):
        read_picture(tmp_path / "gone.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 9, b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fake\.png is not a picture"):
        read_picture(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path, form, part):
    data = encoded(Image.fromarray(noise(60, 50)), form)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=r"cut\.bin"):
        read_picture(path)


def test_a_truncated_picture_that_pil_has_opened_already():
    data = encoded(Image.fromarray(noise(60, 50)), "JPEG")
    lazy = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(InputError, match="truncated"):
        read_picture(lazy)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(raw_png(30000, 30000, 8, 2, b"\0" * 90001))
    assert path.stat().st_size < 1000
    with pytest.raises(InputError, match=r"bomb\.png: the picture has too many pixels"):
        read_picture(path)


def test_a_file_name_longer_than_any_file_has():
    with pytest.raises(InputError):
        read_picture("a" * 300 + ".png")


def test_an_image_without_pixels():
    with pytest.raises(InputError, match="no pixels"):
        read_picture(Image.new("RGB", (0, 5)))


# --- batches


def test_one_picture_or_several():
    one = noise(4, 5)
    assert [image.size for image in read_pictures(one)] == [(5, 4)]
    assert [image.size for image in read_pictures([one, noise(6, 7), Image.new("L", (8, 9))])] == [
        (5, 4),
        (7, 6),
        (8, 9),
    ]
    assert [image.size for image in read_pictures(np.stack([one, one]))] == [(5, 4), (5, 4)]
    assert [image.size for image in read_pictures(torch.zeros(2, 3, 4, 5))] == [(5, 4), (5, 4)]
    assert [image.size for image in read_pictures(picture for picture in (one, one))] == [(5, 4), (5, 4)]


def test_no_pictures_at_all():
    with pytest.raises(InputError, match="No picture"):
        read_pictures([])


def test_an_error_in_a_batch_tells_the_position():
    with pytest.raises(InputError, match="Picture 2: "):
        read_pictures([noise(4, 5), noise(4, 5), np.full((4, 5), np.nan)])


def test_an_error_in_a_batch_of_files_tells_the_file(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(noise(4, 5)).save(good)
    with pytest.raises(InputError, match=r"missing\.png"):
        read_pictures([good, tmp_path / "missing.png"])


# --- framing


@pytest.mark.parametrize("size", [(8, 8), (20, 30), (31, 17), (3, 50), (50, 3), (1, 1), (64, 64)])
def test_squash_is_pils_resize_of_the_whole_picture(size):
    image = Image.fromarray(noise(size[1], size[0]))
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Framing(8, 8).apply(image), expected)


@pytest.mark.parametrize(
    ("size", "grid", "box"),
    [
        ((40, 20), (8, 8), (10, 0, 30, 20)),
        ((20, 40), (8, 8), (0, 10, 20, 30)),
        ((48, 48), (8, 8), (0, 0, 48, 48)),
        ((60, 20), (4, 8), (10, 0, 50, 20)),
        ((60, 20), (8, 4), (25, 0, 35, 20)),
    ],
)
def test_center_is_a_crop_and_then_a_resize(size, grid, box):
    image = Image.fromarray(noise(size[1], size[0]))
    framing = Framing(*grid, crop="center")
    pixels = framing.apply(image)
    expected = np.asarray(image.crop(box).resize((grid[1], grid[0]), Image.Resampling.BILINEAR))
    assert pixels.shape == expected.shape
    # The filter of the outermost pixels sees a little of what lies beyond the cut, as when a picture is resized first.
    assert np.abs(pixels[1:-1, 1:-1].astype(int) - expected[1:-1, 1:-1]).max() <= 1  # PIL's weights are fixed-point
    np.testing.assert_array_equal(np.asarray(framing.cut(image)), np.asarray(image.crop(box)))


@pytest.mark.parametrize(("size", "whole"), [((40, 20), (16, 8)), ((20, 40), (8, 16)), ((30, 90), (8, 24))])
def test_center_is_the_papers_resize_and_then_a_crop(size, whole):
    image = Image.fromarray(noise(size[1], size[0]))
    left, top = (whole[0] - 8) // 2, (whole[1] - 8) // 2
    expected = image.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + 8, top + 8))
    pixels = Framing(8, 8, crop="center").apply(image)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_center_of_an_odd_rest_lies_between_pixels():
    # 21 wide, 20 high: the crop goes from 0.5 to 20.5, and a ramp of slope 10 is sampled at 0.5 + 2.5 (i + 0.5).
    ramp = np.repeat(np.arange(21)[None, :, None] * 10, 20, 0).repeat(3, 2).astype(np.uint8)
    columns = Framing(8, 8, crop="center").apply(Image.fromarray(ramp))[4, :, 0].astype(float)
    expected = (0.5 + 2.5 * (np.arange(8) + 0.5) - 0.5) * 10
    assert np.abs(columns[1:-1] - expected[1:-1]).max() <= 2


def test_cut_keeps_the_whole_picture_when_squashing():
    image = Image.fromarray(noise(9, 14))
    np.testing.assert_array_equal(np.asarray(Framing(8, 8).cut(image)), np.asarray(image))


def test_a_picture_of_the_grids_size_is_not_touched():
    original = noise(8, 6)
    for crop in ("none", "center"):
        np.testing.assert_array_equal(Framing(8, 6, crop).apply(Image.fromarray(original)), original)


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 1001),
        (2, 999),
        (3, 500),
        (1, 1000),
        (1000, 1),
    ],
)
def test_very_thin_pictures_can_be_cut(size):
    image = Image.new("RGB", size, (3, 4, 5))
    framing = Framing(8, 8, crop="center")
    assert (framing.apply(image) == (3, 4, 5)).all()
    assert min(framing.cut(image).size) >= 1


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_the_filter_is_the_one_asked_for(resample):
    image = Image.fromarray(noise(20, 20))
    chosen = Framing(8, 8, resample=resample).apply(image)
    np.testing.assert_array_equal(chosen, np.asarray(image.resize((8, 8), resample)))
    assert not np.array_equal(chosen, Framing(8, 8).apply(image))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 8), "height"),
        ((8, -1), "width"),
        ((8.0, 8), "height"),
        ((8, None), "width"),
        ((8, 8, "middle"), "crop"),
        ((8, 8, None), "crop"),
    ],
)
def test_bad_framings_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Framing(*arguments)


def test_a_filter_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="resample"):
        Framing(8, 8, resample=99)
