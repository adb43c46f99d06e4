"""Parquet files in Hugging Face's layout: a column of {bytes, path}, perhaps one of labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from imagegpt.data.records import Record, Source, spans
from imagegpt.data.tables import BATCH, check_columns, choose_columns
from imagegpt.errors import InputError, MissingExtra, reason


def open_parquet(paths: list[Path], name: str, label_column: str | None = None) -> Source:
    """Parquet files, one after another.

    Raises:
        InputError: one is damaged, or lacks a column.
        MissingExtra: there is no pyarrow (extra "data").
    """
    files = [_open(path) for path in paths]
    columns = choose_columns(files[0].schema_arrow, str(paths[0]), label_column)
    for path, file in zip(paths, files, strict=True):
        check_columns(file.schema_arrow, columns.names, str(path))
    lengths = [file.metadata.num_rows for file in files]

    def records(start: int, stop: int) -> Iterator[Record]:
        rows = (
            row
            for number, first, last in spans(lengths, start, stop)
            for row in _rows(paths[number], columns.names, first, last)
        )
        return columns.records(rows, name, start)

    return Source(name, sum(lengths), records, columns.label is not None, columns.classes)


def _rows(path: Path, columns: list[str], first: int, last: int) -> Iterator[dict[str, Any]]:
    """Rows of one file; only the row groups that hold them are read."""
    file = _open(path)
    lengths = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    groups = [number for number, _, _ in spans(lengths, first, last)]
    before = [0, *accumulate(lengths)][groups[0]]
    rows = _all_rows(path, file.iter_batches(BATCH, row_groups=groups, columns=columns))
    return islice(rows, first - before, last - before)


def _all_rows(path: Path, batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
    while True:
        with _damage_told(path):  # around the reading alone: not around what is done with a row
            batch = next(batches, None)
        if batch is None:
            return
        yield from batch.to_pylist()


def _open(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("Reading parquet files", "pyarrow", "data") from error
    with _damage_told(path):
        return ParquetFile(path)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise InputError(f"{path} can't be read as parquet: {reason(error)}") from None
