"""Table of defects: image processor (modes, cost), and the processor's part of what is gone.

How a row becomes two tests is told in tests/defects.py. Pictures here have the grid's size already, and are not
resized: what is checked is how pixels become ids. The peer is transformers' processor for PIL: the other one needs
torchvision.
"""

from __future__ import annotations

import importlib.util
import io
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defects import OURS, PEER, defect

SIDE = 12
CLUSTERS = np.random.default_rng(0).uniform(-1, 1, (64, 3)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def nearest(rgb):
    """The ids of uint8 pixels, from all distances in float64."""
    scaled = np.asarray(rgb).reshape(-1, 1, 3) / 127.5 - 1
    return ((scaled - CLUSTERS.astype(float)) ** 2).sum(2).argmin(1)


def grey_ids(grey):
    return nearest(np.stack([grey] * 3, -1))


def make(family, **arguments):
    return family.processor(clusters=CLUSTERS, size={"height": SIDE, "width": SIDE}, **arguments)


def ids_of(family, picture):
    return np.asarray(make(family)(picture, do_resize=False, return_tensors="np")["input_ids"])[0]


@pytest.mark.parametrize("family", [OURS, PEER], ids=lambda family: family.name)
@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray])
def test_the_control_is_right_in_both(family, kind):
    """Without this, the checks below could fail for the peer because of how they ask."""
    assert ids_of(family, kind(PIXELS)).tolist() == nearest(PIXELS).tolist()
    resized = np.asarray(Image.fromarray(PIXELS).resize((SIDE, SIDE)))
    assert make(family)(kind(PIXELS))["input_ids"][0].tolist() == nearest(resized).tolist()


# Modes.


def grey_image(mode):
    """A picture in a mode without colours, and the grey that it shows."""
    half = np.where(np.arange(SIDE) < SIDE // 2, 255, 0).astype(np.uint8) * np.ones_like(GREY)
    if mode == "LA":  # the transparent half lies on white
        return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(half)]), np.where(half, GREY, 255)
    if mode == "1":
        return Image.fromarray(half).convert("1"), half
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257), GREY
    return Image.fromarray(GREY.astype({"L": np.uint8, "I": np.int32, "F": np.float32}[mode])), GREY


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I", "F", "I;16"])
@defect("image processor, modes", "L, LA, 1, I, F and 16-bit fail unless do_convert_rgb", peer="Error")
def test_grey_modes(family, mode):
    image, grey = grey_image(mode)
    assert image.mode == mode
    assert ids_of(family, image).tolist() == grey_ids(grey).tolist()


@pytest.mark.parametrize("mode", ["CMYK", "RGBA"])
@defect("image processor, modes", "CMYK fails unless do_convert_rgb", peer="ValueError")
def test_modes_of_four_channels(family, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    assert ids_of(family, image).tolist() == nearest(PIXELS).tolist()


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
@defect("image processor, modes", "YCbCr and HSV silently give wrong ids")
def test_modes_of_three_other_channels(family, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    assert ids_of(family, image).tolist() == nearest(image.convert("RGB")).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@defect("image processor, modes", "floats 0..1 silently give wrong ids")
def test_floats_between_0_and_1(family, dtype):
    assert ids_of(family, (PIXELS / 255).astype(dtype)).tolist() == nearest(PIXELS).tolist()


@defect("image processor, modes", "16-bit fails")
def test_16_bit_arrays(family):
    assert ids_of(family, PIXELS.astype(np.uint16) * 257).tolist() == nearest(PIXELS).tolist()


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE, 1), (1, SIDE, SIDE)], ids=str)
@defect("image processor, modes", "grey arrays fail", peer="Error")
def test_grey_arrays(family, shape):
    assert ids_of(family, GREY.reshape(shape)).tolist() == grey_ids(GREY).tolist()


@pytest.mark.parametrize("height", [1, 3, 4])
@defect("image processor, modes", "heights 1 and 4 are read as channels", peer="Error")
def test_low_arrays(family, height):
    pixels = PIXELS[:height]
    assert ids_of(family, pixels).tolist() == nearest(pixels).tolist()


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)], ids=str)
@defect("image processor, modes", "zero-size gives ids", peer="Error|Failed")
def test_pictures_without_pixels(family, shape):
    with pytest.raises(ValueError, match="is no picture"):
        make(family)(np.zeros(shape, np.uint8))


@defect("image processor, modes", "zero-size gives ids", peer="Error|Failed")
def test_images_without_pixels(family):
    with pytest.raises(ValueError, match="no pixels"):
        make(family)(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("orientation", range(2, 9))
@defect("image processor, modes", "EXIF is ignored")
def test_exif_orientation(family, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    turns = {2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2)}
    turns |= {6: np.rot90(PIXELS, -1), 7: np.rot90(PIXELS, 2).transpose(1, 0, 2), 8: np.rot90(PIXELS)}
    assert ids_of(family, Image.open(file)).tolist() == nearest(turns[orientation]).tolist()


@defect("image processor, modes", "ragged batches fail obscurely", peer="ValueError|AssertionError")
def test_ragged_batches(family):
    with pytest.raises(ValueError, match="2 different sizes"):
        make(family)([PIXELS, PIXELS[:, :7]], do_resize=False)


# Cost.


def peak_mib(family, pictures, clusters):
    """The most memory that one call takes beside its arguments."""
    side = pictures[0].shape[0]
    processor = family.processor(clusters=clusters, size={"height": side, "width": side})
    processor(pictures[:1])
    tracemalloc.start()
    try:
        ids = processor(pictures)["input_ids"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(ids) == len(pictures)
    return peak / 2**20


# In float64, as transformers reads it from a file.
PALETTE = np.random.default_rng(0).uniform(-1, 1, (512, 3))
EXAMPLES = Path(__file__).parents[2] / "examples"


def noise(count, side):
    """The dearest pictures: hardly a colour comes twice."""
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(("count", "side"), [(16, 32), (1, 128)])
@defect("image processor, cost", "a float64 distance for each pixel and colour: 770 MiB for 64 pictures of 32 x 32")
def test_memory_is_bounded(family, count, side):
    assert peak_mib(family, noise(count, side), PALETTE) < 60  # transformers: 192


# At these sizes, transformers' need is not for every machine: 770 MiB and 3 GiB.
@pytest.mark.parametrize(("count", "side", "limit"), [(64, 32, 60), (1, 512, 200)])
def test_memory_stays_bounded_where_the_pictures_are_more(count, side, limit):
    assert peak_mib(OURS, noise(count, side), PALETTE) < limit


# The speed is no test's matter: benchmarks/processor.py.

# Gone from the current release.


@defect("gone from the current release", "ImageGPTFeatureExtractor", peer="AttributeError")
def test_the_first_name_of_the_processor(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        extractor = family.package.ImageGPTFeatureExtractor(clusters=CLUSTERS, size=SIDE)
    assert isinstance(extractor, family.processor)
    assert extractor(PIXELS, return_tensors="np")["input_ids"][0].tolist() == nearest(PIXELS).tolist()


@pytest.mark.parametrize(("name", "library"), [("tf", "tensorflow"), ("jax", "jax")])
@defect("gone from the current release", "return_tensors", peer="ValueError: .*TensorType")
def test_tensors_of_other_libraries(family, name, library):
    if importlib.util.find_spec(library) is None:
        with pytest.raises(ImportError, match=library):
            make(family)(PIXELS, return_tensors=name)
    else:
        ids = make(family)(PIXELS, return_tensors=name)["input_ids"]
        assert type(ids).__module__.partition(".")[0] in (library, "jaxlib")
        assert np.asarray(ids)[0].tolist() == nearest(PIXELS).tolist()
