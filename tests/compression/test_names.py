"""What decompressed pictures are called, whatever the file says."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.compression.names import MOST_BYTES, MOST_PARTS, Names

PARTS = st.sampled_from(
    ["..", ".", "", "a", "A", "b.png", "C:", "con", "x" * 400, "é" * 300, "\x00", "a.b.jpg", " ", "~"]
)
NASTY = st.text() | st.lists(PARTS, max_size=20).map("/".join) | st.lists(PARTS, max_size=20).map("\\".join)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cat.jpg", "cat.png"),
        ("cats/1.jpeg", "cats/1.png"),
        ("a.b.c", "a.b.png"),
        ("photo", "photo.png"),
        (None, "000007.png"),
        ("", "000007.png"),
        ("../../etc/passwd", "etc/passwd.png"),
        ("/etc/passwd", "etc/passwd.png"),
        ("C:\\Windows\\system32\\a.png", "C_/Windows/system32/a.png"),
        ("\\\\host\\share\\a.png", "host/share/a.png"),
        ("a\x00b\n.png", "a_b_.png"),
        ("..", "000007.png"),
        ("./.../x.png", "x.png"),
        ("CON.png", "_CON.png"),
        ("grüße 日本.png", "grüße 日本.png"),
        (".hidden", ".hidden.png"),
    ],
)
def test_names_become_paths(name, path):
    assert Names().of(7, name) == path


def test_each_has_its_own():
    names, given_names = Names(), ["a.jpg", "a.png", "A.png", "a-1.png", None, "a/b.png", "a.png/c.png", "A.PNG_/c.png"]
    assert [names.of(number, name) for number, name in enumerate(given_names)] == [
        *("a.png", "a-1.png", "A-2.png", "a-1-3.png", "000004.png", "a/b.png", "a.png_/c.png", "A.PNG_/c-7.png")
    ]


@given(st.lists(st.none() | NASTY, max_size=12))
def test_no_name_leads_out_and_none_is_given_twice(tmp_path_factory, given_names):
    names = Names()
    found = [names.of(number, name) for number, name in enumerate(given_names)]
    assert len({path.lower() for path in found}) == len(found)
    root = Path("/out")
    for path in found:
        parts = path.split("/")
        assert path.endswith(".png") and len(parts) <= MOST_PARTS
        assert not PurePosixPath(path).is_absolute() and not PureWindowsPath(path).drive
        assert all(part not in ("", ".", "..") and len(part.encode()) <= MOST_BYTES + 30 for part in parts)
        assert not any(character in path for character in '\\:*?"<>|\x00\n')
        assert (root / path).resolve().is_relative_to(root)
    folders = {"/".join(path.lower().split("/")[:depth]) for path in found for depth in range(1, path.count("/") + 1)}
    assert not folders & {path.lower() for path in found}
