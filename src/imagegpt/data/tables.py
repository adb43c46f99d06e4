"""Rows of Arrow tables, which parquet files and the data sets of Hugging Face have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from imagegpt.data.records import Record
from imagegpt.errors import InputError

BATCH = 256  # rows that are held at once: of photographs, some tens of MiB


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are of interest.

    Args:
        picture, label: their names; `None` where there are no labels.
        classes: names of the classes, by label.
    """

    picture: str
    label: str | None
    classes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Those that are to be read."""
        return [self.picture] if self.label is None else [self.picture, self.label]

    def records(self, rows: Iterable[dict[str, Any]], name: str, first: int) -> Iterator[Record]:
        """Rows as records, numbered from `first`."""
        for number, row in enumerate(rows, first):
            label = None if self.label is None else row[self.label]
            yield Record(f"{name}, row {number}", _cell(row[self.picture]), label)


def choose_columns(schema: Any, where: str, label_column: str | None) -> Columns:
    """Find a table's pictures and labels.

    Pictures are the column `image` or `img`, else the only one of the type Image; labels the named column, else `label`
    or `labels`, else the only one of the type ClassLabel.

    Args:
        schema: Arrow's, in whose metadata Hugging Face's writer keeps its types.
        where: the table's name, for messages.
        label_column: the name of the labels' column, if it is given.

    Raises:
        InputError: no column of pictures, or none of that name with numbers.
    """
    features = _features(schema.metadata)
    picture = _pick(schema.names, features, ("image", "img"), "Image")
    if picture is None:
        raise InputError(f"{where} has no column image or img; it has {', '.join(schema.names)}.")
    if label_column is not None:
        check_columns(schema, [label_column], where)
        if not _holds_numbers(schema.field(label_column).type):
            raise InputError(f"{where}: the column {label_column} does not hold numbers; name another label column.")
    numbers = [name for name in schema.names if _holds_numbers(schema.field(name).type)]
    label = label_column or _pick(numbers, features, ("label", "labels"), "ClassLabel")
    names = features.get(label or "", {}).get("names")
    return Columns(picture, label, tuple(map(str, names)) if isinstance(names, list) else ())


def check_columns(schema: Any, wanted: Iterable[str], where: str) -> None:
    """Refuse a table that lacks a column."""
    for column in wanted:
        if column not in schema.names:
            raise InputError(f"{where} has no column {column}; it has {', '.join(schema.names)}.")


def _pick(names: list[str], features: dict[str, dict[str, Any]], usual: tuple[str, ...], kind: str) -> str | None:
    """The first of the usual names that there is, else the only column of a type of Hugging Face's."""
    if found := [name for name in usual if name in names]:
        return found[0]
    typed = [name for name in names if features.get(name, {}).get("_type") == kind]
    return typed[0] if len(typed) == 1 else None


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Hugging Face's types of the columns, as far as the metadata of a schema tells them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_numbers(kind: Any) -> bool:
    from pyarrow import types  # pyright: ignore[reportMissingImports]

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _cell(cell: Any) -> Any:
    """The bytes of a cell, or the path that it names."""
    if isinstance(cell, dict):
        return cell.get("bytes") or cell.get("path") or b""
    return cell or b""
