"""Tables: any keys and values, however they are cut and packed, and damage at every byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import FIXTURES, block, sealed, table, varint
from imagegpt.convert import sstable
from imagegpt.convert.sstable import read_table
from imagegpt.errors import InputError

KEYS = st.one_of(st.binary(max_size=12), st.sampled_from([b"model/h%d/attn/q_proj" % n for n in range(30)]))
ENTRIES = st.dictionaries(KEYS, st.binary(max_size=60), min_size=1, max_size=40).map(
    lambda found: sorted(found.items())
)
SOME = [(b"", b"header"), *((b"model/%02d" % n, bytes([n]) * n) for n in range(12))]
DAMAGED = r"a\.index is damaged or no index of a TensorFlow checkpoint: "


def snappy(data: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(data, codec="snappy", asbytes=True)


def read(path, content: bytes):
    path.write_bytes(content)
    return read_table(path)


@given(ENTRIES, st.integers(1, 400), st.integers(1, 20), st.booleans())
def test_any_table(tmp_path_factory, entries, size, restart, packed):
    path = tmp_path_factory.mktemp("tables") / "a.index"
    assert read(path, table(entries, size, restart, snappy if packed else None)) == entries


def test_tensorflows_own():
    path = FIXTURES / "openai_8px" / "model.ckpt-1000.index"
    if not path.exists():
        pytest.skip("shared/fixtures is not here")
    entries = read_table(path)
    assert len(entries) == 91  # a header, 29 variables with two slots of Adam each, three counters
    assert entries[0][0] == b""
    assert [key for key, _ in entries] == sorted(key for key, _ in entries)


def test_a_damaged_byte_anywhere_is_noticed(tmp_path):
    content = table(SOME, 100)
    for place in range(len(content)):
        for flip in (1 << place % 8, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= flip
            with pytest.raises(InputError, match=DAMAGED):
                read(tmp_path / "a.index", bytes(damaged))


def test_a_table_that_is_cut_off_anywhere(tmp_path):
    content = table(SOME, 100)
    for size in range(0, len(content), 3):
        with pytest.raises(InputError, match=DAMAGED):
            read(tmp_path / "a.index", content[:size])
        with pytest.raises(InputError, match=DAMAGED):
            read(tmp_path / "a.index", content[-size or len(content) :])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"a\.index: there is no such file"):
        read_table(tmp_path / "a.index")
    with pytest.raises(InputError, match="can't be read"):
        read_table(tmp_path)


def assembled(*contents: bytes, index: list | None = None, others: bytes | None = None, kind: int = 0) -> bytes:
    """A table of given blocks, with correct checksums."""
    file, places = b"", []
    for content in contents:
        places.append((len(file), len(content)))
        file += sealed(content, kind)
    entries = index or [(b"\xff%d" % number, varint(o) + varint(s)) for number, (o, s) in enumerate(places)]
    footer = b""
    for content in (block([]) if others is None else others, block(entries)):
        footer += varint(len(file)) + varint(len(content))
        file += sealed(content)
    return file + footer.ljust(40, b"\0") + sstable.MAGIC.to_bytes(8, "little")


def test_the_assembly_of_the_tests_below_is_right(tmp_path):
    assert read(tmp_path / "a.index", assembled(block([(b"a", b"b")]), block([(b"c", b"")]))) == [
        (b"a", b"b"),
        (b"c", b""),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (assembled(block([(b"b", b"")]), block([(b"a", b"")])), "keys are not in order"),
        (assembled(block([(b"b", b""), (b"b", b"")])), "keys are not in order"),
        (assembled(block([(b"z", b"")]), index=[(b"a", varint(0) + varint(12))]), "keys are not where they should be"),
        (assembled(block([(b"a", b"")]), kind=2), "packed in an unknown way"),
        (assembled(block([(b"a", b"")]), kind=1), "packed block"),
        (assembled(block([(b"a", b"")]), others=block([(b"filter.x", b"\0\0")])), "of a kind that"),
        (assembled(b""), "cut off"),
        (assembled(struct.pack("<I", 5)), "cut off"),
        (assembled(varint(3) + varint(1) + varint(0) + b"a" + struct.pack("<II", 0, 1)), "cut off"),
        (assembled(varint(0) + varint(9) + varint(0) + b"a" + struct.pack("<II", 0, 1)), "cut off"),
        (assembled(b"\xff" * 11 + struct.pack("<II", 0, 1)), "cut off or too long"),
        (assembled(block([(b"a", b"")]), index=[(b"b", varint(1) + varint(11))]), "blocks are not where"),
        (assembled(block([(b"a", b"")]), index=[(b"b", varint(0) + varint(1 << 60))]), "blocks do not fill"),
        (assembled(block([(b"a", b"")]), index=[(b"b", b"")]), "cut off"),
    ],
)
def test_forged_tables(tmp_path, content, why):
    with pytest.raises(InputError, match=DAMAGED + f".*{why}"):
        read(tmp_path / "a.index", content)


def test_limits(tmp_path, monkeypatch):
    content = table(SOME, 100)
    monkeypatch.setattr(sstable, "MOST_BYTES", len(content) - 1)
    with pytest.raises(InputError, match=r"and no more than .* are read"):
        read(tmp_path / "a.index", content)
    monkeypatch.setattr(sstable, "MOST_BYTES", len(content))
    assert read(tmp_path / "a.index", content) == SOME
    monkeypatch.setattr(sstable, "MOST_MEMORY", 1000)
    with pytest.raises(InputError, match="more than any checkpoint needs"):
        read(tmp_path / "a.index", content)
