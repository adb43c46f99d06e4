"""Arrays in .npz files: names, splits, shapes, memory, and what is damaged."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import COLOURS, pixels_of, put

PIXELS = pixels_of([3, 1, 4])


def colours(source) -> list:
    return [image.getpixel((0, 0)) for _, image in read_records(source)]


def saved(path, packed: bool = False, **arrays) -> str:
    (np.savez_compressed if packed else np.savez)(path / "data.npz", **arrays)
    return f"{path}/data.npz"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["images", "x", "data", "arr_0"])
def test_pictures_have_one_of_some_names(tmp_path, name, packed):
    source = open_source(saved(tmp_path, packed, **{name: PIXELS}))
    assert colours(source) == [COLOURS[3], COLOURS[1], COLOURS[4]]
    assert (source.labelled, source.classes, [record.label for record in source]) == (False, (), [None] * 3)


@pytest.mark.parametrize("name", ["labels", "y", "label"])
def test_labels_have_one_of_some_names(tmp_path, name):
    assert [record.label for record in open_source(saved(tmp_path, x=PIXELS, **{name: [2, 0, 1]}))] == [2, 0, 1]


def test_the_label_column_is_an_array(tmp_path):
    data = saved(tmp_path, x=PIXELS, y=[2, 0, 1], coarse=[0.5, 1.5, 2.5])
    assert [record.label for record in open_source(data, label_column="coarse")] == [0.5, 1.5, 2.5]
    with pytest.raises(InputError, match=r"data\.npz holds no array fine; it holds x, y, coarse\."):
        open_source(data, label_column="fine")


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_splits_are_named_as_by_keras_and_medmnist(tmp_path, names):
    arrays = {}
    for split, rows in {"train": slice(2), "test": slice(2, 3)}.items():
        arrays |= {names[0].format(split): PIXELS[rows], names[1].format(split): np.array([[2], [0], [1]])[rows]}
    data = saved(tmp_path, **arrays)
    assert colours(open_source(f"{data}:train")) == [COLOURS[3], COLOURS[1]]
    assert [record.label for record in open_source(f"{data}:train")] == [2, 0]
    assert [record.label for record in open_source(f"{data}:test")] == [1]
    with pytest.raises(InputError, match=r"holds no array images or x or data or arr_0; it holds .*train"):
        open_source(data)
    with pytest.raises(InputError, match=r"data\.npz:val: .* holds no array x_val or val_images; it holds"):
        open_source(f"{data}:val")


def test_rows_of_labels_are_lists(tmp_path):
    source = open_source(saved(tmp_path, x=PIXELS, y=[[0, 1], [1, 1], [0, 0]]))
    assert [record.label for record in source] == [[0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 5, 4, 1)])
def test_grey_pictures(tmp_path, shape):
    grey = np.arange(40, dtype=np.uint8).reshape(shape)
    images = [image for _, image in read_records(open_source(saved(tmp_path, x=grey)))]
    assert [(image.size, image.mode) for image in images if isinstance(image, Image.Image)] == [((4, 5), "RGB")] * 2
    np.testing.assert_array_equal(np.asarray(images[1])[..., 2], grey[1].reshape(5, 4))


@pytest.mark.parametrize("packed", [False, True])
def test_columns_first_in_memory_is_read_as_it_is_meant(tmp_path, packed):
    data = saved(tmp_path, packed, x=np.asfortranarray(PIXELS))
    np.testing.assert_array_equal([record.picture for record in open_source(data)], PIXELS)


def test_what_is_not_packed_is_not_read_into_memory(tmp_path):
    from imagegpt.data.arrays import _read

    def mapped(array) -> bool:
        while array is not None and not isinstance(array, np.memmap):
            array = array.base
        return array is not None

    for packed in (False, True):
        array = _read(tmp_path / saved(tmp_path, packed, x=PIXELS), "x")
        np.testing.assert_array_equal(array, PIXELS)
        assert mapped(array) is not packed


def test_our_own_samples_are_data(tmp_path, tiny_folder):
    from imagegpt.cli.main import main

    out = tmp_path / "samples.npz"
    options = ["--model", str(tiny_folder), "--num", "3", "--out", str(out), "--seed", "1"]
    assert main(["sample", *options]) == 0
    source = open_source(out)
    assert len(source) == 3
    np.testing.assert_array_equal([np.asarray(image) for _, image in read_records(source)], np.load(out)["arr_0"])


# --- what is refused


@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS[0, 0],
        PIXELS[:0],
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 2, 8, 8, 3), np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype} {pixels.shape}",
)
def test_other_arrays_are_no_pictures(tmp_path, pixels):
    with pytest.raises(InputError, match=r"data\.npz: x is .*; pictures are uint8 \(N, height, width\)"):
        open_source(saved(tmp_path, x=pixels))


@pytest.mark.parametrize("labels", [[1, 2], 3, ["a", "b", "c"], np.zeros((3, 2, 2))], ids=str)
def test_other_arrays_are_no_labels(tmp_path, labels):
    with pytest.raises(InputError, match=r"data\.npz: y is .*; there should be 3 labels"):
        open_source(saved(tmp_path, x=PIXELS, y=labels))


@pytest.mark.parametrize("packed", [False, True])
def test_pickled_objects_are_not_read(tmp_path, packed):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it is unpickled",))

    bombs = np.array([Bomb(), Bomb()], object)
    for arrays in ({"x": bombs}, {"x": PIXELS, "y": bombs}):
        with pytest.raises(InputError, match=r"data\.npz: [xy] holds pickled objects, which are not read"):
            open_source(saved(tmp_path, packed, **arrays))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, packed, part):
    path = tmp_path / "data.npz"
    saved(tmp_path, packed, x=PIXELS)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match=r"data\.npz can't be read as \.npz: ") as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_a_packed_file_that_is_damaged_in_the_middle_is_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 8, (9, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / "data.npz"
    saved(tmp_path, True, x=pixels)
    whole = path.read_bytes()
    for start in range(50, 1500, 100):  # the stream breaks off, makes no sense, or has another sum
        data = bytearray(whole)
        data[start : start + 16] = b"\xff" * 16
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"data\.npz can't be read as \.npz: "):
            open_source(path)


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "text")
    with pytest.raises(InputError, match=r"holds no array .*; it holds nothing\."):
        open_source(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "text")
    with pytest.raises(InputError, match=r"data\.npz can't be read as \.npz: "):
        open_source(path)
    put(path, b"text")
    with pytest.raises(InputError, match=r"data\.npz can't be read as \.npz: "):
        open_source(path)


def test_tables_are_no_pictures(tmp_path):
    structure = np.zeros(3, [("ä", np.uint8), ("ж", np.uint8)])
    with pytest.warns(UserWarning, match=r"format 3\.0"):
        data = saved(tmp_path, x=structure)
    with pytest.raises(InputError, match=r"data\.npz can't be read as \.npz: it holds no array of numbers"):
        open_source(data)
