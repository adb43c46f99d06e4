"""Ids back to pictures, the arguments of the processor one by one, and the files it was ever kept in."""

from __future__ import annotations

import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil as Peer

from imagegpt.codec import processor as module
from imagegpt.codec.feature_extractor import ImageGPTFeatureExtractor
from imagegpt.codec.preprocessor_file import framing_from
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.errors import InputError

CLUSTERS = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)
COLOURS = np.rint(127.5 * (CLUSTERS.astype(float) + 1)).astype(np.uint8)
HEIGHT, WIDTH = 4, 6
IDS = np.random.default_rng(1).integers(0, 16, (3, HEIGHT * WIDTH))
PIXELS = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
START = len(CLUSTERS)


@pytest.fixture
def processor() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(CLUSTERS, size={"height": HEIGHT, "width": WIDTH})


def shown(images) -> np.ndarray:
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    return np.stack([np.asarray(image) for image in images])


def expected(ids) -> np.ndarray:
    return COLOURS[np.asarray(ids).reshape(-1, HEIGHT, WIDTH)]


# --- post_process

KINDS = {
    "array": np.asarray,
    "int32": lambda ids: ids.astype(np.int32),
    "uint8": lambda ids: ids.astype(np.uint8),
    "list": np.ndarray.tolist,
    "list of arrays": list,
    "tuple": lambda ids: tuple(map(tuple, ids.tolist())),
    "tensor": torch.from_numpy,
    "list of tensors": lambda ids: list(torch.from_numpy(ids)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_ids_become_pictures(processor, kind):
    np.testing.assert_array_equal(shown(processor.post_process(KINDS[kind](IDS))), expected(IDS))


@pytest.mark.parametrize("kind", ["array", "list", "tensor"])
def test_one_row_is_one_picture(processor, kind):
    images = processor.post_process(KINDS[kind](IDS[0]))
    assert [image.size for image in images] == [(WIDTH, HEIGHT)]
    np.testing.assert_array_equal(shown(images), expected(IDS[:1]))


@pytest.mark.parametrize("kind", ["array", "list", "tensor"])
def test_the_start_token_that_generate_keeps_is_left_out(processor, kind):
    begun = np.concatenate([np.full((3, 1), START), IDS], 1)
    np.testing.assert_array_equal(shown(processor.post_process(KINDS[kind](begun))), expected(IDS))
    np.testing.assert_array_equal(shown(processor.post_process(KINDS[kind](begun[0]))), expected(IDS[:1]))


def test_one_id_too_many_without_a_start_token_is_refused(processor):
    begun = np.concatenate([np.full((3, 1), START), IDS], 1)
    begun[1, 0] = 0
    with pytest.raises(InputError, match="has 24 ids, not 25"):
        processor.post_process(begun)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (IDS[:, :-1], "A picture of 4 x 6 has 24 ids, not 23"),
        ([], "24 ids, not 0"),
        (3, "24 ids, not 1"),
        (IDS[None], r"not an array of shape \(1, 3, 24\)"),
        (IDS[None, :, 1:], r"not an array of shape"),
        ([[0] * 24, [0] * 23], "these differ"),
        (np.where(IDS[0, 0] == IDS, START, IDS), "Id 16 is no colour"),
        (IDS - 16, "Id -"),
        (IDS.astype(float), "whole numbers"),
        ([["a"] * 24], "whole numbers"),
    ],
)
def test_ids_that_are_no_pictures_are_refused_in_a_sentence(processor, ids, words):
    with pytest.raises(InputError, match=words):
        processor.post_process(ids)


def test_a_processor_without_a_palette_can_not_show_ids():
    with pytest.raises(InputError, match="clusters"):
        ImageGPTImageProcessor(size=2).post_process([0, 0, 0, 0])


def test_what_the_processor_gives_it_takes_back(processor):
    for kind in (None, "np", "pt"):
        ids = processor([PIXELS, PIXELS[::-1]], return_tensors=kind)["input_ids"]
        np.testing.assert_array_equal(
            shown(processor.post_process(ids)), expected(np.stack([np.asarray(i) for i in ids]))
        )


# --- reconstruct


def test_reconstruct_shows_what_a_model_sees(processor):
    images = [PIXELS, Image.fromarray(PIXELS[:, ::-1])]
    ids = processor(images, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(shown(processor.reconstruct(images)), expected(ids))


def test_reconstruct_of_its_own_picture_changes_nothing(processor):
    once = processor.reconstruct(PIXELS)
    np.testing.assert_array_equal(shown(processor.reconstruct(once)), shown(once))


def test_reconstruct_takes_the_overrides_of_the_call(processor):
    centred = ImageGPTImageProcessor(CLUSTERS, size={"height": HEIGHT, "width": WIDTH}, crop="center")
    tall = np.concatenate([PIXELS, PIXELS[::-1]])
    one, other = shown(processor.reconstruct(tall, crop="center")), shown(processor.reconstruct(tall))
    np.testing.assert_array_equal(one, shown(centred.reconstruct(tall)))
    assert (one != other).any()
    assert len(processor.reconstruct([PIXELS, b"text"], on_error="skip")) == 1


# --- pixel_values


def values(arguments: dict, call: dict) -> np.ndarray:
    ours = ImageGPTImageProcessor(CLUSTERS, size={"height": 8, "width": 8}, do_color_quantize=False, **arguments)
    return ours(PIXELS, return_tensors="np", **call)["pixel_values"]


SCALES = [
    {},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 1 / 127.5, "do_normalize": False},
    {"image_mean": [0.1, 0.2, 0.3]},
    {"image_std": [0.1, 0.2, 0.3]},
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"image_mean": 0.25, "image_std": 2.0},
    {"do_resize": False},
    {"resample": 3},
    {"do_convert_rgb": True},
]


@pytest.mark.parametrize("options", SCALES, ids=str)
def test_pixel_values_equal_those_of_transformers(options):
    theirs = Peer(CLUSTERS, size={"height": 8, "width": 8}, do_color_quantize=False)
    wanted = np.stack(theirs(PIXELS, **options)["pixel_values"])
    for ours in (values(options, {}), values({}, options)):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_an_override_is_stronger_than_the_constructors_argument():
    np.testing.assert_allclose(values({"image_mean": 0.1}, {"image_mean": 0.5}), values({}, {}), atol=1e-6)
    np.testing.assert_allclose(values({"do_rescale": False}, {"do_rescale": True}), values({}, {}), atol=1e-6)


@pytest.mark.parametrize("place", ["channels_last", ChannelDimension.LAST])
def test_data_format_says_where_the_channels_go(place):
    first, last = values({}, {}), values({}, {"data_format": place})
    assert (first.shape, last.shape) == ((1, 3, 8, 8), (1, 8, 8, 3))
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    np.testing.assert_array_equal(values({}, {"data_format": ChannelDimension.FIRST}), first)
    with pytest.raises(InputError, match="'NCHW' is no place for channels"):
        values({}, {"data_format": "NCHW"})


def test_input_data_format_says_where_they_are():
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    ours = ImageGPTImageProcessor(size=8, do_color_quantize=False)
    theirs = Peer(size={"height": 8, "width": 8}, do_color_quantize=False)
    for place in ("channels_first", "channels_last"):
        found = ours(array, input_data_format=place)["pixel_values"][0]
        np.testing.assert_allclose(found, theirs(array, input_data_format=place)["pixel_values"][0], atol=1e-5)


@pytest.mark.parametrize(
    "scale",
    [
        {"rescale_factor": 1.0},
        {"image_mean": [0.485, 0.456, 0.406]},
        {"image_mean": np.array([0.1, 0.5, 0.5])},
        {"image_mean": (0.5, 0.5)},
        {"image_mean": [0.5] * 4},
        {"image_std": 0.25},
    ],
    ids=str,
)
def test_ids_have_the_palettes_scale_and_no_other(processor, scale):
    (name,) = scale
    with pytest.raises(InputError, match=f"{name}=.* codec's scale is .* ids need"):
        processor(PIXELS, **scale)
    with pytest.raises(InputError, match=name):
        ImageGPTImageProcessor(CLUSTERS, size=8, **scale)(PIXELS)


@pytest.mark.parametrize(
    "scale",
    [
        {"rescale_factor": 0.003921568859368563},  # as float32
        {"image_mean": [0.5, 0.5, 0.5]},
        {"image_mean": np.full(3, 0.5), "image_std": np.full(3, 0.5)},
        {"image_mean": 0.5, "image_std": 0.5},
        *[{"do_rescale": False}, {"do_normalize": False}, {"do_convert_rgb": False}],
    ],
    ids=str,
)
def test_the_palettes_own_scale_may_be_said_in_any_way(processor, scale):
    ids = processor(PIXELS, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(processor(PIXELS, return_tensors="np", **scale)["input_ids"], ids)


# --- return_tensors


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize(("kind", "made"), [(None, list), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_tensors_of_the_kind_that_was_asked_for(processor, kind, made, quantize):
    (batch,) = processor([PIXELS, PIXELS], return_tensors=kind, do_color_quantize=quantize).values()
    assert type(batch) is made
    assert np.stack([np.asarray(row) for row in batch]).shape == ((2, 24) if quantize else (2, 3, 4, 6))
    dtype = np.int64 if quantize else np.float32
    assert all(np.asarray(row).dtype == dtype for row in batch)


@pytest.mark.parametrize(("kind", "library"), [("tf", "tensorflow"), ("jax", "jax"), ("mlx", "mlx")])
def test_tensors_of_libraries_that_are_missing_name_them(processor, kind, library):
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is here")
    with pytest.raises(ImportError, match=f'return_tensors="{kind}" needs {library}, which is not installed'):
        processor(PIXELS, return_tensors=kind)


@pytest.mark.parametrize(("kind", "name", "make"), [("tf", "tensorflow", "constant"), ("jax", "jax.numpy", "asarray")])
def test_tensors_of_other_libraries_are_made_by_them(processor, monkeypatch, kind, name, make):
    class Library:
        pass

    setattr(Library, make, staticmethod(lambda values: ("made", values)))
    monkeypatch.setattr(module, "import_module", {name: Library}.__getitem__)
    made, ids = processor(PIXELS, return_tensors=kind)["input_ids"]
    assert made == "made"
    np.testing.assert_array_equal(ids, processor(PIXELS, return_tensors="np")["input_ids"])


# --- files


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 5},
        {"size": {"height": 3, "width": 5}, "crop": "random", "resample": 0},
        {"background": (1, 2, 3), "white": 255.0},
        {"do_color_quantize": False, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        {"clusters": None, "do_color_quantize": False, "do_resize": False, "do_normalize": False, "do_rescale": False},
    ],
    ids=str,
)
def test_every_argument_is_saved_and_loaded(tmp_path, arguments):
    saved = ImageGPTImageProcessor(**{"clusters": CLUSTERS, **arguments})
    saved.save_pretrained(tmp_path)
    loaded = ImageGPTImageProcessor.from_pretrained(tmp_path)
    for name in module._SETTINGS:
        assert np.array_equal(getattr(loaded, name), getattr(saved, name)), name
    assert json.dumps(loaded.to_dict(), sort_keys=True) == json.dumps(saved.to_dict(), sort_keys=True)
    if arguments.get("crop") != "random":
        one, other = saved(PIXELS, return_tensors="np"), loaded(PIXELS, return_tensors="np")
        assert [(key, one[key].tolist()) for key in one] == [(key, other[key].tolist()) for key in other]


OLD = {"do_normalize": True, "do_resize": True, "resample": 2, "clusters": CLUSTERS.astype(float).tolist()}
FILES = {
    "4.9, by OpenAI's converter": {**OLD, "feature_extractor_type": "ImageGPTFeatureExtractor", "size": 8},
    "4.25": {
        **OLD,
        "feature_extractor_type": "ImageGPTFeatureExtractor",
        "image_processor_type": "ImageGPTImageProcessor",
        "do_color_quantize": True,
        "size": {"height": 8, "width": 8},
    },
    "5, fast": {**OLD, "image_processor_type": "ImageGPTImageProcessorFast", "size": {"height": 8, "width": 8}},
    "by hand": {"clusters": OLD["clusters"], "size": 8},
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_age_load_and_give_the_same_ids(tmp_path, name):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FILES[name]))
    loaded = ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size, loaded.size * 1) == ({"height": 8, "width": 8}, 8)
    np.testing.assert_array_equal(loaded.clusters, CLUSTERS)
    wanted = Peer(CLUSTERS, size={"height": 8, "width": 8})(PIXELS)["input_ids"][0]
    assert loaded(PIXELS)["input_ids"][0].tolist() == wanted.tolist()
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert again["size"] == {"height": 8, "width": 8}


def test_arguments_take_the_place_of_a_files_entries(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FILES["by hand"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ImageGPTImageProcessor.from_pretrained(tmp_path, size=4, crop="center", background=(0, 0, 0))
    assert (loaded.size, loaded.crop, loaded.background) == ({"height": 4, "width": 4}, "center", (0, 0, 0))


# --- skipped, names, sizes


@pytest.mark.parametrize("family", [ImageGPTImageProcessor, ImageGPTFeatureExtractor])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_result_says_what_was_skipped_and_its_keys_do_not(family):
    batch = family(CLUSTERS, size=2)([PIXELS, b"text"], on_error="skip", return_tensors="pt")
    assert [reason.split(":")[0] for reason in batch.skipped] == ["Picture 1"]
    assert list(batch.keys()) == ["input_ids"]  # or model(**batch) would take it for an argument
    assert batch["input_ids"].shape == (1, 4)


def test_every_name_that_transformers_had_is_the_one_processor():
    for name in ("ImageGPTImageProcessorFast", "ImageGPTImageProcessorPil"):
        assert getattr(module, name) is ImageGPTImageProcessor


@pytest.mark.parametrize("size", [[8, 8], (8, 6), [8]])
def test_a_size_of_two_numbers_is_refused_for_it_is_not_said_which_is_the_height(processor, size):
    for use in (
        lambda: framing_from({"size": size}),
        lambda: ImageGPTImageProcessor(CLUSTERS, size=size),
        lambda: processor(PIXELS, size=size),
    ):
        with pytest.raises(InputError, match="not said which is which"):
            use()
