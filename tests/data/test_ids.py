"""DATA as batches of ids: equal to encoding one picture after another, whatever holds the pictures."""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import FILTERS, Framing
from imagegpt.data.ids import TASK, Ids, read_ids
from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import KINDS, content, ids_of, put, tokenise

CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
FRAMING = Framing(2, 3)
COUNT = 3 * TASK + 5


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return KINDS["parquet"](tmp_path_factory.mktemp("ids") / "here", range(COUNT), [n % 2 for n in range(COUNT)])


@pytest.fixture
def mixed(tmp_path):
    """Every third picture is damaged."""
    for number in range(COUNT):
        put(tmp_path / f"{number:03}.png", b"text" if number % 3 == 1 else content(number))
    return tmp_path


def tokens(folder, ids=None, **meta):
    return open_source(
        tokenise(folder, ids_of(range(10)) if ids is None else ids, **{"codec": CODEC.fingerprint, **meta})
    )


def joined(batches) -> np.ndarray:
    return np.concatenate([batch.ids_BT for batch in batches])


def one_by_one(source) -> np.ndarray:
    return np.stack([CODEC.encode(FRAMING.apply(image)).reshape(-1) for _, image in read_records(source)])


@pytest.mark.parametrize("batch", [1, 7, TASK, 2 * TASK + 1, 1000])
def test_batches_are_the_pictures_ids_in_order(data, batch):
    source = open_source(data)
    batches = list(read_ids(source, CODEC, FRAMING, batch=batch))
    assert [len(made) for made in batches] == [batch] * (COUNT // batch) + [COUNT % batch] * (COUNT % batch > 0)
    np.testing.assert_array_equal(joined(batches), one_by_one(source))
    assert {made.ids_BT.dtype for made in batches} == {np.dtype(np.int64)}
    assert [number for made in batches for number in made.numbers.tolist()] == list(range(COUNT))
    assert [label for made in batches for label in made.labels or []] == [number % 2 for number in range(COUNT)]
    assert [made.skipped for made in batches] == [[]] * len(batches)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (7, 20), (COUNT - 1, None), (COUNT, None), (3, 3), (10, 999)])
def test_a_part_is_the_wholes_part(data, start, stop):
    source = open_source(data)
    batches = list(read_ids(source, CODEC, FRAMING, start=start, stop=stop, batch=4))
    expected = one_by_one(source)[start:stop]
    assert sum(map(len, batches)) == len(expected)
    if len(expected):
        np.testing.assert_array_equal(joined(batches), expected)
    assert [number for made in batches for number in made.numbers.tolist()] == list(range(COUNT))[start:stop]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_every_kind_has_the_same_ids(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path / "here", [3, 1, 4, 1, 0, 2], [0, 0, 0, 1, 1, 1]))
    [made] = read_ids(source, CODEC, FRAMING)
    np.testing.assert_array_equal(made.ids_BT, one_by_one(source))
    assert made.labels == [0, 0, 0, 1, 1, 1]


def test_without_labels_there_is_no_list_of_them(tmp_path):
    put(tmp_path / "1.png")
    [made] = read_ids(open_source(tmp_path), CODEC, FRAMING)
    assert made.labels is None


def test_pictures_are_framed_as_they_should_be(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 20, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "1.png")
    source = open_source(tmp_path)
    for crop in ("none", "center"):
        framing = Framing(2, 3, crop)
        [made] = read_ids(source, CODEC, framing)
        expected = CODEC.encode(framing.apply(Image.fromarray(picture))).reshape(1, -1)
        np.testing.assert_array_equal(made.ids_BT, expected)


# --- bad pictures


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_bad_pictures_are_skipped_counted_and_told(mixed, batch):
    batches = list(read_ids(open_source(mixed), CODEC, FRAMING, "skip", batch=batch))
    good = [number for number in range(COUNT) if number % 3 != 1]
    assert [number for made in batches for number in made.numbers.tolist()] == good
    told = [sentence for made in batches for sentence in made.skipped]
    assert told == [
        f"{mixed}/{number:03}.png is not a picture in a format that can be read."
        for number in range(COUNT)
        if number % 3 == 1
    ]
    np.testing.assert_array_equal(
        joined(batches), [CODEC.encode(FRAMING.apply(picture)).reshape(-1) for picture in map(solid, good)]
    )
    assert len(batches) == -(-COUNT // batch)


def solid(number: int) -> Image.Image:
    return Image.open(io.BytesIO(content(number))).convert("RGB")


def test_where_all_are_bad_there_is_a_batch_without_rows(tmp_path):
    put(tmp_path / "1.png", b"text")
    [made] = read_ids(open_source(tmp_path), CODEC, FRAMING, "skip")
    assert (made.ids_BT.shape, made.ids_BT.dtype, made.numbers.tolist(), len(made)) == ((0, 6), np.int64, [], 0)
    assert len(made.skipped) == 1


def test_labels_are_those_of_the_rows_that_are_kept(tmp_path):
    KINDS["folder"](tmp_path, [0, 1, 2, 3], [0, 0, 1, 1])
    put(tmp_path / "cat/0001.png", b"text")
    [made] = read_ids(open_source(tmp_path), CODEC, FRAMING, "skip")
    assert (made.labels, made.numbers.tolist()) == ([0, 1, 1], [0, 2, 3])


def test_the_first_bad_picture_stops_the_reading(mixed):
    batches = read_ids(open_source(mixed), CODEC, FRAMING, batch=4)
    with pytest.raises(InputError) as error:
        list(batches)
    assert str(error.value) == f"{mixed}/001.png is not a picture in a format that can be read."


# --- other views


def numbered(image: Image.Image, number: int) -> np.ndarray:
    """The picture on the grid, and its record's number in the first pixel."""
    grid = FRAMING.apply(image).copy()
    grid[0, 0] = number
    return grid


@pytest.mark.parametrize("batch", [1, 7, TASK, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, 40), (COUNT - 1, None)])
def test_a_view_gets_each_picture_with_its_number(data, batch, start, stop):
    source = open_source(data)
    batches = list(read_ids(source, CODEC, FRAMING, start=start, stop=stop, batch=batch, view=numbered))
    expected = one_by_one(source)
    expected[:, 0] = CODEC.encode(np.arange(COUNT, dtype=np.uint8)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(joined(batches), expected[start:stop])


def test_a_view_is_not_asked_about_bad_pictures(mixed):
    seen = []

    def view(image, number):
        seen.append(number)
        return numbered(image, number)

    batches = list(read_ids(open_source(mixed), CODEC, FRAMING, "skip", batch=7, view=view))
    good = [number for number in range(COUNT) if number % 3 != 1]
    assert sorted(seen) == good
    grids = [numbered(solid(number), number) for number in good]
    np.testing.assert_array_equal(joined(batches), [CODEC.encode(grid).reshape(-1) for grid in grids])


def test_what_a_view_raises_arrives(data):
    def view(image, number):
        raise ZeroDivisionError if number == TASK + 1 else InputError("never")

    with pytest.raises(InputError, match="never"):
        list(read_ids(open_source(data), CODEC, FRAMING, view=view))
    with pytest.raises(ZeroDivisionError):
        list(read_ids(open_source(data), CODEC, FRAMING, start=TASK + 1, view=view))


# --- ids


def test_there_is_no_view_of_stored_ids(tmp_path):
    with pytest.raises(InputError, match="holds ids, and views are made of pictures"):
        read_ids(tokens(tmp_path), CODEC, FRAMING, view=numbered)


def test_stored_ids_are_taken_as_they_are(tmp_path):
    source = tokens(tmp_path, labels=range(10))
    batches = list(read_ids(source, CODEC, FRAMING, start=1, batch=4))
    np.testing.assert_array_equal(joined(batches), ids_of(range(1, 10)))
    assert [type(made) for made in batches] == [Ids] * 3
    assert [made.numbers.tolist() for made in batches] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [made.labels for made in batches] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert joined(batches).dtype == np.int64


def test_ids_of_another_codec_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match=f"holds ids of the codec another; the model's is {CODEC.fingerprint}"):
        read_ids(tokens(tmp_path, codec="another"), CODEC, FRAMING)


@pytest.mark.parametrize("grid", [(3, 2), (1, 6), (6, 1)])
def test_ids_of_another_grid_are_refused_at_once(tmp_path, grid):
    told = f"holds ids on a grid of {grid[0]} x {grid[1]}; the model's is 2 x 3"
    with pytest.raises(InputError, match=told):
        read_ids(tokens(tmp_path, grid=list(grid)), CODEC, FRAMING)


def test_an_id_that_is_no_colour_is_named_by_its_row(tmp_path):
    ids = ids_of(range(10))
    ids[7, 2] = 16
    batches = read_ids(tokens(tmp_path, ids), CODEC, FRAMING, batch=4)
    next(batches)
    with pytest.raises(InputError, match="row 7: id 16 is no colour of the palette of 16"):
        next(batches)


# --- threads


def test_a_batch_below_one_and_a_start_below_zero_are_refused_at_once(data):
    with pytest.raises(InputError, match="batch must be at least 1, not 0"):
        read_ids(open_source(data), CODEC, FRAMING, batch=0)
    with pytest.raises(InputError, match="start must be at least 0, not -1"):
        read_ids(open_source(data), CODEC, FRAMING, start=-1)


def test_the_next_batch_is_begun_and_no_more(data):
    source = open_source(data)
    taken = []

    def records(start, stop):
        for record in source.records(start, stop):
            taken.append(record)
            yield record

    batches = read_ids(replace(source, records=records), CODEC, FRAMING, batch=10)
    assert taken == []
    next(batches)
    assert len(taken) == 20
    batches.close()
    assert len(taken) == 20


def test_the_filters_of_warnings_hold_until_the_last_reader_is_done():
    def bomb() -> None:
        warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)

    with FILTERS:
        with FILTERS:
            pass
        with pytest.raises(Image.DecompressionBombWarning):
            bomb()
    with pytest.warns(Image.DecompressionBombWarning):
        bomb()


def test_no_thread_and_no_filter_of_warnings_is_left_behind(mixed, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    filters, threads = list(warnings.filters), set(threading.enumerate())
    for _ in range(5):
        list(read_ids(open_source(mixed), CODEC, FRAMING, "skip"))
    batches = read_ids(open_source(mixed), CODEC, FRAMING, "skip", batch=4)
    next(batches)
    batches.close()
    assert warnings.filters == filters
    assert set(threading.enumerate()) <= threads
