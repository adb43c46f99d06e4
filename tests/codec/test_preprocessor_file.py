"""preprocessor_config.json: a round trip, what may be left out, and errors that name the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import NAME, framing_from, load_preprocessor, save_preprocessor
from imagegpt.errors import InputError

GOOD = {"clusters": [[-1, -1, -1], [1, 1, 1]], "size": 4}


@pytest.mark.parametrize("framing", [Framing(8, 8), Framing(4, 6, "center", 3)])
def test_round_trip(tmp_path, framing):
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (32, 3)))
    save_preprocessor(tmp_path, codec, framing)
    loaded, loaded_framing = load_preprocessor(tmp_path)
    np.testing.assert_array_equal(loaded.clusters, codec.clusters)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded_framing == framing
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("crop", ["none", "center"])
def test_both_processors_read_it(tmp_path, crop):
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    from imagegpt.codec.processor import ImageGPTImageProcessor

    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    save_preprocessor(tmp_path, codec, Framing(8, 8, crop))
    image = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)  # square: crop is the same
    ours = ImageGPTImageProcessor.from_pretrained(tmp_path)
    theirs = ImageGPTImageProcessorPil.from_pretrained(tmp_path)
    assert ours.crop == crop
    np.testing.assert_array_equal(ours(image, return_tensors="np")["input_ids"][0], theirs(image)["input_ids"][0])


def test_what_a_file_may_leave_out(tmp_path):
    (tmp_path / NAME).write_text(json.dumps(GOOD))
    codec, framing = load_preprocessor(tmp_path)
    assert (len(codec), framing) == (2, Framing(4, 4, "none", 2))


def test_size_as_a_dict():
    assert framing_from({"size": {"height": 3, "width": 5}}) == Framing(3, 5)


def test_a_folder_without_the_file(tmp_path):
    with pytest.raises(InputError, match="has no preprocessor_config"):
        load_preprocessor(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"clusters": GOOD["clusters"]}),
        json.dumps({"size": 4}),
        json.dumps({**GOOD, "size": {"shortest_edge": 4}}),
        json.dumps({**GOOD, "size": "big"}),
        json.dumps({**GOOD, "size": 0}),
        json.dumps({**GOOD, "crop": "middle"}),
        json.dumps({**GOOD, "clusters": [[0, 0]]}),
        json.dumps({**GOOD, "clusters": None}),
        json.dumps({**GOOD, "clusters": "red"}),
        json.dumps({**GOOD, "clusters": [[0, 0, float("nan")]]}),
        "\udcff",
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=NAME):
        load_preprocessor(tmp_path)
