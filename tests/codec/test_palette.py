"""PaletteCodec against a float64 brute force, exact integers, and transformers' own processor."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegpt.checkpoint import EMBEDDED
from imagegpt.codec.nearest import CHUNK, LEVELS, nearest
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.tables import TO_BUILD
from imagegpt.errors import InputError

VALIDATION = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"
TIE = 1e-6

byte = st.integers(0, 255)
colours = st.lists(st.tuples(byte, byte, byte), min_size=1, max_size=32, unique=True)
pixels = st.lists(st.tuples(byte, byte, byte), min_size=1, max_size=40)


def uint8_palette(rgb) -> PaletteCodec:
    return PaletteCodec(np.array(rgb) / 127.5 - 1)


def distances(pixels_N3: np.ndarray, clusters_K3: np.ndarray) -> np.ndarray:
    scaled = pixels_N3.reshape(-1, 3).astype(np.float64) / 127.5 - 1
    return ((scaled[:, None] - clusters_K3.astype(np.float64)[None]) ** 2).sum(2)


def assert_same_but_for_ties(ids, expected, pixels_N3, clusters) -> None:
    """Ids may differ only where the two colours are equally far away."""
    ids, expected = np.ravel(ids), np.ravel(expected)
    assert ids.shape == expected.shape
    differ = np.flatnonzero(ids != expected)
    distance = distances(pixels_N3.reshape(-1, 3)[differ], clusters)
    row = np.arange(len(differ))
    assert (np.abs(distance[row, ids[differ]] - distance[row, expected[differ]]) <= TIE).all()


def brute_force(pixels_N3: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    flat = pixels_N3.reshape(-1, 3)
    return np.concatenate([distances(flat[i : i + 8192], clusters).argmin(1) for i in range(0, len(flat), 8192)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 17, 512])
def test_encode_equals_a_float64_brute_force(seed, count):
    rng = np.random.default_rng([seed, count])
    codec = PaletteCodec(rng.uniform(-1, 1, (count, 3)))
    image = rng.integers(0, 256, (7, 50, 3), dtype=np.uint8)
    assert_same_but_for_ties(codec.encode(image), brute_force(image, codec.clusters), image, codec.clusters)


def test_encode_equals_the_brute_force_over_more_than_one_chunk():
    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (8, 3)))
    image = rng.integers(0, 256, (2 * CHUNK + 5, 3), dtype=np.uint8)
    assert_same_but_for_ties(codec.encode(image), brute_force(image, codec.clusters), image, codec.clusters)


def test_bulk_path_equals_the_direct_path_and_the_brute_force():
    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (24, 3)))
    image = rng.integers(0, 256, (TO_BUILD, 3), dtype=np.uint8)
    direct = nearest(image, codec.clusters)
    np.testing.assert_array_equal(codec.encode(image), direct)
    assert_same_but_for_ties(direct, brute_force(image, codec.clusters), image, codec.clusters)


def test_ties_go_to_the_lowest_id():
    rng = np.random.default_rng(0)
    clusters = np.tile(rng.uniform(-1, 1, (6, 3)), (3, 1))  # each colour three times
    ids = PaletteCodec(clusters).encode(rng.integers(0, 256, (300, 3), dtype=np.uint8))
    assert set(ids.tolist()) <= set(range(6))
    assert len(set(ids.tolist())) > 1


def test_of_two_equally_near_colours_the_first_wins_whichever_comes_first():
    black = np.zeros((1, 3), np.uint8)  # exactly -1, so both distances are exactly 0.25
    near = [[-0.5, -1, -1], [-1, -0.5, -1], [-1, -1, -0.5]]
    assert PaletteCodec([[1, 1, 1], *near]).encode(black).tolist() == [1]
    assert PaletteCodec([*near[::-1], [1, 1, 1]]).encode(black).tolist() == [0]


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3), (2, 3, 4, 3), (0, 3), (0, 4, 4, 3)])
def test_encode_keeps_the_leading_shape(shape):
    ids = uint8_palette([[0, 0, 0], [255, 255, 255]]).encode(np.full(shape, 200, np.uint8))
    assert ids.shape == shape[:-1]
    assert ids.dtype == np.int64
    assert (ids == 1).all()


@given(colours)
@settings(max_examples=60, deadline=None)
def test_encode_inverts_decode_for_distinct_byte_colours(rgb):
    codec = uint8_palette(rgb)
    ids = np.arange(len(rgb))
    np.testing.assert_array_equal(codec.decode(ids), np.array(rgb, np.uint8))
    np.testing.assert_array_equal(codec.encode(codec.decode(ids)), ids)


@given(colours, pixels)
@settings(max_examples=60, deadline=None)
def test_no_other_colour_is_nearer_in_exact_integers(rgb, points):
    codec = uint8_palette(rgb)
    points = np.array(points, np.uint8)
    chosen = codec.decode(codec.encode(points)).astype(int)
    squared = ((points.astype(int)[:, None] - np.array(rgb)[None]) ** 2).sum(2)
    np.testing.assert_array_equal(((points.astype(int) - chosen) ** 2).sum(1), squared.min(1))


@given(st.integers(0, 2**32 - 1), st.integers(2, 64))
@settings(max_examples=40, deadline=None)
def test_permuting_the_palette_permutes_the_ids(seed, count):
    rng = np.random.default_rng(seed)
    clusters = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    points = rng.integers(0, 256, (64, 3), dtype=np.uint8)
    order = rng.permutation(count)
    permuted = order[PaletteCodec(clusters[order]).encode(points)]
    assert_same_but_for_ties(permuted, PaletteCodec(clusters).encode(points), points, clusters)


def test_decode_rounds_and_clips_as_the_paper_does():
    codec = PaletteCodec([[-1, 0, 1], [-1.2, 1.2, 0.5]])
    # 127.5 * 1 = 127.5 rounds to the even 128; 127.5 * 1.5 = 191.25.
    assert codec.decode([0, 1]).tolist() == [[0, 128, 255], [0, 255, 191]]


def test_decode_of_nothing_is_no_pixels():
    assert uint8_palette([[0, 0, 0]]).decode([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "words"),
    [([0, 3], "Id 3 "), ([-1], "Id -1 "), ([[7]], "Id 7 "), ([0.0], "whole numbers"), ([True], "whole numbers")],
)
def test_decode_refuses_what_is_no_colour(ids, words):
    codec = uint8_palette([[0, 0, 0], [9, 9, 9], [99, 99, 99]])  # 3 is SOS
    with pytest.raises(ValueError, match=words):
        codec.decode(ids)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 3), bool), np.zeros((4, 4), np.uint8), np.zeros((4, 3), np.int64), np.uint8(3), np.zeros(4)],
)
def test_encode_refuses_what_is_no_rgb(array):
    with pytest.raises(ValueError, match="float RGB"):
        uint8_palette([[0, 0, 0]]).encode(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_encode_refuses_numbers_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="not finite"):
        uint8_palette([[0, 0, 0]]).encode(np.array([[0, 0, bad]]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_in_the_palettes_scale(dtype):
    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (50, 3)))
    colours = rng.uniform(-1.5, 1.5, (5, 60, 3)).astype(dtype)  # outside of the cube too
    expected = ((colours[..., None, :].astype(np.float64) - codec.clusters) ** 2).sum(-1).argmin(-1)
    ids = codec.encode(colours)
    assert ids.shape == (5, 60)
    assert (ids == expected).mean() > 0.999  # but for what float32 rounds


def test_levels_as_floats_have_the_ids_of_the_levels():
    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (50, 3)))
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(codec.encode(LEVELS[image]), codec.encode(image))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_tensors_give_tensors_with_the_ids_of_arrays(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (50, 3)))
    image = torch.from_numpy(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    if dtype != "uint8":
        image = torch.from_numpy(LEVELS)[image.long()].to(getattr(torch, dtype))
    ids = codec.encode(image)
    assert ids.dtype == torch.int64
    array = image.numpy() if dtype == "uint8" else image.float().numpy()
    np.testing.assert_array_equal(ids.numpy(), codec.encode(array))
    with pytest.raises(ValueError, match="RGB"):
        codec.encode(image[..., :2])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_path_of_other_devices_gives_the_same_ids(dtype, monkeypatch):
    """There is no GPU here, so its path runs on a CPU tensor."""
    torch = pytest.importorskip("torch")
    from imagegpt.codec import torch_nearest

    rng = np.random.default_rng(0)
    codec = PaletteCodec(rng.uniform(-1, 1, (50, 3)))
    pixels = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels if dtype == "uint8" else LEVELS[pixels])
    monkeypatch.setattr(torch_nearest, "CHUNK", 10)
    ids = torch_nearest.encode_on_device(codec, image)
    np.testing.assert_array_equal(ids.numpy(), codec.encode(pixels))


def test_a_palette_is_saved_and_loaded(tmp_path):
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (20, 3)))
    codec.save(tmp_path / "palette.npy")
    assert PaletteCodec.load(tmp_path / "palette.npy").fingerprint == codec.fingerprint


@pytest.mark.parametrize("content", [b"", b"no array", "pickle", "shape", None])
def test_a_file_that_holds_no_palette_is_named(tmp_path, content):
    path = tmp_path / "palette.npy"
    if content == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif content == "shape":
        np.save(path, np.zeros((4, 2)))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"palette\.npy"):
        PaletteCodec.load(path)


@pytest.mark.parametrize("count", [1, 5, 512])
def test_the_picture_of_a_palette_shows_every_colour_in_order(count):
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (count, 3)))
    picture = np.asarray(codec.picture(cell=3))[1::3, 1::3].reshape(-1, 3)
    np.testing.assert_array_equal(picture[:count], codec.decode(np.arange(count)))
    assert (picture[count:] == 255).all()


@pytest.mark.parametrize("clusters", [[], np.zeros((4, 4)), np.zeros(3), [[0, 0, np.nan]], [[0, np.inf, 0]]])
def test_a_palette_that_is_none_is_refused(clusters):
    with pytest.raises(ValueError, match="palette"):
        PaletteCodec(clusters)


def test_fingerprint_tells_palettes_apart():
    clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32)
    same = PaletteCodec(clusters.tolist()).fingerprint
    assert PaletteCodec(clusters).fingerprint == same
    assert PaletteCodec(clusters[::-1]).fingerprint != same


def test_fit_is_the_same_for_the_same_seed_and_another_for_another():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    first, again, other = (PaletteCodec.fit(image, 12, seed=seed).clusters for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fit_sorts_from_dark_to_light():
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    luma = PaletteCodec.fit(image, 20).clusters @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_fit_of_exactly_k_colours_loses_nothing(seed):
    rng = np.random.default_rng(seed)
    rgb = rng.choice(256**3, 16, replace=False)
    rgb = np.stack([rgb >> 16, rgb >> 8 & 255, rgb & 255], 1).astype(np.uint8)
    image = rgb[np.concatenate([np.arange(16), rng.integers(0, 16, 240)])].reshape(16, 16, 3)
    codec = PaletteCodec.fit(image, 16, seed)
    np.testing.assert_array_equal(codec.decode(codec.encode(image)), image)


def test_fit_is_better_than_a_random_palette_of_the_same_size():
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 25, (50, 50, 3)) + rng.choice([40, 128, 210], (50, 50, 1))).clip(0, 255).astype(np.uint8)

    def rmse(codec: PaletteCodec) -> float:
        return float(np.sqrt(((codec.decode(codec.encode(image)).astype(float) - image) ** 2).mean()))

    random = min(rmse(PaletteCodec(rng.uniform(-1, 1, (16, 3)))) for _ in range(5))
    assert rmse(PaletteCodec.fit(image, 16)) < 0.8 * random


def test_fit_refuses_more_colours_than_there_are():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0] = 9
    with pytest.raises(ValueError, match="3 colours can't be fitted to 2 distinct"):
        PaletteCodec.fit(image, 3)


def test_fit_without_sklearn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[probe\]"):
        PaletteCodec.fit(np.zeros((4, 4, 3), np.uint8), 1)


def peer_ids(images, clusters) -> np.ndarray:
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    peer = ImageGPTImageProcessorPil(clusters=clusters, size={"height": 32, "width": 32})
    return np.concatenate([np.asarray(peer(image)["input_ids"]) for image in images])


def grid_pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))


SIZES = [(32, 32), (64, 64), (33, 31), (100, 60), (60, 100), (5, 7), (8, 200), (31, 32), (257, 129), (500, 375)]


@pytest.mark.parametrize("size", SIZES)
def test_ids_equal_those_of_transformers_on_random_pictures(size):
    from imagegpt.codec.processor import ImageGPTImageProcessor

    codec, _ = load_preprocessor(EMBEDDED["nano"])
    rng = np.random.default_rng(size)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = ImageGPTImageProcessor(codec.clusters, size=32)(image, return_tensors="np")["input_ids"]
    expected = peer_ids([image], codec.clusters)
    assert_same_but_for_ties(ours, expected, grid_pixels(image), codec.clusters)


def test_ids_equal_those_of_transformers_on_photographs():
    if not VALIDATION.is_file():
        pytest.skip(f"no CIFAR-10 at {VALIDATION}")
    import pyarrow.parquet as parquet

    from imagegpt.codec.processor import ImageGPTImageProcessor

    rows = next(parquet.ParquetFile(VALIDATION).iter_batches(200, columns=["image"])).to_pylist()
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    assert len(images) == 200
    codec, _ = load_preprocessor(EMBEDDED["nano"])
    ours = ImageGPTImageProcessor(codec.clusters, size=32)(images, return_tensors="np")["input_ids"]
    pixels_NHWC = np.stack([grid_pixels(image) for image in images])
    assert_same_but_for_ties(ours, peer_ids(images, codec.clusters), pixels_NHWC, codec.clusters)


def test_a_palette_is_saved_under_the_name_that_is_given(tmp_path):
    PaletteCodec([[-1, -1, -1], [1, 1, 1]]).save(tmp_path / "pal")
    assert [path.name for path in tmp_path.iterdir()] == ["pal"]
    assert len(PaletteCodec.load(tmp_path / "pal")) == 2
