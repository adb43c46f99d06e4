"""Pictures in files of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from imagegpt.data.records import Record, Source
from imagegpt.errors import InputError


def open_pictures(folder: Path, name: str) -> Source:
    """Every picture in a folder and below; where all lie in subfolders, these are the classes.

    Raises:
        InputError: there is none.
    """
    files = sorted(
        Path(parent) / file for parent, _, files in os.walk(folder) for file in files if is_picture_name(file)
    )
    if not files:
        raise InputError(f"{name} holds no pictures: no file with a picture's ending, no .parquet and no .tar file.")
    if any(file.parent == folder for file in files):
        return open_files(files, name)
    parents = [file.relative_to(folder).parts[0] for file in files]
    classes = sorted(set(parents))
    numbers = {parent: number for number, parent in enumerate(classes)}
    return open_files(files, name, [numbers[parent] for parent in parents], classes)


def open_files(files: list[Path], name: str, labels: list[int] | None = None, classes: Sequence[str] = ()) -> Source:
    """Pictures by their paths."""

    def records(start: int, stop: int) -> Iterator[Record]:
        for number in range(start, stop):
            yield Record(str(files[number]), files[number], labels[number] if labels else None)

    return Source(name, len(files), records, labels is not None, tuple(classes))


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as that of a picture that Pillow knows."""
    return os.path.splitext(name)[1].lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    Image.init()
    return frozenset(Image.EXTENSION)
