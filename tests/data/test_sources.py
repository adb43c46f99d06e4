"""DATA: folders, parquet files and single pictures, and what is done where one can't be read."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagegpt.data.sources import BATCH, Record, Skipped, open_source, read_records
from imagegpt.errors import InputError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def content(number: int = 0, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), COLOURS[number % 5]).save(file, form)
    return file.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content() if data is None else data)
    return path


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
    with pytest.raises(InputError, match=r"neither validation\*\.parquet nor a folder validation"):
        open_source(f"{tmp_path}:validation")


# --- parquet


def table(path: Path, rows: list, metadata: dict | None = None, **columns) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = arrow.table({"image": rows, **columns})
    if metadata is not None:
        made = made.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path)
    return path


def cells(numbers) -> list[dict]:
    return [{"bytes": content(number), "path": None} for number in numbers]


def class_names(*values: str) -> dict:
    return {"info": {"features": {"label": {"names": list(values), "_type": "ClassLabel"}}}}


def test_a_parquet_file_has_pictures_labels_and_names_of_classes(tmp_path):
    path = table(tmp_path / "data.parquet", cells(range(3)), class_names("cat", "dog"), label=[1, 0, 1])
    source = open_source(path)
    assert (len(source), source.classes) == (3, ("cat", "dog"))
    assert [record.label for record in source] == [1, 0, 1]
    assert [record.name for record in source] == [f"{path}, row {number}" for number in range(3)]
    assert colours(source) == COLOURS[:3]
    assert colours(source) == COLOURS[:3]


@pytest.mark.parametrize("metadata", [None, {}, {"info": {}}, {"info": None}, [], class_names()])
def test_without_labels_or_names_there_are_none(tmp_path, metadata):
    source = open_source(table(tmp_path / "data.parquet", cells([0]), metadata))
    assert source.classes == ()
    assert [record.label for record in source] == [None]


def test_a_folder_of_parquet_files_is_read_in_order_as_one(tmp_path):
    table(tmp_path / "train-00001.parquet", cells([2, 3]))
    table(tmp_path / "train-00000.parquet", cells([0, 1]))
    table(tmp_path / "test-00000.parquet", cells([4]))
    assert colours(open_source(f"{tmp_path}:train")) == COLOURS[:4]
    assert colours(open_source(f"{tmp_path}:test")) == COLOURS[4:]
    assert len(open_source(tmp_path)) == 5
    assert [record.name.rpartition(" ")[2] for record in open_source(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_more_rows_than_are_held_at_once(tmp_path):
    count = 2 * BATCH + 3
    source = open_source(table(tmp_path / "data.parquet", cells(range(count)), label=list(range(count))))
    assert [record.label for record in source] == list(range(count)) == list(range(len(source)))


def test_cells_may_be_bytes_or_paths(tmp_path):
    picture = put(tmp_path / "picture.png", content(2))
    assert colours(open_source(table(tmp_path / "bytes.parquet", [content(1)]))) == [COLOURS[1]]
    row = [{"bytes": None, "path": str(picture)}]
    assert colours(open_source(table(tmp_path / "path.parquet", row))) == [COLOURS[2]]


def test_an_empty_cell_is_a_picture_that_can_not_be_read(tmp_path):
    path = table(tmp_path / "data.parquet", [{"bytes": content(0), "path": None}, None])
    found = [result for _, result in read_records(open_source(path), "skip")]
    assert isinstance(found[0], Image.Image)
    assert found[1].startswith(f"{path}, row 1: ")


def test_a_parquet_file_without_pictures_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(arrow.table({"text": ["a"], "label": [0]}), path)
    with pytest.raises(InputError, match=r"data\.parquet has no column image; it has text, label"):
        open_source(path)


def test_files_of_a_folder_that_do_not_fit_together_are_refused_before_any_is_read(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path / "a.parquet", cells([0]), label=[0])
    parquet.write_table(arrow.table({"image": cells([1])}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column label"):
        open_source(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PAR1 no PAR1", b"text" * 100])
def test_a_damaged_parquet_file_is_named(tmp_path, data):
    path = put(tmp_path / "data.parquet", data)
    with pytest.raises(InputError, match=r"data\.parquet can't be read as parquet") as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_a_parquet_file_that_is_damaged_in_the_middle_is_named(tmp_path):
    path = table(tmp_path / "data.parquet", cells(range(5)))
    data = bytearray(path.read_bytes())
    data[8:200] = bytes(192)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.parquet"):
        list(open_source(path))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = put(tmp_path / "data.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[data\]"):
        open_source(path)


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


def test_a_bad_row_is_named_by_its_number(tmp_path):
    path = table(tmp_path / "data.parquet", [*cells([0]), {"bytes": b"text", "path": None}])
    with pytest.raises(InputError, match=r"data\.parquet, row 1: The bytes given is not a picture"):
        list(read_records(open_source(path)))


def test_skipped_counts_its_reasons():
    skipped = Skipped()
    assert len(skipped) == 0
    skipped.reasons.append("a")
    assert len(skipped) == 1
    assert Skipped().reasons == []
