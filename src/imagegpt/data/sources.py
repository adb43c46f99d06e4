"""DATA: where many pictures come from, as one notion for the whole command line. docs/data.md lists what it may be."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from imagegpt.data.arrays import open_arrays
from imagegpt.data.folders import is_picture_name, open_files, open_pictures
from imagegpt.data.hf import SAVED, SPLITS, open_hub, open_saved, saved_splits, the_only
from imagegpt.data.parquet import open_parquet
from imagegpt.data.records import Source
from imagegpt.data.shards import expand_braces, open_shards
from imagegpt.data.tokens import IDS, open_tokens
from imagegpt.errors import InputError, check_count

# Files that hold many records, by their ending; a folder of several, or those whose names begin with a split, is one.
TABLES: dict[str, Callable[[list[Path], str, str | None], Source]] = {".parquet": open_parquet, ".tar": open_shards}
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


def open_source(data: str | Path, label_column: str | None = None, limit: int | None = None) -> Source:
    """Find out what DATA is.

    Args:
        data: a path, a pattern of shards or a name on the Hugging Face Hub, and perhaps `:split` behind it.
        label_column: what the labels are called, where there are several columns, arrays or keys.
        limit: take the first so many records.

    Raises:
        InputError: nothing is there, or nothing that holds pictures or ids; it is damaged, or has no such column.
        MissingExtra: a parquet file or a data set of Hugging Face's without the extra "data".
    """
    if limit is not None:
        check_count("limit", limit)
    source = _open(str(data), label_column)
    if not len(source):
        raise InputError(f"{data} holds no pictures: it has no rows.")
    return source if limit is None else replace(source, length=min(limit, source.length))


def _open(data: str, label_column: str | None) -> Source:
    path, split = _path_and_split(data)
    if os.path.isdir(path):
        return _open_folder(Path(path), split, data, label_column)
    if os.path.exists(path):
        return _open_file(Path(path), split, data, label_column)
    if shards := expand_braces(data):
        return open_shards(shards, data, label_column)
    if _is_hub_name(path):
        return open_hub(path, split, data, label_column)
    raise InputError(f"{data}: there is no such file or folder.")


def _path_and_split(data: str) -> tuple[str, str]:
    if os.path.exists(data):
        return data, ""
    path, _, split = data.rpartition(":")
    known = path and split and (os.path.exists(path) or _is_hub_name(path))
    return (path, split) if known else (data, "")


def _is_hub_name(text: str) -> bool:
    """Whether it has the form of one, and is no path of a file that is not there."""
    is_file = is_picture_name(text) or text.endswith((*TABLES, ".npz"))
    return bool(HUB_NAME.fullmatch(text)) and not is_file


def _open_file(path: Path, split: str, data: str, label_column: str | None) -> Source:
    if path.suffix == ".npz":
        return open_arrays(path, split, data, label_column)
    if split:
        raise InputError(f"{data}: {path} is one file and has no splits; give it without :{split}.")
    if path.suffix in TABLES:
        return TABLES[path.suffix]([path], data, label_column)
    _refuse_column(label_column, data)
    return open_files([path], data)


def _open_folder(path: Path, split: str, data: str, label_column: str | None) -> Source:
    if not split and (path / SAVED).exists():
        return open_saved(path, data, label_column)
    for ending, open_table in TABLES.items():
        if found := sorted(path.glob(f"{glob.escape(split)}*{ending}")):
            return open_table(found, data, label_column)
    if not split and (path / SPLITS).exists():
        split = the_only(saved_splits(path), data)
    if split:
        if not (path / split).is_dir():
            raise InputError(f"{data}: {path} has neither {split}*.parquet nor {split}*.tar nor a folder {split}.")
        return _open_folder(path / split, "", data, label_column)
    _refuse_column(label_column, data)
    return open_tokens(path, data) if (path / IDS).exists() else open_pictures(path, data)


def _refuse_column(label_column: str | None, data: str) -> None:
    if label_column is not None:
        raise InputError(f"{data} has no columns, so there is none named {label_column}; leave the label column out.")
