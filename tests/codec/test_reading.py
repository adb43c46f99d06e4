"""How pictures are read where there is a choice: Reading, addresses, skipping, limits, random crops."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from transformers.image_utils import ChannelDimension

from imagegpt.codec import pictures
from imagegpt.codec.pictures import MOST_PIXELS, Framing, Reading, read_picture, read_pictures
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.errors import InputError

# Each colour of a cube's corners is an id of its own, and the id tells the colour: 4 r + 2 g + b.
CORNERS = [[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)]
BLACK, BLUE, GREEN, RED, WHITE = 0, 1, 2, 4, 7


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def levels(source, how: Reading | None = None) -> list:
    return np.asarray(read_picture(source, how)).tolist()


@pytest.fixture
def processor() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(CORNERS, size=2)


def ids(processor, source, **options) -> list[int]:
    return processor(source, return_tensors="np", **options)["input_ids"][0].tolist()


# --- background

CLEAR = {
    "RGBA": Image.new("RGBA", (1, 1), (9, 9, 9, 0)),
    "LA": Image.new("LA", (1, 1), (9, 0)),
    "RGBa": Image.new("RGBa", (1, 1), (0, 0, 0, 0)),
    "array": np.array([[[9, 9, 9, 0]]], np.uint8),
    "PNG": encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0))),
    "PNG with a transparent colour": encoded(Image.new("L", (1, 1), 9), transparency=9),
    "PNG of 16 bits": encoded(Image.fromarray(np.full((1, 1), 700, np.uint16)), transparency=700),
    "GIF": encoded(Image.new("P", (1, 1), 3), "GIF", transparency=3),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_shows_the_background(kind):
    assert levels(CLEAR[kind]) == [[[255, 255, 255]]]
    assert levels(CLEAR[kind], Reading(background=(10, 200, 30))) == [[[10, 200, 30]]]


@pytest.mark.parametrize("alpha", [0, 1, 77, 128, 254, 255])
def test_half_transparent_colours_are_mixed_with_the_background_and_rounded(alpha):
    mixed = (np.array([200, 30, 90]) * alpha + np.array([10, 250, 60]) * (255 - alpha)) / 255
    image = Image.new("RGBA", (1, 1), (200, 30, 90, alpha))
    assert levels(image, Reading(background=(10, 250, 60))) == [[np.rint(mixed).astype(int).tolist()]]


def test_sixteen_bit_grey_keeps_its_other_values_on_a_background():
    data = encoded(Image.fromarray(np.array([[700, 40000, 701]], np.uint16)), transparency=700)
    assert levels(data, Reading(background=(1, 2, 3))) == [[[1, 2, 3], [156] * 3, [3] * 3]]


def test_the_processor_takes_a_background_for_all_calls_or_for_one(processor):
    clear = CLEAR["RGBA"]
    assert ids(processor, clear) == [WHITE] * 4
    assert ids(processor, clear, background=(0, 255, 0)) == [GREEN] * 4
    black = ImageGPTImageProcessor(CORNERS, size=2, background=(0, 0, 0))
    assert ids(black, clear) == [BLACK] * 4
    assert ids(black, clear, background=[0, 0, 255]) == [BLUE] * 4


def test_a_picture_without_alpha_does_not_see_the_background(processor):
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert ids(processor, image, background=(0, 0, 0)) == [RED] * 4


# --- floats


def test_floats_are_a_guess_that_is_warned_of_with_the_way_out():
    with pytest.warns(UserWarning, match=r"at most 1 .* white is 1; say so \(white=1\), or give uint8"):
        assert levels(np.array([[0.5]])) == [[[128] * 3]]
    with pytest.warns(UserWarning, match=r"above 1 .* white is 255; say so \(white=255\)"):
        assert levels(np.array([[1.5, 100]])) == [[[2] * 3, [100] * 3]]


def test_many_float_pictures_are_warned_of_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        read_pictures([np.random.default_rng(seed).random((4, 5)) for seed in range(20)])
    assert len(told) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float32, torch.bfloat16])
def test_who_says_what_white_is_hears_no_warning(dtype):
    array = torch.tensor([[0, 1]], dtype=dtype) if isinstance(dtype, torch.dtype) else np.array([[0, 1]], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(array, Reading(white=1)) == [[[0] * 3, [255] * 3]]
        assert levels(array, Reading(white=255)) == [[[0] * 3, [1] * 3]]
        assert levels(array, Reading(white=2)) == [[[0] * 3, [128] * 3]]


def test_white_is_for_floats_alone():
    assert levels(np.array([[200]], np.uint8), Reading(white=1)) == [[[200] * 3]]
    assert levels(np.array([[200]], np.int64), Reading(white=1)) == [[[200] * 3]]
    assert levels(np.array([[65535]], np.uint16), Reading(white=1)) == [[[255] * 3]]


def test_floats_above_the_white_that_was_said_are_refused():
    with pytest.raises(InputError, match=r"up to 1\.5, above 1"):
        read_picture(np.array([[1.5]]), Reading(white=1))


def test_the_processor_takes_white_for_all_calls_or_for_one(processor):
    dark = np.ones((2, 2, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(processor, dark, white=1) == [WHITE] * 4
        assert ids(processor, dark, white=255) == [BLACK] * 4
        assert ids(ImageGPTImageProcessor(CORNERS, size=2, white=255.0), dark) == [BLACK] * 4
    with pytest.warns(UserWarning, match="white"):
        assert ids(processor, dark) == [WHITE] * 4


def test_a_float_picture_file_with_values_that_are_none_is_named(tmp_path):
    path = tmp_path / "depth.tif"
    Image.fromarray(np.array([[0.5, np.nan]], np.float32)).save(path)
    with pytest.raises(InputError, match=r"depth\.tif: its values go from nan"):
        read_picture(path)


@pytest.mark.parametrize("count", [pictures.STRIP - 1, pictures.STRIP, pictures.STRIP + 1])
def test_deep_pictures_are_scaled_whole(count):
    values = np.arange(count, dtype=np.uint16).reshape(1, -1)
    seen = np.asarray(read_picture(values))[0, :, 0]
    np.testing.assert_array_equal(seen, np.rint(values[0] / 257))


# --- where the channels are


def test_both_ends_could_be_channels_and_the_caller_says_which(processor):
    array = np.zeros((3, 2, 3), np.uint8)
    array[0] = 255  # as a first axis: red is full
    assert read_picture(array).size == (2, 3)
    assert read_picture(array, Reading(channels="last")).size == (2, 3)
    first = read_picture(array, Reading(channels="first"))
    assert (first.size, first.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    assert ids(processor, array, input_data_format="channels_first") == [RED] * 4
    assert ids(processor, array, input_data_format=ChannelDimension.FIRST) == [RED] * 4
    assert ids(processor, array, input_data_format="channels_last")[0] == WHITE
    assert ids(processor, array) == ids(processor, array, input_data_format="channels_last")


@pytest.mark.parametrize(("channels", "shape"), [("first", (5, 6, 3)), ("last", (3, 5, 6)), ("first", (2, 5, 6))])
def test_channels_that_are_not_where_they_are_said_to_be(channels, shape):
    with pytest.raises(InputError, match=f"no axis of 1, 3 or 4 channels {channels}"):
        read_picture(np.zeros(shape, np.uint8), Reading(channels=channels))


def test_a_place_for_channels_that_does_not_exist(processor):
    with pytest.raises(InputError, match="'HWC' is no place for channels; there are channels_first and channels_last"):
        processor(noise(4, 4), input_data_format="HWC")


# --- skipping


def test_bad_pictures_are_skipped_and_told_one_by_one(processor, tmp_path):
    (tmp_path / "broken.png").write_bytes(encoded(Image.fromarray(noise(30, 30)))[:200])
    blue = np.zeros((4, 4, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    batch = [noise(4, 4), tmp_path / "gone.png", np.zeros((5, 4, 7)), tmp_path / "broken.png", b"text", blue]
    found = processor(batch, return_tensors="np", on_error="skip")
    assert found["input_ids"].shape == (2, 4)
    assert found["input_ids"][1].tolist() == [BLUE] * 4
    assert len(found.skipped) == 4
    gone, array, broken, text = found.skipped
    assert gone == f"{tmp_path / 'gone.png'}: there is no such file."
    assert array.startswith("Picture 2: An array of shape (5, 4, 7)")
    assert broken.startswith(f"{tmp_path / 'broken.png'}: the picture is truncated or damaged")
    assert text == "Picture 4: The bytes given is not a picture in a format that can be read."


def test_nothing_skipped_is_an_empty_list(processor):
    assert processor([noise(4, 4)], on_error="skip").skipped == []
    assert processor([noise(4, 4)]).skipped == []


def test_the_default_is_to_stop_at_the_first_bad_picture(processor):
    with pytest.raises(InputError, match="Picture 1: "):
        processor([noise(4, 4), b"text", b"text"])


def test_a_batch_of_bad_pictures_alone_is_an_error_with_the_first_reason(processor):
    with pytest.raises(InputError, match="No picture can be read; the first: Picture 0: The bytes"):
        processor([b"text", b"more"], on_error="skip")


def test_read_pictures_takes_a_list_for_the_reasons():
    skipped = ["before"]
    assert len(read_pictures([noise(2, 2), b"text", noise(2, 2)], on_error="skip", skipped=skipped)) == 2
    assert len(skipped) == 2


# --- bytes


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_the_content_of_a_file(kind, processor):
    original = noise(5, 7)
    data = kind(encoded(Image.fromarray(original)))
    assert levels(data) == original.tolist()
    assert [image.size for image in read_pictures([data, data])] == [(7, 5), (7, 5)]
    assert [image.size for image in read_pictures(data)] == [(7, 5)]
    assert ids(processor, data) == ids(processor, original)


# --- addresses


class _Server(BaseHTTPRequestHandler):
    content = encoded(Image.fromarray(noise(5, 7)))

    def do_GET(self):
        found = {"/cat.png": self.content, "/text": b"<html>", "/cut.png": self.content[:60]}.get(self.path)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"gone")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_are_refused_unless_asked_for(site, processor):
    for read in (read_picture, processor):
        with pytest.raises(InputError, match=r"cat\.png is an address; it is fetched only on request \(urls=True\)"):
            read(f"{site}/cat.png")


def test_addresses_are_fetched_when_asked_for(site, processor):
    assert levels(f"{site}/cat.png", Reading(urls=True)) == noise(5, 7).tolist()
    assert ids(processor, f"{site}/cat.png", urls=True) == ids(processor, noise(5, 7))
    assert len(processor([f"{site}/cat.png"] * 2, urls=True)["input_ids"]) == 2


@pytest.mark.parametrize(
    ("page", "words"),
    [("/gone.png", "can't be fetched: HTTP Error 404"), ("/text", "is not a picture"), ("/cut.png", "damaged")],
)
def test_what_is_wrong_at_an_address_is_told_with_its_name(site, page, words):
    with pytest.raises(InputError, match=words) as error:
        read_picture(site + page, Reading(urls=True))
    assert str(error.value).startswith(site + page)


def test_an_address_that_gives_too_much_is_refused(site, monkeypatch):
    monkeypatch.setattr(pictures, "URL_BYTES", len(_Server.content))
    assert read_picture(f"{site}/cat.png", Reading(urls=True)).size == (7, 5)
    monkeypatch.setattr(pictures, "URL_BYTES", len(_Server.content) - 1)
    with pytest.raises(InputError, match="is larger than"):
        read_picture(f"{site}/cat.png", Reading(urls=True))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/cat.png", "http://", "http://[::1/cat.png"])
def test_an_address_without_a_server_is_refused(url):
    with pytest.raises(InputError, match="can't be fetched"):
        read_picture(url, Reading(urls=True))


def test_a_silent_server_is_not_waited_for_forever(monkeypatch):
    import socket

    monkeypatch.setattr(pictures, "URL_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(InputError, match="timed out"):
        read_picture(f"http://127.0.0.1:{server.getsockname()[1]}/", Reading(urls=True))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/cat.png", "file:///etc/passwd"])
def test_other_kinds_of_addresses_are_names_of_files_that_are_not_there(url):
    with pytest.raises(InputError, match="there is no such file"):
        read_picture(url, Reading(urls=True))


# --- limits


def test_more_than_64_million_pixels_are_refused_before_they_are_read(tmp_path):
    assert MOST_PIXELS == 64_000_000
    path = tmp_path / "wide.png"
    Image.new("1", (64_000, 1_001)).save(path)
    with pytest.raises(InputError, match=r"wide\.png: the picture has too many pixels, at most 64,000,000 are read"):
        read_picture(path)


def test_the_limit_itself_is_read(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 12)
    assert read_picture(noise(3, 4)).size == (4, 3)
    for source in (noise(3, 5), Image.fromarray(noise(3, 5)), encoded(Image.fromarray(noise(3, 5)))):
        with pytest.raises(InputError, match="too many pixels"):
            read_picture(source)


def test_a_large_picture_inside_a_small_icon_is_refused():
    inner = encoded(Image.new("1", (9500, 9500)))
    entry = b"ic07" + (8 + len(inner)).to_bytes(4, "big") + inner
    icon = b"icns" + (8 + len(entry)).to_bytes(4, "big") + entry
    assert Image.open(io.BytesIO(icon)).size == (128, 128)  # so it says before it is loaded
    with pytest.raises(InputError, match="too many pixels"):
        read_picture(icon)


PEAK = """
import resource, sys
from imagegpt.codec.pictures import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert read_picture(sys.argv[1]).size == (8000, 8000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK", "F", "webp", "progressive", "exif", "jp2"])
def test_the_largest_picture_is_read_in_1_gib(tmp_path, mode):
    form = {"CMYK": "tif", "F": "tif", "webp": "webp", "progressive": "jpg", "exif": "jpg", "jp2": "jp2"}
    path = tmp_path / f"large.{form.get(mode, 'png')}"
    options = {"progressive": {"progressive": True, "subsampling": 0}}.get(mode, {})
    if mode == "exif":
        exif = Image.Exif()
        exif[0x112] = 6
        options = {"exif": exif}
    Image.new(mode if mode in ("RGBA", "LA", "P", "I;16", "CMYK", "F") else "RGB", (8000, 8000)).save(path, **options)
    found = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= 1024


@pytest.mark.parametrize("form", ["EPS", "FITS"])
def test_formats_that_are_programs_or_tables_are_refused_in_words(form):
    if form == "EPS":
        data = encoded(Image.new("RGB", (4, 4)), "EPS")
    else:
        cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 3", "END"]
        data = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)
    with pytest.raises(InputError, match=r"which is not read; save it as a PNG first\."):
        read_picture(data)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "The bytes given: there is not enough memory to read the picture."),
        (OSError("broken.\nAnd more."), "The bytes given: the picture is truncated or damaged (broken)."),
        (KeyError(), "The bytes given: the picture is truncated or damaged (KeyError)."),
    ],
)
def test_what_pil_raises_is_told_in_one_sentence_and_a_lack_of_memory_is_no_damage(monkeypatch, error, told):
    def load(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(InputError) as caught:
        read_picture(encoded(Image.fromarray(noise(3, 4))))
    assert str(caught.value) == told


# --- random crops

# Red tells the column, green the row: where a cut lay can be read off its pixels.
PLACES = np.zeros((40, 90, 3), np.uint8)
PLACES[..., 0] += np.arange(90, dtype=np.uint8)
PLACES[..., 1] += np.arange(40, dtype=np.uint8)[:, None]


def cut(framing: Framing, seed: int, image: np.ndarray = PLACES) -> np.ndarray:
    return framing.apply(Image.fromarray(image), np.random.default_rng(seed))


@pytest.mark.parametrize("grid", [(8, 8), (4, 8), (8, 4), (10, 3)])
def test_a_random_crop_has_the_grids_shape_and_lies_inside(grid):
    framing = Framing(*grid, crop="random", resample=Image.Resampling.NEAREST)
    scale = min(90 / grid[1], 40 / grid[0])
    seen = []
    for seed in range(50):
        pixels = cut(framing, seed).astype(int)
        assert pixels.shape == (*grid, 3)
        # a cut as large as fits: neighbours are one grid step apart in both directions
        assert np.abs(np.diff(pixels[..., 0], axis=1) - scale).max() < 1
        assert np.abs(np.diff(pixels[..., 1], axis=0) - scale).max() < 1
        seen.append(pixels[0, 0, :2])
    spread = np.ptp(np.array(seen), axis=0)
    free = np.array([90 - scale * grid[1], 40 - scale * grid[0]])
    assert (spread <= free + 1).all()
    assert (spread >= 0.7 * free - 1).all()  # everywhere, not only in the middle


def test_random_crops_are_equal_for_equal_seeds(processor):
    framing = Framing(8, 8, crop="random")
    np.testing.assert_array_equal(cut(framing, 3), cut(framing, 3))
    assert not np.array_equal(cut(framing, 3), cut(framing, 4))
    batch = [noise(20, 50, seed) for seed in range(3)]
    wide = ImageGPTImageProcessor(np.random.default_rng(0).uniform(-1, 1, (64, 3)), size=8, crop="random")
    first, again, other = (wide(batch, seed=seed, return_tensors="np")["input_ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_a_seed_crops_differ_from_call_to_call():
    framing = Framing(8, 8, crop="random")
    image = Image.fromarray(PLACES)
    assert any(not np.array_equal(framing.apply(image), framing.apply(image)) for _ in range(5))


def test_each_picture_of_a_batch_is_cut_elsewhere():
    processor = ImageGPTImageProcessor(size=8, crop="random", do_color_quantize=False)
    values = processor([PLACES] * 4, seed=0, return_tensors="np")["pixel_values"]
    assert len({value.tobytes() for value in values}) == 4


def test_a_picture_of_the_grids_shape_is_not_cut_at_random():
    image = noise(20, 20)
    np.testing.assert_array_equal(cut(Framing(8, 8, "random"), 0, image), cut(Framing(8, 8), 1, image))


# Choices that can't be.


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"background": (1, 2)}, "background must be three levels from 0 to 255"),
        ({"background": (1, 2, 256)}, "background must be three levels"),
        ({"background": "red"}, "background must be three levels"),
        ({"white": 0.0}, "white must be a number above 0"),
        ({"white": -1}, "white must be a number above 0"),
        ({"white": "1"}, "white must be a number above 0"),
    ],
)
def test_a_choice_that_can_not_be_is_not_the_picture_s_fault(processor, choice, words):
    with pytest.raises(InputError, match=words):
        Reading(**choice)
    with pytest.raises(InputError, match=words):
        processor(Image.new("RGBA", (4, 4)), on_error="skip", **choice)
