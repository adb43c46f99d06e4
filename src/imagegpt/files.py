"""Files are written whole or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

VARIABLE = "IMAGEGPT_CACHE"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in place at once.

    Args:
        path: the file to make or to replace.
        write: called with the temporary path, which ends like `path`; it makes that file.

    Raises:
        InputError: the folder is missing or can't be written, or the disk is full; `path` is as it was.
    """
    temporary = _beside(path)
    with _told(path), _removed(temporary):
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def check_writable(path: Path) -> None:
    """Raise what `write_whole` would raise for this path, now; nothing is left behind."""
    temporary = _beside(path)
    with _told(path), _removed(temporary):
        temporary.touch()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there; an InputError says why that can't be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} can't be made: {error.strerror}.") from None


def check_folder(path: Path, told: Path | None = None) -> None:
    """Refuse a folder that can't be made or written into, before any work; nothing is left behind.

    Args:
        path: the folder.
        told: what the message calls it; default: its path.

    Raises:
        InputError: what is in the way.
    """
    there = path
    while not os.path.exists(there):
        there = there.parent
    try:
        check_writable(there / "picture.png")
    except InputError:
        why = f"nothing can be written into {there}" if there.is_dir() else f"{there} is a file"
        raise InputError(f"The folder {told or path} can't be made: {why}.") from None


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something already or can't be made, before any work; nothing is left behind.

    Raises:
        InputError: what is in the way.
    """
    if not path.name:
        raise InputError(f"{path} is the folder that you are in; name a new one.")
    if os.path.lexists(path) and not _is_empty(path):
        what = "holds something" if path.is_dir() else "is a file"
        raise InputError(f"{path} {what}; name a new or empty folder.")
    check_folder(path.parent, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to be filled, which takes its place at once at the end, or goes if anything goes wrong.

    Args:
        path: a new or empty folder; those above it are made.

    Raises:
        InputError: see `check_new_folder`; or the disk is full.
    """
    check_new_folder(path)
    missing = [above for above in path.parents if not above.exists()]
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with _told(path):
            temporary.mkdir()
            yield temporary
            if path.exists():
                path.rmdir()  # it is empty
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for above in missing:
            with suppress(OSError):
                above.rmdir()
        raise


def sizes(folder: Path) -> dict[str, int]:
    """Name of each file of a folder, those in its folders included -> its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def write_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], chunks: Iterable[NDArray[Any]]
) -> None:
    """Write an array into an .npz archive, of which no more than a chunk need be in memory.

    Args:
        archive: open for writing.
        name: of the array.
        dtype, shape: of the whole.
        chunks: its rows, in pieces of that type.
    """
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.tobytes())


def cache_folder() -> Path | None:
    """Where what can be made again lies; `None` where that is switched off (see docs/pictures.md)."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("imagegpt", appauthor=False)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}.") from None


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
