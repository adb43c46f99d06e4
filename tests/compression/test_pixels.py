"""The original pixels, given the ids: every size and kind of picture comes back, and the parts do what they say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.compression.canvas import Canvas, positions
from imagegpt.compression.cells import Cells
from imagegpt.compression.coder import DamagedStream, Decoder, Encoder
from imagegpt.compression.frequencies import spare_of
from imagegpt.compression.pixels import TOGETHER, Form, code_pixels, groups
from imagegpt.compression.prediction import CLASSES, solve
from imagegpt.compression.student import REACH, SCALES, UNIT, WIDTHS, cumulative, distribution, level_weights

pytest.importorskip("constriction")
GRID = (8, 8)


@pytest.fixture(scope="module")
def codec():
    return PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))


def photograph(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Something smooth, with noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    pixels = np.clip(large + rng.integers(-3, 4, large.shape), 0, 255).astype(np.uint8)
    return pixels if channels == 3 else pixels[..., :1]


def ids_of(codec: PaletteCodec, framing: Framing, pixels: list[np.ndarray]) -> np.ndarray:
    images = [Image.fromarray(each if each.shape[2] == 3 else each[..., 0]).convert("RGB") for each in pixels]
    return codec.encode(np.stack([framing.apply(image) for image in images])).reshape(len(pixels), -1)


def round_trip(codec: PaletteCodec, framing: Framing, pixels: list[np.ndarray], ids: np.ndarray | None = None) -> int:
    """Bytes; the pictures came back."""
    ids = ids_of(codec, framing, pixels) if ids is None else ids
    forms, encoder = [Form(*each.shape) for each in pixels], Encoder()
    code_pixels(encoder, ids, forms, codec, framing, pixels)
    words = encoder.words()
    found = code_pixels(Decoder(words), ids, forms, codec, framing)
    for mine, theirs in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    return len(words)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 20), (8, 8), (1, 9), (9, 1), (2, 2)])
def test_every_size_comes_back(codec, size, channels):
    for crop in ("none", "center"):
        round_trip(codec, Framing(*GRID, crop), [photograph(*size, channels)])


def test_a_photograph_takes_less_than_as_png(codec):
    pixels = photograph(150, 100, 3)
    taken = round_trip(codec, Framing(*GRID), [pixels])
    assert 8 * taken < 0.8 * 8 * pixels.size


def test_sizes_and_kinds_in_one_batch(codec):
    shapes = [(8, 8, 3), (5, 7, 3), (8, 8, 1), (8, 8, 3), (5, 7, 1), (20, 3, 3)]
    round_trip(codec, Framing(*GRID), [photograph(*shape, seed=seed) for seed, shape in enumerate(shapes)])


@settings(max_examples=12)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_noise_comes_back_whatever_the_ids_say(height, width, channels, seed):
    """Also where ids are not those of the pixels: a level that can't be may still be coded."""
    rng = np.random.default_rng(seed)
    codec = PaletteCodec([[-1, -1, -1], [0, 0.5, 0], [1, 1, 1]])
    pixels = [rng.integers(0, 256, (height, width, channels), np.uint8) for _ in range(2)]
    ids = rng.integers(0, 3, (2, 144))
    framing = Framing(height, width) if rng.random() < 0.5 else Framing(12, 12)
    round_trip(codec, framing, pixels, ids[:, : framing.height * framing.width])


def test_black_white_and_flat_pictures_cost_next_to_nothing(codec):
    for level in (0, 128, 255):
        flat = [np.full((40, 40, 3), level, np.uint8)]
        assert round_trip(codec, Framing(*GRID), flat) < 500


def test_a_wrong_stream_stops_or_gives_pictures(codec):
    framing, pixels = Framing(*GRID), [photograph(12, 12, 3)]
    ids = ids_of(codec, framing, pixels)
    with pytest.raises(DamagedStream):
        code_pixels(Decoder(b""), ids, [Form(600, 600, 3)], codec, framing)


def test_each_pixel_is_coded_once_and_after_what_it_is_guessed_from(codec):
    for size in ((1, 1), (1, 7), (7, 1), (5, 3), (4, 9)):
        canvas = Canvas(size, np.zeros((1, 64, 3), np.uint8), Framing(*GRID))
        order = {}
        for step, pixels in enumerate(canvas.steps()):
            for pixel in pixels.tolist():
                assert pixel not in order
                order[pixel] = step
        height, width = size
        assert sorted(order) == list(range(height * width))
        for pixel, step in order.items():
            y, x = divmod(pixel, width)
            for down, right in ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0)):
                if y + down >= 0 and 0 <= x + right < width:
                    assert order[(y + down) * width + x + right] < step


def test_groups_keep_the_order_and_bound_the_memory():
    forms = [Form(8, 8, 3)] * 3000 + [Form(2, 2, 1), Form(8, 8, 3)]
    found = list(groups(forms))
    assert sorted(number for _, numbers in found for number in numbers) == list(range(len(forms)))
    assert all(len(numbers) * min(form.height, (form.width + 1) // 2) <= TOGETHER for form, numbers in found)
    assert [form for form, _ in groups([Form(9000, 9000, 3)] * 2)] == [Form(9000, 9000, 3)] * 2


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (5, 3), (30, 17), (17, 30), (1, 50)])
def test_the_grid_lies_where_the_framing_put_it(size):
    """Against the rule in fractions."""
    rows, columns = positions(size, Framing(*GRID, "none"))
    assert rows.tolist() == [min(7, (2 * y + 1) * 8 // (2 * size[0])) for y in range(size[0])]
    assert columns.tolist() == [min(7, (2 * x + 1) * 8 // (2 * size[1])) for x in range(size[1])]
    rows, columns = positions(size, Framing(*GRID, "center"))
    scale = Fraction(min(size), 8)
    for count, found in ((size[0], rows), (size[1], columns)):
        first = (Fraction(count) - 8 * scale) / 2
        assert found.tolist() == [int(min(7, max(0, (y + Fraction(1, 2) - first) // scale))) for y in range(count)]


def test_cells_hold_what_the_codec_says(codec):
    cells, rng = Cells(codec.table, len(codec)), np.random.default_rng(1)
    pixels = rng.integers(0, 256, (50, 3), np.uint8)
    ids = codec.encode(pixels)
    channels = list(pixels.astype(np.int64).T)
    rows = np.arange(len(pixels))
    for channel in range(3):
        allowed = cells.levels(ids, channels[:channel])
        assert allowed[rows, channels[channel]].all() and not allowed.all()
    blue = cells.levels(ids, channels[:2])
    for row in range(5):
        line = np.repeat(pixels[row : row + 1], 256, 0)
        line[:, 2] = np.arange(256)
        np.testing.assert_array_equal(blue[row], codec.encode(line) == ids[row])
    green = cells.levels(ids[:1], channels[:1])[0]
    cube = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), 2).reshape(-1, 2)
    plane = np.concatenate([np.full((len(cube), 1), pixels[0, 0]), cube], 1).astype(np.uint8)
    np.testing.assert_array_equal(green, (codec.encode(plane) == ids[0]).reshape(256, 256).any(1))
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    np.testing.assert_array_equal(cells.greys(ids[:3]), codec.encode(grey)[None] == ids[:3, None])


def test_students_distribution_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    places = np.linspace(-40, 40, 801)
    for degrees in (2, 4, 6, 10):
        np.testing.assert_allclose(distribution(places, degrees), stats.t.cdf(places, degrees), atol=1e-14)


def test_tables_rise_and_levels_share_all_there_is():
    table = cumulative()
    assert table.shape == (SCALES, 2 * REACH + 1) and (np.diff(table, axis=1) >= 0).all()
    rng = np.random.default_rng(0)
    means, scales = rng.integers(0, 255 * UNIT + 1, 500), rng.integers(0, SCALES, 500)
    weights = level_weights(means, scales)
    assert weights.min() >= 0 and (weights.sum(1) == spare_of(256)).all()
    sharp = level_weights(np.array([100 * UNIT]), np.array([0]))[0]
    assert sharp.argmax() == 100 and (level_weights(np.array([0]), np.array([9]))[0].argmax()) == 0
    # Constants that a mathematics library rounds: none is so near a half that another one could round it otherwise.
    exact = 4096 * 0.08 * 2.0 ** (np.arange(SCALES) / 6)
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6 and (np.diff(WIDTHS) > 0).all()
    assert (np.diff(CLASSES) > 0).all()


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_elimination_solves(size, seed):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((2, size, size))
    matrices = half @ half.transpose(0, 2, 1) + np.eye(size)
    right = rng.standard_normal((2, size))
    expected = np.linalg.solve(matrices, right[..., None])[..., 0]
    np.testing.assert_allclose(solve(matrices, right), expected, rtol=1e-8, atol=1e-9)
