"""What a run is trained on: pictures that become ids once, the palette, and what is refused or told of."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.errors import InputError
from imagegpt.train.dataset import Dataset, open_dataset, warn_of_empty_classes
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Recipe
from making import put
from training_runs import CODEC, ids, picture, pictures, tokens

ALONE = Processes(0, 1, torch.device("cpu"))


def opened(out: Path, working=None, **values) -> Dataset:
    return open_dataset(Recipe.from_flat({"grid": "8x8", **values}, "test"), out, ALONE, working)


@pytest.fixture
def palette(tmp_path) -> str:
    CODEC.save(tmp_path / "palette.npy")
    return str(tmp_path / "palette.npy")


@pytest.fixture
def out(tmp_path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def expected(framing, numbers) -> np.ndarray:
    processor = ImageGPTImageProcessor.from_codec(CODEC, framing)
    return np.stack([processor(picture(number))["input_ids"][0] for number in numbers])


def test_pictures_become_ids_in_the_folder_of_the_run(tmp_path, out, palette):
    told = []
    data = pictures(tmp_path / "data", 10)
    found = opened(out, lambda *at: told.append(at), train=data, codec=palette)
    order = [*range(0, 10, 2), *range(1, 10, 2)]  # by class
    np.testing.assert_array_equal(found.train.ids_NT, expected(found.framing, order))
    assert found.train.path == str(out / "data" / "train")
    assert (found.codec.fingerprint, found.validation, found.skipped) == (CODEC.fingerprint, None, 0)
    assert found.train.classes == ("cat", "dog")
    assert told[-1] == ("ids of the train pictures", 10, 10)
    assert sorted(path.name for path in out.iterdir()) == ["data"]


def test_they_are_made_once(tmp_path, out, palette):
    data = pictures(tmp_path / "data", 4)
    opened(out, train=data, codec=palette)
    before = (out / "data" / "train" / "ids.npy").stat().st_mtime_ns
    told = []
    opened(out, lambda *at: told.append(at), train=data, codec=palette)
    assert (out / "data" / "train" / "ids.npy").stat().st_mtime_ns == before
    assert told == []


@pytest.mark.parametrize(
    "change", [{"codec": "nano"}, {"grid": "4x8"}, {"crop": "none"}, {"train": "other"}, {"limit": 3}], ids=str
)
def test_ids_of_something_else_are_made_anew(tmp_path, out, palette, change):
    values = {"train": pictures(tmp_path / "data", 4), "codec": palette}
    for number in range(4):
        put(tmp_path / "other" / "cat" / f"{number}.png", b"")
        picture(9 - number).save(tmp_path / "other" / "cat" / f"{number}.png")
    opened(out, **values)
    if "train" in change:
        change = {"train": str(tmp_path / "other")}
    found = opened(out, **{**values, **change})
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    wanted = opened(fresh, **{**values, **change})
    np.testing.assert_array_equal(found.train.ids_NT, wanted.train.ids_NT)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"codec": 1'])
def test_a_damaged_description_of_ids(tmp_path, out, palette, text):
    """They are made anew."""
    data = pictures(tmp_path / "data", 4)
    first = np.array(opened(out, train=data, codec=palette).train.ids_NT)
    (out / "data" / "train" / "meta.json").write_text(text)
    np.testing.assert_array_equal(opened(out, train=data, codec=palette).train.ids_NT, first)


def test_tokenised_data_bring_their_palette(tmp_path, out):
    found = opened(out, train=tokens(tmp_path / "tokens", 8), validation=tokens(tmp_path / "more", 6, seed=1))
    assert found.codec.fingerprint == CODEC.fingerprint
    assert found.validation is not None
    np.testing.assert_array_equal(found.train.ids_NT, ids(8))
    np.testing.assert_array_equal(found.validation.ids_NT, ids(6, 1))
    assert list(out.iterdir()) == []


def test_validation_pictures_of_tokenised_data(tmp_path, out):
    found = opened(out, train=tokens(tmp_path / "tokens", 8), validation=pictures(tmp_path / "data", 4))
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.ids_NT, expected(found.framing, [0, 2, 1, 3]))


@pytest.mark.parametrize(("augment", "stored"), [("none", True), ("cifar", True), ("flip", True), ("crop", False)])
def test_pictures_stay_pictures_where_each_time_another_part_is_shown(tmp_path, out, palette, augment, stored):
    data = pictures(tmp_path / "data", 6)
    found = opened(out, train=data, validation=data, codec=palette, augment=augment)
    assert (found.train.ids_NT is not None) == stored
    assert found.validation is not None
    assert found.validation.ids_NT is not None
    assert (out / "data" / "train").exists() == stored


def test_limits(tmp_path, out, palette):
    data = pictures(tmp_path / "data", 8)
    found = opened(out, train=data, validation=data, codec=palette, limit=5, validation_limit=3)
    assert (len(found.train), found.validation and len(found.validation)) == (5, 3)


# The palette.


def test_a_palette_is_fitted_once(tmp_path, out):
    data = pictures(tmp_path / "data", 6)
    told = []
    first = opened(out, lambda *at: told.append(at), train=data, codec="fit", colors=8)
    assert ("colours of the training pictures", 6, 6) in told
    assert len(first.codec) == 8
    assert PaletteCodec.load(out / "palette.npy").fingerprint == first.codec.fingerprint
    told.clear()
    again = opened(out, lambda *at: told.append(at), train=data, codec="fit", colors=8)
    assert again.codec.fingerprint == first.codec.fingerprint
    assert told == []


def test_another_number_of_colours(tmp_path, out):
    """Before there is a checkpoint, a run may change its mind."""
    data = pictures(tmp_path / "data", 6)
    opened(out, train=data, codec="fit", colors=8)
    found = opened(out, train=data, codec="fit", colors=5)
    assert len(found.codec) == 5
    assert int(np.max(found.train.ids_NT)) < 5


def test_the_default_palette_is_nanos(tmp_path, out):
    from imagegpt.pipeline import ImageGPT

    found = opened(out, train=pictures(tmp_path / "data", 2))
    assert found.codec.fingerprint == ImageGPT.from_pretrained("nano").codec.fingerprint


def test_the_palette_of_a_model(tmp_path, out, tiny_folder):
    found = opened(out, train=pictures(tmp_path / "data", 2), codec=str(tiny_folder))
    assert found.codec.fingerprint == CODEC.fingerprint  # the same random numbers


# What is told of.


def test_pictures_that_are_broken_are_counted(tmp_path, out, palette):
    data = pictures(tmp_path / "data", 6)
    Path(data, "cat", "002.png").write_bytes(b"no picture")
    found = opened(out, train=data, validation=data, codec=palette)
    assert found.skipped == 2
    assert len(found.train) == 5
    [told] = json.loads((out / "data" / "train" / "meta.json").read_text())["skipped"]
    assert "002.png" in told
    again = opened(out, train=data, validation=data, codec=palette)
    assert (again.skipped, len(again.train)) == (2, 5)


def test_a_class_without_pictures(tmp_path):
    pictures(tmp_path / "data", 4)
    (tmp_path / "data" / "emu").mkdir()
    (tmp_path / "data" / "bee" / "deep").mkdir(parents=True)
    with pytest.warns(UserWarning, match="no picture is in the folder bee, emu; training goes on"):
        warn_of_empty_classes(str(tmp_path / "data"))


def test_nothing_to_warn_of(tmp_path):
    pictures(tmp_path / "data", 4)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in ("data", "empty", "gone", "data/cat", "data:train"):
            warn_of_empty_classes(str(tmp_path / data))


def test_only_one_of_many_processes_warns(tmp_path, out):
    pictures(tmp_path / "data", 4)
    (tmp_path / "data" / "emu").mkdir()
    recipe = Recipe.from_flat({"grid": "8x8", "train": str(tmp_path / "data"), "augment": "crop"}, "test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(recipe, out, Processes(1, 2, torch.device("cpu")))


# What is refused.


def broken(tmp_path: Path) -> str:
    for number in range(3):
        put(tmp_path / "broken" / f"{number}.png", b"no picture")
    return str(tmp_path / "broken")


@pytest.mark.parametrize("values", [{}, {"codec": "fit", "colors": 4}], ids=str)
def test_no_picture_can_be_read(tmp_path, out, values):
    with pytest.raises(InputError, match=r"broken holds (no picture that|none that) can be read"):
        opened(out, train=broken(tmp_path), **values)


def test_a_palette_can_not_be_fitted_to_ids(tmp_path, out):
    with pytest.raises(InputError, match="holds ids, not pictures"):
        opened(out, train=tokens(tmp_path / "tokens"), codec="fit", colors=4)
    assert not (out / "palette.npy").exists()


def test_nothing_to_train_on(out):
    with pytest.raises(InputError, match="give --train DATA"):
        opened(out)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_empty_folder(tmp_path, out, part):
    (tmp_path / "empty").mkdir()
    values = {"train": pictures(tmp_path / "data", 2), part: str(tmp_path / "empty")}
    with pytest.raises(InputError, match="empty"):
        opened(out, **values)


def test_ids_that_were_changed_since_they_were_made(tmp_path, out, palette):
    data = pictures(tmp_path / "data", 4)
    opened(out, train=data, codec=palette)
    made = shutil.copytree(out / "data" / "train", tmp_path / "tokens")
    array = np.load(made / "ids.npy")
    array[0, 0] ^= 1
    np.save(made / "ids.npy", array)
    with pytest.raises(InputError, match=r"ids\.npy is damaged"):
        opened(out, train=str(made))
