"""Files are written whole or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


def cache_folder() -> Path | None:
    """Where what can be made again lies; `None` where that is switched off (see docs/pictures.md)."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("imagegpt", appauthor=False)


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
