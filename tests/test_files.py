"""write_whole: whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from imagegpt.errors import InputError
from imagegpt.files import check_new_folder, check_writable, whole_folder, write_text, write_whole


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")
    write_text(path, "Zwölf")
    assert listing(tmp_path) == {"a.txt": "Zwölf".encode()}


def test_write_is_given_a_file_beside_the_target_with_its_suffix(tmp_path):
    seen = []
    write_whole(tmp_path / "picture.png", lambda path: (seen.append(path), path.write_bytes(b"x")))
    assert seen[0] != tmp_path / "picture.png"
    assert (seen[0].parent, seen[0].suffix) == (tmp_path, ".png")
    assert seen[0].name.startswith(".")  # what a kill leaves is hidden, and no *.png of the folder


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.parametrize("existing", [True, False])
def test_on_failure_the_old_file_stays_and_nothing_is_left(tmp_path, error, existing):
    path = tmp_path / "a.txt"
    if existing:
        path.write_text("old")
    before = listing(tmp_path)

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert listing(tmp_path) == before


def test_a_full_disk_is_told_in_words_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"a\.txt can't be written: No space left"):
        write_whole(path, write)
    assert listing(tmp_path) == {"a.txt": b"old"}


def test_the_file_is_whole_before_it_has_its_name(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"

    write_whole(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_file_made_normally(tmp_path, mask):
    previous = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "normal").write_text("x")
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(previous)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "normal")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("where", ["missing/a.txt", "file/a.txt"])
def test_a_folder_that_is_none(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"a\.txt can't be written"):
        write_text(tmp_path / where, "x")
    assert listing(tmp_path) == {"file": b"x"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="can't be written: Permission denied"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_proc_can_not_be_written():
    if not Path("/proc/version").exists():
        pytest.skip("no /proc here")
    with pytest.raises(InputError, match=r"/proc/x\.txt can't be written"):
        write_text(Path("/proc/x.txt"), "x")


def test_a_target_that_is_a_folder_is_left_alone(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match=r"a\.txt can't be written"):
        write_text(tmp_path / "a.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("existing", [True, False])
def test_check_writable_leaves_everything_as_it_was(tmp_path, existing):
    if existing:
        (tmp_path / "a.txt").write_text("old")
    before = listing(tmp_path)
    check_writable(tmp_path / "a.txt")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("where", ["missing/a.txt", "file/a.txt"])
def test_check_writable_raises_what_writing_would(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as checked:
        check_writable(tmp_path / where)
    with pytest.raises(InputError) as written:
        write_text(tmp_path / where, "x")
    assert str(checked.value) == str(written.value)
    assert listing(tmp_path) == {"file": b"x"}


def test_a_folder_takes_its_place_at_once(tmp_path):
    with whole_folder(tmp_path / "new" / "out") as folder:
        assert folder.parent == tmp_path / "new" and not (tmp_path / "new" / "out").exists()
        write_text(folder / "a.txt", "a")
    assert listing(tmp_path / "new" / "out") == {"a.txt": b"a"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        write_text(folder / "a.txt", "a")
    assert listing(tmp_path / "out") == {"a.txt": b"a"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "No space left")])
def test_a_folder_that_is_not_finished_leaves_nothing_not_even_those_above(error, tmp_path):
    with (
        pytest.raises(InputError if isinstance(error, OSError) else type(error)),
        whole_folder(tmp_path / "a" / "b" / "out") as folder,
    ):
        write_text(folder / "a.txt", "a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_folders_that_can_not_be_new_are_refused(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "mine")
    (tmp_path / "full").mkdir()
    write_text(tmp_path / "full" / "mine", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, message in [
        (tmp_path / "file", "file is a file; name a new or empty folder"),
        (tmp_path / "full", "full holds something"),
        (tmp_path / "link", "link is a file"),
        (tmp_path / "file" / "out", "file is a file"),
        (Path("."), "the folder that you are in"),
    ]:
        with pytest.raises(InputError, match=message):
            check_new_folder(path)

    def refuse(path):
        raise InputError("no")

    monkeypatch.setattr("imagegpt.files.check_writable", refuse)
    with pytest.raises(InputError, match=f"out can't be made: nothing can be written into {tmp_path}"):
        check_new_folder(tmp_path / "a" / "out")
