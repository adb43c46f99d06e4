"""Features are made once for a model, its palette and the content of the data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPT
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.extraction import Extraction
from imagegpt.probe.cache import cached_features


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"data/{label}/{number}.png")
    return tmp_path / "data"


@pytest.fixture
def model(tiny_folder):
    return ImageGPT.from_pretrained(tiny_folder, backend="onnx")


@pytest.fixture
def passes(monkeypatch):
    """The layers of each pass over the pictures."""
    made, run = [], Extraction.run

    def counted(self, *arguments, **options):
        made.append(list(self.layers))
        return run(self, *arguments, **options)

    monkeypatch.setattr(Extraction, "run", counted)
    return made


def test_features_labels_and_classes(pictures, model, tmp_path):
    found = cached_features(model, open_source(pictures), [2, 0], tmp_path / "cache")
    paths = sorted(pictures.rglob("*.png"))
    for layer in (0, 2):
        np.testing.assert_array_equal(found.layers[layer], model.features(paths, layer))
    assert list(found.layers) == [2, 0]
    assert found.labels is not None and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.classes == ("cat", "dog")


def test_the_second_time_nothing_is_run(pictures, model, tmp_path, passes):
    first = cached_features(model, open_source(pictures), [0, 2], tmp_path / "cache")
    second = cached_features(model, open_source(pictures), [0, 2], tmp_path / "cache")
    assert passes == [[0, 2]]
    np.testing.assert_array_equal(first.layers[2], second.layers[2])


def test_only_missing_layers_are_run(pictures, model, tmp_path, passes):
    cached_features(model, open_source(pictures), [0, 2], tmp_path / "cache")
    found = cached_features(model, open_source(pictures), [0, 1, 2], tmp_path / "cache")
    assert passes == [[0, 2], [1]]
    np.testing.assert_array_equal(found.layers[1], model.features(sorted(pictures.rglob("*.png")), 1))


def test_the_same_content_elsewhere_is_known(pictures, model, tmp_path, passes):
    cached_features(model, open_source(pictures), [1], tmp_path / "cache")
    moved = shutil.copytree(pictures, tmp_path / "moved")
    cached_features(model, open_source(moved), [1], tmp_path / "cache")
    assert passes == [[1]]


@pytest.mark.parametrize("change", ["picture", "label", "limit", "model", "on_error"])
def test_other_content_is_run_again(pictures, model, tiny_folder, tmp_path, passes, change):
    cached_features(model, open_source(pictures), [1], tmp_path / "cache")
    limit, on_error = None, "raise"
    if change == "picture":
        Image.new("RGB", (8, 8)).save(pictures / "cat/0.png")
    if change == "label":
        (pictures / "cat").rename(pictures / "bird")
    if change == "limit":
        limit = 4
    if change == "on_error":
        on_error = "skip"
    if change == "model":
        folder = shutil.copytree(tiny_folder, tmp_path / "other")
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        model = ImageGPT.from_pretrained(folder, backend="onnx")
    found = cached_features(model, open_source(pictures, limit=limit), [1], tmp_path / "cache", on_error)
    assert len(passes) == 2
    assert len(found.numbers) == (limit or 6)


def test_an_interrupted_pass_is_continued(pictures, model, tmp_path, monkeypatch):
    monkeypatch.setattr("imagegpt.extraction.PART", 2)
    whole = cached_features(model, open_source(pictures), [1, 2], tmp_path / "whole")
    made, features_of = [], ImageGPT.features_of

    def stop_at_the_second(self, *arguments, **options):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return features_of(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ImageGPT, "features_of", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            cached_features(model, open_source(pictures), [1, 2], tmp_path / "cache")
    found = cached_features(model, open_source(pictures), [1, 2], tmp_path / "cache")
    for layer in (1, 2):
        np.testing.assert_array_equal(found.layers[layer], whole.layers[layer])
    assert not list((tmp_path / "cache").rglob("*.parts"))


def test_a_damaged_file_is_told(pictures, model, tmp_path):
    cached_features(model, open_source(pictures), [1], tmp_path / "cache")
    [file] = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="layers-1"):
        cached_features(model, open_source(pictures), [1], tmp_path / "cache")


def test_a_folder_that_cannot_be_made(pictures, model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be made"):
        cached_features(model, open_source(pictures), [1], tmp_path / "file")
