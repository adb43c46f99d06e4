"""WebDataset's shards: samples, labels, names with braces, and what is cut off."""

from __future__ import annotations

import io
import itertools
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.data.records import read_records
from imagegpt.data.shards import expand_braces, key_of
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import COLOURS, content, put, samples, shard


def colours(source) -> list:
    return [image.getpixel((0, 0)) for _, image in read_records(source)]


def keys(source) -> list[str]:
    return [record.name.partition(", sample ")[2] for record in source]


# --- samples


def test_a_sample_is_what_shares_a_name_up_to_the_first_dot(tmp_path):
    members = {
        "a/1.seg.png": content(0),
        "a/1.jpg": content(1, "JPEG"),
        "b/1.png": content(2),
        "a/1.cls": b"7",
        "b/1.cls": b" 8\n",
        "b/1.txt": b"text",
        "c/1.txt": b"text",
        "notes.json": b"{}",
        "b/.hidden.png": b"",
        "d.e/1.PNG": content(3),
    }
    source = open_source(shard(tmp_path / "data.tar", members))
    assert keys(source) == ["a/1", "b/1", "d.e/1"]
    assert [record.label for record in source] == [7, 8, None]
    assert [record.picture for record in source] == [members[name] for name in ("a/1.jpg", "b/1.png", "d.e/1.PNG")]


def test_folders_and_links_in_a_shard_are_no_pictures(tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name, kind in (("a.png", tarfile.DIRTYPE), ("b.png", tarfile.SYMTYPE), ("c.png", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "c.png"
            info.size = len(content(1)) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content(1)))
    assert keys(open_source(tmp_path / "data.tar")) == ["c"]


def test_long_names(tmp_path):
    names = [f"{'folder/' * 40}{number}" for number in range(2)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "data.tar", "w", format=form) as archive:
            for number, name in enumerate(names):
                info = tarfile.TarInfo(f"{name}.png")
                info.size = len(content(number))
                archive.addfile(info, io.BytesIO(content(number)))
        source = open_source(tmp_path / "data.tar")
        assert keys(source) == names
        assert colours(source) == COLOURS[:2]


def test_nothing_is_written_beside_a_shard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shard(tmp_path / "data.tar", {"../out.png": content(1), "/out/side.png": content(2)})
    assert colours(open_source(path)) == COLOURS[1:3]
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_is_read_without_what_is_before_it(tmp_path):
    path = shard(tmp_path / "data.tar", samples(range(5), range(5)))
    source = open_source(path)
    data = bytearray(path.read_bytes())
    for lost in (content(0), content(4)):
        start = data.index(lost)
        data[start : start + len(lost)] = bytes(len(lost))
    path.write_bytes(data)
    assert [(record.label, record.picture) for record in source.part(1, 4)] == [
        (number, content(number)) for number in (1, 2, 3)
    ]


@given(st.text(min_size=1), st.text("abc.", max_size=5), st.sampled_from(["", "a/", "a.b/c/"]))
def test_the_key_of_a_member(start, rest, folder):
    start = start.replace("/", "_").replace(".", "_")
    assert key_of(f"{folder}{start}") == f"{folder}{start}" == key_of(f"{folder}{start}.{rest}")
    assert key_of(f"{folder}.{rest}") == ""


@given(st.permutations([(key, ending) for key in ("1", "2", "x/1") for ending in ("png", "cls", "txt")]))
def test_members_may_come_in_any_order(tmp_path_factory, order):
    made = {"1": 1, "2": 2, "x/1": 3}
    members = {
        f"{key}.{ending}": content(made[key]) if ending == "png" else str(made[key]).encode() for key, ending in order
    }
    source = open_source(shard(tmp_path_factory.mktemp("order") / "data.tar", members))
    firsts = list(dict.fromkeys(key for key, _ in order))
    assert keys(source) == firsts
    assert [(record.label, record.picture) for record in source] == [(made[k], content(made[k])) for k in firsts]


# --- labels


def labelled(tmp_path, *labels: object, **options):
    members = {}
    for number, label in enumerate(labels):
        members |= {f"{number}.png": content(number), f"{number}.json": json.dumps(label).encode()}
    source = open_source(shard(tmp_path / "data.tar", members), **options)
    return [record.label for record in source], source.labelled


def test_labels_may_be_in_json(tmp_path):
    assert labelled(tmp_path, {"label": 3}, {"label": 1.5}, {"label": [0, 1]}) == ([3, 1.5, [0, 1]], True)
    assert labelled(tmp_path, {"class": 3, "label": 0}, {"class": 4}, label_column="class") == ([3, 4], True)


def test_a_text_is_no_label_nor_is_what_has_no_such_key(tmp_path):
    assert labelled(tmp_path, {"label": "cat"}, {"label": [1, "cat"]}, {"text": 1}, [1], 5) == ([None] * 5, False)
    assert labelled(tmp_path, {"label": 1}, {"text": 1}) == ([1, None], True)


def test_a_label_in_cls_goes_before_one_in_json_unless_the_column_is_named(tmp_path):
    members = {"1.json": b'{"label": 5}', "1.png": content(1), "1.cls": b"3"}
    path = shard(tmp_path / "data.tar", members)
    assert [record.label for record in open_source(path)] == [3]
    assert [record.label for record in open_source(path, label_column="label")] == [5]


def test_a_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.tar, sample 0 has no number fine in a \.json"):
        labelled(tmp_path, {"label": 3}, label_column="fine")


@pytest.mark.parametrize(("ending", "data"), [("cls", b"cat"), ("cls", b""), ("json", b"{"), ("json", b"\xff")])
def test_a_damaged_label_is_named(tmp_path, ending, data):
    members = {"1.png": content(1), "2.png": content(2), f"2.{ending}": data}
    source = open_source(shard(tmp_path / "data.tar", members))
    with pytest.raises(InputError, match=rf"data\.tar, sample 2: its label can't be read from 2\.{ending}: "):
        list(source)


# --- names with braces


@given(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4), st.sampled_from(["", "-{0..1}", "/{08..10}"]))
def test_braces_stand_for_numbers(first, more, width, rest):
    start = str(first).zfill(width)
    numbers = [str(number).zfill(len(start)) for number in range(first, first + more + 1)]
    rests = {"": [""], "-{0..1}": ["-0", "-1"], "/{08..10}": ["/08", "/09", "/10"]}[rest]
    found = expand_braces(f"a/b-{{{start}..{first + more}}}{rest}.tar")
    expected = [f"a/b-{number}{end}.tar" for number, end in itertools.product(numbers, rests)]
    assert [path.as_posix() for path in found] == expected


@pytest.mark.parametrize("pattern", ["a.tar", "a-{}.tar", "a-{1,2}.tar", "a-{x..y}.tar", "a-{1..}.tar", "a-{3..1}.tar"])
def test_other_braces_stand_for_themselves(pattern):
    assert expand_braces(pattern) == []
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_source(pattern)


def test_a_shard_that_is_missing_is_named(tmp_path):
    shard(tmp_path / "a-0.tar", samples([1], [0]))
    with pytest.raises(InputError, match=r"a-1\.tar: there is no such file\."):
        open_source(f"{tmp_path}/a-{{0..1}}.tar")


# --- damage


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 1023, 1024, 1536, 2000, 2048, 3500, 4096])
def test_a_shard_that_is_cut_off_is_named(tmp_path, length):
    path = shard(tmp_path / "data.tar", samples([1, 2], [0, 1]))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"data\.tar can't be read as \.tar: ") as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_a_shard_with_a_damaged_header_in_the_middle_is_named(tmp_path):
    path = shard(tmp_path / "data.tar", samples([1, 2], [0, 1]))
    data = bytearray(path.read_bytes())
    data[1024:1030] = b"~~~~~~"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.tar can't be read as \.tar: it is cut off or damaged after 1 files"):
        open_source(path)


@pytest.mark.parametrize("data", [b"text" * 400, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_shard_is_named(tmp_path, data):
    with pytest.raises(InputError, match=r"data\.tar can't be read as \.tar: "):
        open_source(put(tmp_path / "data.tar", data))


def test_a_shard_without_pictures_is_refused(tmp_path):
    for members in ({}, {"1.txt": b"text", "1.cls": b"0"}):
        with pytest.raises(InputError, match=r"data\.tar holds no pictures"):
            open_source(shard(tmp_path / "data.tar", members))


def test_a_shard_that_goes_away_is_named(tmp_path):
    path = shard(tmp_path / "data.tar", samples([1], [0]))
    source = open_source(path)
    path.unlink()
    with pytest.raises(InputError, match=r"data\.tar can't be read: "):
        list(source)
