"""DATA: what a name means, folders and single pictures, and what is done where one can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagegpt.data.records import Record, read_records
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import COLOURS, content, ids_of, put, samples, shard, tokenise


def names(source, root: Path) -> list[str]:
    return [Path(record.name).relative_to(root).as_posix() for record in source]


def colours(source, **options) -> list:
    return [image.getpixel((0, 0)) for _, image in read_records(source, **options)]


# --- folders


def test_a_folder_is_all_its_pictures_in_order_of_their_names(tmp_path):
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", "d", "table.csv"):
        put(tmp_path / name)
    source = open_source(tmp_path)
    assert names(source, tmp_path) == ["a.JPG", "b.png", "c.webp"]
    assert (len(source), source.classes, source.path) == (3, (), str(tmp_path))
    assert [record.label for record in source] == [None] * 3
    assert list(source) == list(source)  # again and again


def test_subfolders_are_classes_in_order_of_their_names(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/deep/er/3.png", "dog/notes.txt", "empty/notes.txt"):
        put(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert names(source, tmp_path) == ["cat/2.png", "cat/deep/er/3.png", "dog/1.png"]
    assert [record.label for record in source] == [0, 0, 1]


def test_pictures_beside_the_subfolders_mean_that_there_are_no_classes(tmp_path):
    for name in ("cat/1.png", "2.png"):
        put(tmp_path / name)
    source = open_source(tmp_path)
    assert source.classes == ()
    assert {record.label for record in source} == {None}
    assert len(source) == 2


def test_a_folder_without_pictures_is_refused(tmp_path):
    put(tmp_path / "notes.txt", b"text")
    with pytest.raises(InputError, match="holds no pictures"):
        open_source(tmp_path)


def test_one_file_is_a_source_of_one(tmp_path):
    path = put(tmp_path / "cat.png", content(2))
    source = open_source(path)
    assert list(source) == [Record(str(path), path, None)]
    assert colours(source) == [(0, 0, 255)]


def test_nothing_there_is_refused_with_its_name(tmp_path):
    for data in (f"{tmp_path}/gone", f"{tmp_path}/gone:train", ":train", ""):
        with pytest.raises(InputError, match="there is no such file or folder"):
            open_source(data)


def test_a_colon_in_a_folders_own_name_is_no_split(tmp_path):
    put(tmp_path / "a:b" / "1.png")
    assert len(open_source(f"{tmp_path}/a:b")) == 1


def test_a_split_of_a_folder_is_a_folder(tmp_path):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png"):
        put(tmp_path / name)
    source = open_source(f"{tmp_path}:train")
    assert (len(source), source.classes) == (2, ("cat", "dog"))
    with pytest.raises(InputError, match=r"neither v\*\.parquet nor v\*\.tar nor a folder v\."):
        open_source(f"{tmp_path}:v")


# --- read_records


@pytest.fixture
def mixed(tmp_path):
    put(tmp_path / "1.png", content(1))
    put(tmp_path / "2.png", b"text")
    put(tmp_path / "3.png", content(3))
    return tmp_path


def test_a_bad_picture_stops_the_reading_with_its_name(mixed):
    read = read_records(open_source(mixed))
    assert next(read)[1].size == (4, 3)
    with pytest.raises(InputError) as error:
        next(read)
    assert str(error.value) == f"{mixed / '2.png'} is not a picture in a format that can be read."


def test_a_bad_picture_is_skipped_and_its_reason_is_in_its_place(mixed):
    found = list(read_records(open_source(mixed), "skip"))
    assert [Path(record.name).name for record, _ in found] == ["1.png", "2.png", "3.png"]
    assert [result.getpixel((0, 0)) for _, result in found[::2]] == [COLOURS[1], COLOURS[3]]
    assert found[1][1] == f"{mixed / '2.png'} is not a picture in a format that can be read."


def test_a_part_of_the_records_is_read_and_no_other(mixed):
    found = list(read_records(open_source(mixed), start=2, stop=3))
    assert [Path(record.name).name for record, _ in found] == ["3.png"]


def test_ids_are_no_pictures(tmp_path):
    source = open_source(tokenise(tmp_path / "ids", ids_of([1])))
    with pytest.raises(InputError, match="holds ids, not pictures"):
        read_records(source)


# --- what a name means


def test_a_path_of_windows_may_have_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("C:\\x") / "train" / "1.png")
    assert len(open_source("C:\\x")) == len(open_source("C:\\x:train")) == 1
    for data in ("C:\\y", "D:\\x"):
        with pytest.raises(InputError, match="there is no such file or folder"):
            open_source(data)


@pytest.mark.parametrize("name", ["a.png", "a.parquet", "a.tar"])
def test_a_file_has_no_splits(tmp_path, name):
    put(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is one file and has no splits; give it without :train"):
        open_source(f"{tmp_path / name}:train")


def test_a_split_may_be_a_folder_of_any_kind(tmp_path):
    tokenise(tmp_path / "train", ids_of([1, 2]))
    shard(tmp_path / "test" / "0.tar", samples([1], [0]))
    assert open_source(f"{tmp_path}:train").tokens
    assert len(open_source(f"{tmp_path}:test")) == 1


def test_a_split_is_no_pattern(tmp_path):
    shard(tmp_path / "train-0.tar", samples([1], [0]))
    for split in ("*", "t?", "[t]"):
        with pytest.raises(InputError, match="has neither"):
            open_source(f"{tmp_path}:{split}")


@pytest.mark.parametrize("data", ["pictures/cat.png", "pictures/train.parquet", "some/x.npz", "a/b/c", "../a", "./a"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imagegpt.data.sources.open_hub", lambda *_: pytest.fail("it asks the Hub"))
    for name in (data, f"{data}:train"):
        with pytest.raises(InputError, match=": there is no such file or folder"):
            open_source(name)
