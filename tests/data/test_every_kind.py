"""What holds for every kind of DATA: order, labels, slices, limits, fingerprints."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from imagegpt.data.records import read_records, spans
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import CLASSES, COLOURS, FILES, KINDS, ids_of, put, tokenise

NUMBERS = [3, 1, 4, 1, 0, 2, 4, 3]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(kind, tmp_path_factory) -> str:
    return KINDS[kind](tmp_path_factory.mktemp("kinds") / "here", NUMBERS, LABELS)


def held(record):
    """What a record is made of, so that it can be compared."""
    return record.name, np.asarray(record.picture if record.ids is None else record.ids).tolist(), record.label


def test_pictures_and_labels_come_in_their_order(kind, data):
    source = open_source(data)
    assert (len(source), source.path, source.labelled) == (8, data, True)
    assert [record.label for record in source] == LABELS
    assert {type(record.label) for record in source} == {int}
    if source.tokens:
        np.testing.assert_array_equal([record.ids for record in source], ids_of(NUMBERS))
    else:
        found = [image.getpixel((0, 0)) for _, image in read_records(source)]
        assert found == [COLOURS[number] for number in NUMBERS]
    assert source.classes == (() if "npz" in kind or "shard" in kind else CLASSES)


def test_records_can_be_read_again_and_have_names_of_their_own(data):
    source = open_source(data)
    assert [held(record) for record in source] == [held(record) for record in source]
    assert len({record.name for record in source}) == 8


@pytest.mark.parametrize("start", range(9))
def test_a_slice_is_the_wholes_slice(data, start):
    source = open_source(data)
    whole = [held(record) for record in source]
    for stop in range(start, 9):
        assert [held(record) for record in source.part(start, stop)] == whole[start:stop]
    assert [held(record) for record in source.part(start)] == whole[start:]
    assert [held(record) for record in source.part(start, 99)] == whole[start:]


@pytest.mark.parametrize("limit", [1, 3, 5, 8, 9])
def test_a_limit_takes_the_first(data, limit):
    source = open_source(data, limit=limit)
    whole = [held(record) for record in open_source(data)]
    assert len(source) == min(limit, 8)
    assert [held(record) for record in source] == whole[:limit] == [held(record) for record in source.part(0, 99)]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(data, limit):
    with pytest.raises(InputError, match=f"limit must be at least 1, not {limit}"):
        open_source(data, limit=limit)


def test_a_start_below_zero_is_refused(data):
    with pytest.raises(InputError, match="start must be at least 0, not -1"):
        open_source(data).part(-1)


def test_there_is_no_start_behind_the_end(data):
    assert (
        list(open_source(data).part(8)) == list(open_source(data).part(5, 5)) == list(open_source(data).part(9)) == []
    )


def test_a_label_column_that_is_not_there_is_refused(data):
    with pytest.raises(InputError, match="nothing"):
        open_source(data, label_column="nothing")


# --- fingerprints


def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(kind, data, tmp_path):
    fingerprint = open_source(data).fingerprint()
    assert len(fingerprint) == 16 and int(fingerprint, 16) >= 0
    again = KINDS[kind](tmp_path / "other" / "place", NUMBERS, LABELS)
    assert open_source(again).fingerprint() == fingerprint
    assert open_source(data, limit=99).fingerprint() == fingerprint


def test_other_pictures_labels_orders_and_limits_have_other_fingerprints(kind, data, tmp_path):
    make = KINDS[kind]
    sources = [
        open_source(data),
        open_source(data, limit=7),
        open_source(make(tmp_path / "picture", [*NUMBERS[:-1], 2], LABELS)),
        open_source(make(tmp_path / "label", NUMBERS, [0, 0, 0, 1, 1, 1, 1, 1])),
        open_source(make(tmp_path / "order", [1, 3, *NUMBERS[2:]], LABELS)),
        open_source(make(tmp_path / "more", [*NUMBERS, 0], [*LABELS, 1])),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)


def test_the_same_files_and_classes_have_one_fingerprint_in_every_kind(tmp_path):
    named = [kind for kind in FILES if "shard" not in kind]
    for kinds in (named, [kind for kind in FILES if "shard" in kind]):
        found = {open_source(KINDS[kind](tmp_path / kind, NUMBERS, LABELS)).fingerprint() for kind in kinds}
        assert len(found) == 1


def test_a_renamed_class_has_another_fingerprint_and_a_renamed_file_has_not(tmp_path):
    data = KINDS["folder"](tmp_path / "here", NUMBERS, LABELS)
    fingerprint = open_source(data).fingerprint()
    (tmp_path / "here/cat/0000.png").rename(tmp_path / "here/cat/0000.PNG")
    assert open_source(data).fingerprint() == fingerprint
    (tmp_path / "here/cat").rename(tmp_path / "here/bat")
    assert open_source(data).fingerprint() != fingerprint


def test_a_changed_byte_makes_another_fingerprint(tmp_path):
    data = KINDS["folder"](tmp_path / "here", NUMBERS, LABELS)
    fingerprint = open_source(data).fingerprint()
    path = tmp_path / "here/dog/0005.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert open_source(data).fingerprint() != fingerprint


def test_bytes_of_one_file_are_not_those_of_the_next(tmp_path):
    found = set()
    for folder, contents in {"a": (b"1None", b"2"), "b": (b"1", b"None2")}.items():
        for name, data in zip(("1.png", "2.png"), contents, strict=True):
            put(tmp_path / folder / name, data)
        found.add(open_source(tmp_path / folder).fingerprint())
    assert len(found) == 2


def test_ids_of_another_codec_or_grid_have_another_fingerprint(tmp_path):
    folders = [
        tokenise(tmp_path / "a", ids_of(NUMBERS)),
        tokenise(tmp_path / "b", ids_of(NUMBERS), codec="another"),
        tokenise(tmp_path / "c", ids_of(NUMBERS), grid=[3, 2]),
    ]
    assert len({open_source(folder).fingerprint() for folder in folders}) == 3


def test_what_can_not_be_read_does_not_hinder_the_fingerprint(tmp_path):
    data = KINDS["folder"](tmp_path / "here", NUMBERS, LABELS)
    source = open_source(data)
    shutil.rmtree(tmp_path / "here/dog")
    assert source.fingerprint() != open_source(data).fingerprint()


# --- spans


def test_spans_cover_what_is_asked_for_and_nothing_else():
    lengths = [3, 0, 1, 4]
    places = [(number, row) for number, length in enumerate(lengths) for row in range(length)]
    for start in range(9):
        for stop in range(9):
            found = [(number, row) for number, *rows in spans(lengths, start, stop) for row in range(*rows)]
            assert found == places[start:stop]
