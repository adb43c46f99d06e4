"""Parquet: rows, columns, labels, row groups, and what is damaged."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.data.tables import BATCH
from imagegpt.errors import InputError
from making import COLOURS, cells, class_names, content, put, table


def colours(source, **options) -> list:
    return [image.getpixel((0, 0)) for _, image in read_records(source, **options)]


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
    with pytest.raises(InputError, match=r"data\.parquet has no column image or img; it has text, label"):
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


def test_a_bad_row_is_named_by_its_number(tmp_path):
    path = table(tmp_path / "data.parquet", [*cells([0]), {"bytes": b"text", "path": None}])
    with pytest.raises(InputError, match=r"data\.parquet, row 1: The bytes given is not a picture"):
        list(read_records(open_source(path)))


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.parquet holds no pictures: it has no rows"):
        open_source(table(tmp_path / "data.parquet", []))


def test_the_content_of_what_is_no_file_is_not_read_for_the_fingerprint(tmp_path):
    rows = [{"bytes": None, "path": path} for path in ("/dev/zero", "a\0b", str(tmp_path), "gone.png")]
    assert len(open_source(table(tmp_path / "data.parquet", rows)).fingerprint()) == 16


# --- columns


def test_pictures_may_be_called_img(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a"], "img": cells([2])}), tmp_path / "data.parquet")
    assert colours(open_source(tmp_path / "data.parquet")) == [COLOURS[2]]


def test_pictures_may_have_any_name_where_one_column_has_their_type(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    types = {b"huggingface": b'{"info": {"features": {"photo": {"_type": "Image"}}}}'}
    made = arrow.table({"text": ["a"], "photo": cells([2])}).replace_schema_metadata(types)
    parquet.write_table(made, tmp_path / "data.parquet")
    assert colours(open_source(tmp_path / "data.parquet")) == [COLOURS[2]]


def labels(path, **options):
    source = open_source(path, **options)
    assert source.labelled == any(record.label is not None for record in source)
    return [record.label for record in source], source.classes


def test_labels_are_the_named_column_else_label_or_labels_else_the_only_one_of_their_type(tmp_path):
    fine = class_names("a", "b", column="fine_label")
    rows = {"fine_label": [1, 0], "number": [5, 6], "score": [0.5, 1.5]}
    path = table(tmp_path / "1.parquet", cells([0, 1]), fine, **rows)
    assert labels(path) == ([1, 0], ("a", "b"))
    assert labels(path, label_column="number") == ([5, 6], ())
    assert labels(path, label_column="score") == ([0.5, 1.5], ())
    assert labels(table(tmp_path / "2.parquet", cells([0, 1]), fine, label=[7, 8], **rows)) == ([7, 8], ())
    assert labels(table(tmp_path / "3.parquet", cells([0, 1]), labels=[7, 8], label=[3, 4])) == ([3, 4], ())
    assert labels(table(tmp_path / "4.parquet", cells([0, 1]), labels=[7, 8])) == ([7, 8], ())


def test_of_two_columns_of_classes_neither_is_chosen(tmp_path):
    names = class_names("a", "b", column="fine_label")
    names["info"]["features"]["coarse_label"] = names["info"]["features"]["fine_label"]
    path = table(tmp_path / "data.parquet", cells([0, 1]), names, fine_label=[0, 1], coarse_label=[1, 1])
    assert labels(path) == ([None, None], ())
    assert labels(path, label_column="coarse_label") == ([1, 1], ("a", "b"))


def test_labels_may_be_lists(tmp_path):
    path = table(tmp_path / "data.parquet", cells([0, 1]), label=[[1, 0], [1, 1]])
    assert labels(path) == ([[1, 0], [1, 1]], ())


def test_texts_are_no_labels(tmp_path):
    path = table(tmp_path / "data.parquet", cells([0]), label=["cat"], labels=[3])
    assert labels(path) == ([3], ())
    with pytest.raises(InputError, match=r"data\.parquet: the column label does not hold numbers"):
        open_source(path, label_column="label")


def test_a_label_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = table(tmp_path / "data.parquet", cells([0]), label=[0], other=[1])
    with pytest.raises(InputError, match=r"data\.parquet has no column class; it has image, label, other\."):
        open_source(path, label_column="class")


# --- parts


def test_a_part_is_read_without_the_row_groups_before_and_after_it(tmp_path):
    path = table(tmp_path / "data.parquet", cells(range(9)), size=3)
    source = open_source(path)
    metadata = pytest.importorskip("pyarrow.parquet").read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in (0, 2):
        chunk = metadata.row_group(group).column(0)
        begin = chunk.dictionary_page_offset
        data[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    assert [record.picture for record in source.part(3, 6)] == [content(number) for number in (3, 4, 5)]
    for start, stop in ((2, 6), (3, 7)):
        with pytest.raises(InputError, match=r"data\.parquet can't be read as parquet"):
            list(source.part(start, stop))
