"""DATA: where many pictures come from, as one notion for the whole command line.

* a folder: every picture in it and below; where its pictures lie in subfolders, these are the classes;
* a parquet file in Hugging Face's layout (a column `image` of {bytes, path}, perhaps `label`), or a folder of such
  files, `DATA:split` for those whose names begin with the split;
* one picture file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from imagegpt.codec.pictures import OnError, Picture, read_picture
from imagegpt.errors import InputError, MissingExtra, reason

BATCH = 256  # rows of a parquet file that are held at once


@dataclass(frozen=True)
class Record:
    """One entry of a source, not yet read.

    Args:
        name: says which one it is, in messages.
        picture: a path or the bytes of a file.
        label: number of its class, if it has one.
    """

    name: str
    picture: Picture
    label: int | None = None


@dataclass(frozen=True)
class Source:
    """Many pictures, in an order that stays.

    Args:
        path: where they are.
        length: how many.
        records: makes an iterator over all of them.
        classes: names of the classes, by label; empty where there are none.
    """

    path: str
    length: int
    records: Callable[[], Iterator[Record]]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Record]:
        return self.records()


@dataclass
class Skipped:
    """Records that could not be read, with `on_error="skip"`.

    Args:
        reasons: a sentence for each, in order.
    """

    reasons: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.reasons)


def open_source(data: str | Path) -> Source:
    """Find out what DATA is.

    Args:
        data: a path, and perhaps `:split` behind it.

    Raises:
        InputError: nothing is there, or nothing that holds pictures.
        MissingExtra: a parquet file without pyarrow (extra "data").
    """
    path, split = _path_and_split(str(data))
    if path.is_file():
        return _parquet([path], str(data)) if path.suffix == ".parquet" else _files([path], str(data))
    tables = sorted(path.glob(f"{split}*.parquet" if split else "*.parquet"))
    if tables:
        return _parquet(tables, str(data))
    if split:
        path = path / split
        if not path.is_dir():
            raise InputError(f"{data}: {path.parent} has neither {split}*.parquet nor a folder {split}.")
    return _folder(path, str(data))


def read_records(source: Source, on_error: OnError = "raise") -> Iterator[tuple[Record, Image.Image | str]]:
    """Read a source's pictures one after another.

    Args:
        source: what to read.
        on_error: "raise" stops at the first bad picture; "skip" gives its reason in the picture's place.

    Yields:
        The record, and an RGB image, or, with "skip", the sentence that says why there is none.

    Raises:
        InputError: a bad picture, named, with "raise".
    """
    for record in source:
        try:
            yield record, read_picture(record.picture)
        except InputError as error:
            told = str(error) if record.name in str(error) else f"{record.name}: {error}"
            if on_error == "raise":
                raise InputError(told) from None
            yield record, told


def _path_and_split(data: str) -> tuple[Path, str]:
    if os.path.exists(data):
        return Path(data), ""
    path, _, split = data.rpartition(":")
    if path and split and os.path.exists(path):
        return Path(path), split
    raise InputError(f"{data}: there is no such file or folder.")


def _folder(path: Path, name: str) -> Source:
    Image.init()
    files = sorted(
        Path(folder) / file
        for folder, _, names in os.walk(path)
        for file in names
        if os.path.splitext(file)[1].lower() in Image.EXTENSION
    )
    if not files:
        raise InputError(f"{name} holds no pictures: no file with a picture's ending, and no .parquet file.")
    parents = {file.relative_to(path).parts[0] for file in files if file.parent != path}
    below = all(file.parent != path for file in files)
    return _files(files, name, tuple(sorted(parents)) if below else (), path)


def _files(files: list[Path], name: str, classes: tuple[str, ...] = (), root: Path | None = None) -> Source:
    def records() -> Iterator[Record]:
        for file in files:
            label = classes.index(file.relative_to(root).parts[0]) if classes and root else None
            yield Record(str(file), file, label)

    return Source(name, len(files), records, classes)


def _parquet(paths: list[Path], name: str) -> Source:
    files = [_open_parquet(path) for path in paths]
    wanted = ["image", "label"] if "label" in files[0].schema_arrow.names else ["image"]
    for path, file in zip(paths, files, strict=True):
        columns = file.schema_arrow.names
        for column in wanted:
            if column not in columns:
                raise InputError(f"{path} has no column {column}; it has {', '.join(columns)}.")

    def records() -> Iterator[Record]:
        number = 0
        for path in paths:
            for row in _rows(path, wanted):
                yield Record(f"{name}, row {number}", _cell(row["image"]), row.get("label"))
                number += 1

    return Source(name, sum(file.metadata.num_rows for file in files), records, _class_names(files[0]))


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("Reading parquet files", "pyarrow", "data") from error
    with _damage_told(path):
        return ParquetFile(path)


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    batches = _open_parquet(path).iter_batches(BATCH, columns=columns)
    while True:
        with _damage_told(path):  # around the reading alone: not around what is done with a row
            batch = next(batches, None)
        if batch is None:
            return
        yield from batch.to_pylist()


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise InputError(f"{path} can't be read as parquet: {reason(error)}") from None


def _cell(cell: Any) -> Any:
    """The bytes of a cell, or the path that it names."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path") or b""
    return cell or b""


def _class_names(file: Any) -> tuple[str, ...]:
    """Names of the classes, which Hugging Face's writer keeps in the file's metadata."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return ()
