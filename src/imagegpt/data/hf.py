"""Data sets of Hugging Face's library `datasets`: saved to disk, or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from imagegpt.data.records import Record, Source
from imagegpt.data.tables import BATCH, choose_columns
from imagegpt.errors import InputError, MissingExtra, reason

SAVED, SPLITS = "state.json", "dataset_dict.json"  # what save_to_disk leaves of a data set, and of one with splits


def saved_splits(folder: Path) -> list[str]:
    """The splits of a saved data set; an InputError says that their list is damaged."""
    try:
        splits = [str(split) for split in json.loads((folder / SPLITS).read_text(encoding="utf-8"))["splits"]]
        if not splits:
            raise ValueError("it names none")
        return splits
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder / SPLITS} can't be read: {reason(error)}.") from None


def the_only(splits: Iterable[str], name: str) -> str:
    """The split of a data set that has one; an InputError lists them where there are more."""
    splits = list(splits)
    if len(splits) != 1:
        raise InputError(f"{name} has the splits {', '.join(splits)}; name one: {name}:{splits[0]}.")
    return splits[0]


def open_saved(folder: Path, name: str, label_column: str | None = None) -> Source:
    """What `save_to_disk` wrote, mapped into memory.

    Raises:
        InputError: it is damaged, or has no such columns.
        MissingExtra: there is no package datasets (extra "data").
    """
    datasets = _library(f"Reading {name}, a data set saved to disk,")
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged file makes the library raise nearly anything
        raise InputError(f"{name} can't be read as a saved data set: {reason(error)}") from None
    return _source(found, name, label_column)


def open_hub(repository: str, split: str, name: str, label_column: str | None = None) -> Source:
    """A data set of the Hub, downloaded once.

    Raises:
        InputError: there is none, it can't be had, or it has no such split or columns.
        MissingExtra: there is no package datasets (extra "data").
    """
    datasets = _library(f"{name} is no file or folder here; reading it from the Hugging Face Hub")
    try:
        found = datasets.load_dataset(repository, split=split or None)
    except Exception as error:  # the network, the Hub, or any reader of the library
        raise InputError(
            f"{name} is no file or folder here, and no data set that can be had from the Hugging Face Hub: "
            f"{reason(error)}"
        ) from None
    if isinstance(found, dict):
        found = found[the_only(found, name)]
    return _source(found, name, label_column)


def _source(dataset: Any, name: str, label_column: str | None) -> Source:
    columns = choose_columns(dataset.features.arrow_schema, name, label_column)
    tables = dataset.select_columns(columns.names).with_format("arrow")  # bytes as they are, not pictures

    def records(start: int, stop: int) -> Iterator[Record]:
        parts = (tables[first : min(first + BATCH, stop)].to_pylist() for first in range(start, stop, BATCH))
        return columns.records(chain.from_iterable(parts), name, start)

    return Source(name, len(tables), records, columns.label is not None, columns.classes)


def _library(what: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra(what, "datasets", "data") from error
    return datasets
