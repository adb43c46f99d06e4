"""Data sets of Hugging Face's: saved to disk, and from the Hub without asking it."""

from __future__ import annotations

import sys

import pytest

from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.data.tables import BATCH
from imagegpt.errors import InputError
from making import CLASSES, COLOURS, content, dataset, put

datasets = pytest.importorskip("datasets")


def colours(source) -> list:
    return [image.getpixel((0, 0)) for _, image in read_records(source)]


@pytest.fixture
def hub(monkeypatch):
    """What the Hub has, by name; what it is asked for."""
    has, asked = {}, []

    def load_dataset(name, split):
        asked.append((name, split))
        if name not in has:
            raise FileNotFoundError(f"Couldn't find {name}\nand more of it")
        return has[name] if split is None else has[name][split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    has["asked"] = asked
    return has


# --- saved


def test_bytes_are_those_of_the_files(tmp_path):
    dataset([1, 2], [0, 1]).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert [record.picture for record in source] == [content(1), content(2)]
    assert [record.name for record in source] == [f"{tmp_path / 'saved'}, row {number}" for number in range(2)]


def test_pictures_may_be_paths(tmp_path):
    path = put(tmp_path / "1.png", content(3))
    made = datasets.Dataset.from_dict({"img": [str(path)]}).cast_column("img", datasets.Image())
    made.save_to_disk(str(tmp_path / "saved"))
    assert colours(open_source(tmp_path / "saved")) == [COLOURS[3]]


def test_more_rows_than_are_held_at_once_in_several_files(tmp_path):
    count = 2 * BATCH + 3
    made = dataset(range(count), [number % 2 for number in range(count)])
    made.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    source = open_source(tmp_path / "saved")
    whole = [record.picture for record in source]
    assert whole == [content(number) for number in range(count)]
    assert [record.picture for record in source.part(BATCH - 1, BATCH + 2)] == whole[BATCH - 1 : BATCH + 2]


def test_a_selection_is_read_in_its_own_order(tmp_path):
    dataset(range(5), [0, 1, 0, 1, 0]).select([4, 0, 3]).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert colours(source) == [COLOURS[4], COLOURS[0], COLOURS[3]]
    assert [record.label for record in source] == [0, 0, 1]


def test_a_data_set_with_several_splits_needs_one(tmp_path):
    made = {"train": dataset([1], [0]), "test": dataset([2], [1])}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    assert colours(open_source(f"{tmp_path / 'saved'}:test")) == [COLOURS[2]]
    with pytest.raises(InputError, match=r"saved has the splits train, test; name one: .*saved:train\."):
        open_source(tmp_path / "saved")
    with pytest.raises(InputError, match="nor a folder val"):
        open_source(f"{tmp_path / 'saved'}:val")


def test_the_only_split_need_not_be_named(tmp_path):
    datasets.DatasetDict({"test": dataset([2], [1])}).save_to_disk(str(tmp_path / "saved"))
    assert colours(open_source(tmp_path / "saved")) == [COLOURS[2]]


def test_the_label_column_may_be_named(tmp_path):
    made = dataset([1, 2], [0, 1]).add_column("score", [0.5, 1.5])
    made.save_to_disk(str(tmp_path / "saved"))
    assert [record.label for record in open_source(tmp_path / "saved", label_column="score")] == [0.5, 1.5]
    with pytest.raises(InputError, match="saved has no column fine; it has image, label, score"):
        open_source(tmp_path / "saved", label_column="fine")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("data", [b"", b"text", None])
def test_a_damaged_data_set_is_named(tmp_path, name, data):
    dataset([1, 2], [0, 1]).save_to_disk(str(tmp_path / "saved"))
    path = tmp_path / "saved" / name
    path.write_bytes(path.read_bytes()[:200] if data is None else data)
    with pytest.raises(InputError, match="saved can't be read as a saved data set: ") as error:
        list(open_source(tmp_path / "saved"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"splits": 3}', b'{"splits": []}'])
def test_a_damaged_list_of_splits_is_named(tmp_path, data):
    put(tmp_path / "dataset_dict.json", data)
    with pytest.raises(InputError, match=r"dataset_dict\.json can't be read: "):
        open_source(tmp_path)


# --- the Hub


def test_a_name_is_looked_for_on_the_hub_where_there_is_no_such_path(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub["owner/name"] = datasets.DatasetDict({"train": dataset([1, 2], [0, 1]), "test": dataset([3], [0])})
    source = open_source("owner/name:train")
    assert hub["asked"] == [("owner/name", "train")]
    assert (colours(source), source.classes, source.path) == (COLOURS[1:3], CLASSES, "owner/name:train")
    with pytest.raises(InputError, match=r"owner/name has the splits train, test; name one: owner/name:train\."):
        open_source("owner/name")
    put(tmp_path / "owner/name/1.png")
    assert len(open_source("owner/name")) == 1
    assert len(hub["asked"]) == 2


def test_the_only_split_on_the_hub_need_not_be_named(hub):
    hub["owner/name"] = datasets.DatasetDict({"test": dataset([3], [0])})
    assert colours(open_source("owner/name")) == [COLOURS[3]]


def test_what_the_hub_has_not_is_told_in_one_sentence(hub):
    for name in ("owner/name", "owner/name:train"):
        with pytest.raises(InputError) as error:
            open_source(name)
        assert str(error.value) == (
            f"{name} is no file or folder here, and no data set that can be had from the Hugging Face Hub: "
            "Couldn't find owner/name"
        )


def test_without_a_network_there_is_one_sentence():
    with pytest.raises(
        InputError, match="owner/name is no file or folder here, and no data set that can be had"
    ) as error:
        open_source("owner/name")
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    dataset([1], [0]).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    for data in (tmp_path / "saved", "owner/name"):
        with pytest.raises(ModuleNotFoundError, match=r"needs datasets: pip install \"imagegpt\[data\]\""):
            open_source(data)
