"""ImageGPTImageProcessor: the files it shares with transformers, its overrides and its errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.errors import InputError

CLUSTERS = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(array: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))


def brute_force(pixels: np.ndarray, clusters: np.ndarray = CLUSTERS) -> np.ndarray:
    scaled = pixels.reshape(-1, 1, 3) / 127.5 - 1
    return ((scaled - clusters.astype(float)) ** 2).sum(2).argmin(1)


@pytest.fixture
def processor() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(CLUSTERS, size=8)


def peer(**arguments):
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    return ImageGPTImageProcessorPil(clusters=CLUSTERS, **arguments)


def test_ids_are_the_nearest_colours_row_by_row(processor):
    images = [picture(seed=seed) for seed in range(3)]
    ids = processor(images, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, np.stack([brute_force(resized(image, 8, 8)) for image in images]))
    assert (ids.shape, ids.dtype) == ((3, 64), np.int64)


def test_pictures_of_several_sizes_make_one_batch(processor):
    images = [picture(20, 30), picture(9, 5), Image.new("L", (50, 40), 7)]
    ids = processor(images, return_tensors="np")["input_ids"]
    for row, image in zip(ids, images, strict=True):
        np.testing.assert_array_equal(row, processor(image, return_tensors="np")["input_ids"][0])


@pytest.mark.parametrize(("kind", "expected"), [("np", np.ndarray), ("pt", torch.Tensor), (None, list)])
def test_return_tensors(processor, kind, expected):
    ids = processor([picture(), picture(seed=1)], return_tensors=kind)["input_ids"]
    assert isinstance(ids, expected)
    assert len(ids) == 2
    assert (np.asarray(ids) == processor([picture(), picture(seed=1)], return_tensors="np")["input_ids"]).all()
    if kind == "pt":
        assert ids.dtype == torch.int64


def test_save_and_load(tmp_path):
    saved = ImageGPTImageProcessor(CLUSTERS, size={"height": 4, "width": 6}, resample=3, crop="center")
    saved.save_pretrained(tmp_path)
    loaded = ImageGPTImageProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.clusters, CLUSTERS)
    names = ("do_resize", "size", "resample", "do_normalize", "do_color_quantize", "crop")
    assert [getattr(loaded, name) for name in names] == [True, {"height": 4, "width": 6}, 3, True, True, "center"]
    image = picture()
    assert (loaded(image, return_tensors="np")["input_ids"] == saved(image, return_tensors="np")["input_ids"]).all()


def test_a_file_by_transformers_loads_and_gives_the_same_ids(tmp_path):
    theirs = peer(size={"height": 8, "width": 8})
    theirs.save_pretrained(tmp_path)
    ours = ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert (ours.size, ours.crop) == ({"height": 8, "width": 8}, "none")
    images = [picture(seed=seed) for seed in range(4)]
    expected = np.concatenate([theirs(image)["input_ids"] for image in images])
    np.testing.assert_array_equal(ours(images, return_tensors="np")["input_ids"], expected)


def test_transformers_loads_our_file_and_gives_the_same_ids(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    theirs = type(peer()).from_pretrained(tmp_path)
    images = [picture(seed=seed) for seed in range(4)]
    theirs_ids = np.concatenate([theirs(image)["input_ids"] for image in images])
    np.testing.assert_array_equal(theirs_ids, processor(images, return_tensors="np")["input_ids"])


def test_the_file_is_json_without_numpy_and_names_the_class(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config["image_processor_type"] == "ImageGPTImageProcessor"
    np.testing.assert_array_equal(np.float32(config["clusters"]), CLUSTERS)


@pytest.mark.parametrize("size", [8, {"height": 8, "width": 8}])
def test_size_is_a_side_or_a_dict(size):
    assert ImageGPTImageProcessor(CLUSTERS, size=size).size == {"height": 8, "width": 8}


def test_the_default_size_is_that_of_transformers():
    assert ImageGPTImageProcessor(CLUSTERS).size == {"height": 256, "width": 256}
    assert (peer().size["height"], peer().size["width"]) == (256, 256)


def test_from_codec_takes_palette_and_framing_over():
    codec, framing = PaletteCodec(CLUSTERS), Framing(4, 8, "center")
    image = picture()
    ids = ImageGPTImageProcessor.from_codec(codec, framing)(image, return_tensors="np")["input_ids"][0]
    np.testing.assert_array_equal(ids, brute_force(framing.apply(Image.fromarray(image))))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"size": 4}, lambda image: brute_force(resized(image, 4, 4))),
        ({"size": {"height": 4, "width": 6}}, lambda image: brute_force(resized(image, 6, 4))),
        ({"do_resize": False}, brute_force),
        ({"clusters": CLUSTERS[:5]}, lambda image: brute_force(resized(image, 8, 8), CLUSTERS[:5])),
        ({"resample": 0}, lambda image: brute_force(np.asarray(Image.fromarray(image).resize((8, 8), 0)))),
        (
            {"crop": "center"},
            lambda image: brute_force(Framing(8, 8, "center").apply(Image.fromarray(image))),
        ),
        ({"do_normalize": False}, lambda image: brute_force(resized(image, 8, 8))),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_overrides_hold_for_one_call(processor, override, expected):
    image = picture()
    before = processor(image, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(processor(image, return_tensors="np", **override)["input_ids"][0], expected(image))
    np.testing.assert_array_equal(processor(image, return_tensors="np")["input_ids"], before)


def test_a_misspelt_override_is_a_type_error(processor):
    with pytest.raises(TypeError, match="'do_resise'"):
        processor(picture(), do_resise=False)


@pytest.mark.parametrize("normalise", [True, False])
def test_without_quantising_the_pixels_come_out(processor, normalise):
    image = picture()
    result = processor(image, do_color_quantize=False, do_normalize=normalise, return_tensors="np")
    assert list(result) == ["pixel_values"]
    expected = resized(image, 8, 8).transpose(2, 0, 1).astype(float)
    np.testing.assert_allclose(
        result["pixel_values"][0], expected / 127.5 - 1 if normalise else expected / 255, atol=1e-6
    )
    assert result["pixel_values"].dtype == np.float32


def test_normalised_pixels_equal_those_of_transformers(processor):
    theirs = peer(size={"height": 8, "width": 8}, do_color_quantize=False)(picture())["pixel_values"][0]
    ours = processor(picture(), do_color_quantize=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_pixels_need_no_palette_but_ids_do():
    processor = ImageGPTImageProcessor(size=8)
    assert processor(picture(), do_color_quantize=False, return_tensors="np")["pixel_values"].shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="clusters"):
        processor(picture())


def test_without_resizing_all_sizes_must_be_equal(processor):
    with pytest.raises(InputError, match="2 different sizes"):
        processor([picture(8, 8), picture(8, 9)], do_resize=False)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": "8"}, {"crop": "middle"}, {"clusters": [[1, 2]]}])
def test_arguments_that_can_not_be_used(arguments):
    with pytest.raises(ValueError, match=r"height|crop|palette"):
        ImageGPTImageProcessor(**{"clusters": CLUSTERS, **arguments})


def test_a_size_by_its_shortest_edge_is_refused_in_words():
    with pytest.raises(ValueError, match="size"):
        ImageGPTImageProcessor(CLUSTERS, size={"shortest_edge": 8})


# What transformers documents of floats, lists and arguments.


def test_floats_that_were_rescaled_before_are_not_rescaled_again():
    array = picture()
    floats = array.astype(np.float32) / 255
    ours = ImageGPTImageProcessor(size=8, white=1.0)
    for given in (floats, torch.from_numpy(floats), [floats]):
        found = ours(given, do_rescale=False, do_color_quantize=False, return_tensors="np")["pixel_values"]
        expected = ours(array, do_color_quantize=False, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(found, expected)
    theirs = peer(size={"height": 8, "width": 8})
    told = theirs(floats, do_rescale=False, do_color_quantize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, told, atol=0.02)  # transformers interpolates floats, we do levels
    levels = ours(array, do_rescale=False, do_normalize=False, do_color_quantize=False)["pixel_values"][0]
    assert levels.max() > 100


def test_lists_of_lists_of_pictures_are_one_batch(processor):
    images = [Image.fromarray(picture(seed=number)) for number in range(3)]
    flat = processor(images, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(processor([[images[0]], images[1:]], return_tensors="np")["input_ids"], flat)


@pytest.mark.parametrize("given", [picture().tolist(), [picture().tolist()], (picture()[..., 0].tolist(),)])
def test_lists_of_numbers_are_no_pictures(processor, given):
    with pytest.raises(InputError, match="A list is no picture: make an array of its numbers"):
        processor(given)


@pytest.mark.parametrize("word", ["ignore", "rase", None])
def test_a_word_that_is_not_skip_leaves_nothing_out(processor, word):
    with pytest.raises(InputError, match="there is no such file"):
        processor([picture(), "nofile"], on_error=word)


def test_a_reconstruction_follows_what_is_said_for_the_call(processor):
    array, other = picture(), np.linspace(-1, 1, 12).reshape(4, 3)
    found = processor.reconstruct(array, clusters=other)[0]
    expected = PaletteCodec(other)
    np.testing.assert_array_equal(np.asarray(found), expected.decode(expected.encode(resized(array, 8, 8))))
    assert processor.reconstruct(array, do_resize=False)[0].size == (30, 20)
    assert processor.reconstruct(array, size=4)[0].size == (4, 4)
    with pytest.raises(InputError, match="without do_color_quantize"):
        processor.reconstruct(array, do_color_quantize=False)


def test_arguments_of_transformers_that_ask_for_nothing(processor):
    idle = {"device": "cpu", "do_pad": False, "do_center_crop": False, "crop_size": None, "disable_grouping": True}
    plain = processor(picture(), return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(processor(picture(), return_tensors="np", **idle)["input_ids"], plain)
    for name, value in (("do_center_crop", True), ("device", "cuda"), ("do_pad", True), ("colour", False)):
        with pytest.raises(TypeError, match=name):
            processor(picture(), **{name: value})
