"""Tokenised folders: what they hold, and that their files must agree."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.codec.palette import PaletteCodec
from imagegpt.data.ids import codec_of
from imagegpt.data.records import Tokens
from imagegpt.data.sources import open_source
from imagegpt.data.tokens import verify
from imagegpt.errors import InputError
from making import CLASSES, ids_of, put, tokenise

IDS = ids_of([5, 7, 9])
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
ZEROS = "0" * 64


def test_a_tokenised_folder_has_ids_labels_and_says_what_made_them(tmp_path):
    source = open_source(tokenise(tmp_path, IDS, [1, 0, 1]))
    assert source.tokens == Tokens("0123456789abcdef", (2, 3))
    assert (len(source), source.classes, source.labelled) == (3, CLASSES, True)
    assert [record.label for record in source] == [1, 0, 1]
    np.testing.assert_array_equal([record.ids for record in source], IDS)
    assert {record.picture for record in source} == {None}


def test_labels_and_names_of_classes_may_be_missing(tmp_path):
    for classes in ([], None):
        source = open_source(tokenise(tmp_path, IDS, classes=classes))
        assert (source.classes, source.labelled, [record.label for record in source]) == ((), False, [None] * 3)


@pytest.mark.parametrize("labels", [[0.5, 1.5, 2.5], [[0, 1], [1, 1], [0, 0]]], ids=str)
def test_labels_may_be_other_numbers(tmp_path, labels):
    assert [record.label for record in open_source(tokenise(tmp_path, IDS, labels))] == labels


def test_ids_are_mapped_and_not_read(tmp_path):
    source = open_source(tokenise(tmp_path, IDS))
    with (tmp_path / "ids.npy").open("rb+") as file:  # in place: the map sees it
        file.seek(-2, 2)
        file.write(b"\x37\x00")
    assert [record.ids[-1] for record in source if record.ids is not None] == [4, 4, 0x37]


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"count": 2}, r"ids\.npy holds uint16 \(3, 6\); by meta\.json it should be uint16 \(2, 6\)"),
        ({"grid": [2, 2]}, r"ids\.npy holds uint16 \(3, 6\); by meta\.json it should be uint16 \(3, 4\)"),
        ({"grid": [6]}, r"meta\.json can't be used"),
        ({"grid": 6}, r"meta\.json can't be used"),
        ({"grid": ["2", "3"]}, r"meta\.json can't be used: grid and count must be whole numbers"),
        ({"grid": [-2, -3]}, r"meta\.json can't be used: grid and count must be whole numbers"),
        ({"grid": [2.0, 3.0]}, r"meta\.json can't be used: grid and count must be whole numbers"),
        ({"count": True}, r"meta\.json can't be used: grid and count must be whole numbers"),
        ({"count": "3"}, r"meta\.json can't be used: grid and count must be whole numbers"),
        ({"codec": 3}, r"meta\.json can't be used: codec and classes must be texts"),
        ({"classes": [1]}, r"meta\.json can't be used: codec and classes must be texts"),
        ({"classes": 1}, r"meta\.json can't be used"),
    ],
    ids=str,
)
def test_a_description_that_lies_is_refused(tmp_path, meta, told):
    with pytest.raises(InputError, match=told) as error:
        open_source(tokenise(tmp_path, IDS, **meta))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff", b"null"])
def test_a_damaged_description_is_named(tmp_path, text):
    tokenise(tmp_path, IDS)
    put(tmp_path / "meta.json", text)
    with pytest.raises(InputError, match=r"meta\.json can't be used: "):
        open_source(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    for entry in ("codec", "grid", "count"):
        tokenise(tmp_path, IDS)
        text = (tmp_path / "meta.json").read_text().replace(f'"{entry}"', '"other"')
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(InputError, match=rf"meta\.json has no entry '{entry}'"):
            open_source(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(InputError, match=r"meta\.json"):
        open_source(tmp_path)


@pytest.mark.parametrize("ids", [IDS.astype(np.int64), IDS.astype(np.int16), IDS[0], IDS.reshape(3, 2, 3)], ids=str)
def test_other_ids_are_refused(tmp_path, ids):
    with pytest.raises(InputError, match=r"ids\.npy holds .*; by meta\.json it should be uint16 \(3, 6\)"):
        open_source(tokenise(tmp_path, ids, count=3))


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 3, 4], 3, ["a", "b", "c"], np.zeros((3, 2, 2))], ids=str)
def test_other_labels_are_refused(tmp_path, labels):
    with pytest.raises(InputError, match=r"labels\.npy holds .*; it should have 3 numbers"):
        open_source(tokenise(tmp_path, IDS, labels))


@pytest.mark.parametrize("name", ["ids.npy", "labels.npy"])
@pytest.mark.parametrize("length", [0, 5, 60, 130])
def test_a_file_that_is_cut_off_is_named(tmp_path, name, length):
    path = tokenise(tmp_path, IDS, [0, 1, 0]) / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=rf"{name[:-4]}\.npy can't be read: "):
        open_source(tmp_path)


def test_pickled_objects_are_not_read(tmp_path):
    tokenise(tmp_path, np.array([{}, {}, {}], object), count=3)
    with pytest.raises(InputError, match=r"ids\.npy can't be read: "):
        open_source(tmp_path)


# --- the palette and the checksums, which may be missing


def checked(folder, labels=(1, 0, 1)):
    """A tokenised folder with the checksums of its files."""
    tokenise(folder, IDS, labels)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.npy")}
    return tokenise(folder, IDS, labels, codec=CODEC.fingerprint, clusters=CODEC.clusters.tolist(), checksums=sums)


def test_the_palette_and_the_checksums_come_along(tmp_path):
    tokens = open_source(checked(tmp_path)).tokens
    assert tokens is not None and tokens.checksums is not None
    assert tokens.entries == {"clusters": CODEC.clusters.tolist()}
    assert sorted(tokens.checksums) == ["ids.npy", "labels.npy"]
    assert tokens == Tokens(CODEC.fingerprint, (2, 3))
    assert repr(tokens) == f"Tokens(codec={CODEC.fingerprint!r}, grid=(2, 3))"


def test_a_folder_without_them_is_read_and_vouches_for_nothing(tmp_path):
    tokens = open_source(tokenise(tmp_path, IDS)).tokens
    assert tokens is not None
    assert (tokens.entries, tokens.checksums) == ({}, None)
    assert verify(tmp_path) is False


@pytest.mark.parametrize("labels", [None, [1, 0, 1]])
def test_what_is_whole_is_verified(tmp_path, labels):
    assert verify(checked(tmp_path, labels)) is True
    assert verify(str(tmp_path)) is True


@given(name=st.sampled_from(["ids.npy", "labels.npy"]), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_bit_that_has_changed_is_found(name, place, bit):
    with tempfile.TemporaryDirectory() as folder:
        path = checked(Path(folder)) / name
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name[:-4]}\.npy is damaged: its bytes are not those") as error:
            verify(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ids.npy", "labels.npy"])
def test_a_file_that_is_gone_or_cut_off_is_named(tmp_path, name):
    path = checked(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{name[:-4]}\.npy is damaged"):
        verify(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name[:-4]}\.npy can't be read: No such file"):
        verify(tmp_path)


def test_another_codec_beside_the_ids_is_found(tmp_path):
    meta = checked(tmp_path) / "meta.json"
    values = json.loads(meta.read_text())
    meta.write_text(json.dumps({**values, "codec": CODEC.fingerprint, "clusters": CODEC.clusters.tolist()}))
    assert verify(tmp_path) is True
    meta.write_text(json.dumps({**values, "codec": CODEC.fingerprint, "clusters": CODEC.clusters[::-1].tolist()}))
    with pytest.raises(InputError, match="and beside them another"):
        verify(tmp_path)


def test_labels_that_came_later_are_named(tmp_path):
    np.save(checked(tmp_path, None) / "labels.npy", [0, 1, 0])
    with pytest.raises(InputError, match=r"labels\.npy is there, and meta\.json has no checksum of it"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"checksums": {}}, "checksums must be the SHA-256 digests"),
        ({"checksums": {"labels.npy": ZEROS}}, "checksums must be the SHA-256 digests"),
        ({"checksums": {"ids.npy": "0" * 63}}, "checksums must be the SHA-256 digests"),
        ({"checksums": {"ids.npy": ZEROS, "../ids.npy": ZEROS}}, "checksums must be the SHA-256 digests"),
        ({"checksums": {"ids.npy": None}}, ""),
        ({"checksums": ["ids.npy"]}, ""),
        ({"checksums": 3}, ""),
    ],
    ids=str,
)
def test_checksums_that_can_not_be_are_refused(tmp_path, meta, told):
    tokenise(tmp_path, IDS, **meta)
    for read in (open_source, verify):
        with pytest.raises(InputError, match=rf"meta\.json can't be used: .*{told}") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"clusters": CODEC.clusters[::-1].tolist()}, "and beside them another"),
        ({"clusters": [[0, 0]]}, r"codec can't be used: A palette is an array of K colours, shape \(K, 3\)"),
        ({"clusters": "red"}, "codec can't be used"),
        ({"vqvae": "../elsewhere"}, "codec can't be used: vqvae must be the name of a folder beside it"),
        ({"vqvae": "gone"}, "gone"),
    ],
    ids=str,
)
def test_a_codec_that_can_not_be_is_refused_when_it_is_asked_for(tmp_path, entries, told):
    source = open_source(tokenise(tmp_path, IDS, codec=CODEC.fingerprint, **entries))
    with pytest.raises(InputError, match=told) as error:
        codec_of(source, None)
    assert "\n" not in str(error.value)
