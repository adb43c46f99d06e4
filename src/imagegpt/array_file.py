"""A file of arrays that many processes may have made in parts: .safetensors, .npz or .parquet.

It has arrays with one row for each picture, and what made them, as JSON: in the metadata `imagegpt` of .safetensors and
.parquet, in the entry `run.json` of .npz.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, MissingExtra, reason
from imagegpt.files import write_array
from imagegpt.tensors import read_metadata, read_tensors, write_tensors

FORMATS = (".safetensors", ".npz", ".parquet")
METADATA = "imagegpt"


def check_format(path: Path) -> None:
    """Refuse a path whose ending names no format, and a format whose library is missing."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: give a file that ends in {', '.join(FORMATS)}.")
    if path.suffix == ".parquet":
        _pyarrow()


def write_part(path: Path, arrays: Mapping[str, NDArray[Any]], skipped: list[str]) -> None:
    """Write a part's arrays as .safetensors, with the sentences on what was skipped."""
    entries = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write_tensors(path, entries, lambda name: [arrays[name]], {"skipped": json.dumps(skipped)})


def nothing_read(parts: list[Path]) -> str | None:
    """Why the first picture of all parts could not be read, where none of them could; else `None`."""
    if any(len(read_tensors(part)["numbers"]) for part in parts):
        return None
    return next((sentence for part in parts for sentence in _skipped(part)), None)


def join_parts(path: Path, parts: list[Path], facts: Mapping[str, Any]) -> None:
    """Put parts together into the file whose format `path`'s ending names, with a part in memory at a time."""
    _Join(parts, facts).write(path)


class _Join:
    """Parts' files on their way into one, an array after the other and a part after the other."""

    def __init__(self, files: list[Path], facts: Mapping[str, Any]) -> None:
        self.files = files
        self.entries: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        skipped: list[str] = []
        for file in files:
            for name, array in read_tensors(file).items():
                self.entries[name] = _joined(self.entries.get(name), array)
            skipped += _skipped(file)
        self.facts = json.dumps({**facts, "skipped": skipped})

    def write(self, path: Path) -> None:
        """Write the file that `path`'s ending names."""
        {".safetensors": self._safetensors, ".npz": self._npz, ".parquet": self._parquet}[path.suffix](path)

    def _chunks(self, name: str) -> Iterator[NDArray[Any]]:
        return (self._fitted(name, read_tensors(file)[name]) for file in self.files)

    def _fitted(self, name: str, chunk: NDArray[Any]) -> NDArray[Any]:
        """A part's array in the type and the shape of the whole."""
        dtype, shape = self.entries[name]
        return chunk.astype(dtype, copy=False).reshape(len(chunk), *shape[1:])

    def _safetensors(self, path: Path) -> None:
        write_tensors(path, self.entries, self._chunks, {METADATA: self.facts})

    def _npz(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, (dtype, shape) in self.entries.items():
                write_array(archive, name, dtype, shape, self._chunks(name))
            archive.writestr(zipfile.ZipInfo("run.json"), self.facts)  # without the time: the same run, the same bytes

    def _parquet(self, path: Path) -> None:
        arrow, parquet = _pyarrow()
        writer = None
        for file in self.files:
            arrays = read_tensors(file)
            columns = {name: _column(arrow, self._fitted(name, array)) for name, array in arrays.items()}
            table = arrow.table(columns).replace_schema_metadata({METADATA: self.facts})
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def _skipped(part: Path) -> list[str]:
    return json.loads(read_metadata(part)["skipped"])


def _joined(
    before: tuple[np.dtype[Any], tuple[int, ...]] | None, array: NDArray[Any]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of an array with another part behind it; a part without rows, which saw no label, has no say."""
    if before is None or not before[1][0]:
        return array.dtype, array.shape
    if not len(array):
        return before
    dtype, shape = before
    return np.result_type(dtype, array.dtype), (shape[0] + len(array), *shape[1:])


def _column(arrow: Any, array: NDArray[Any]) -> Any:
    """An array's rows as lists of a fixed length, nested where they have several dimensions."""
    column = arrow.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = arrow.FixedSizeListArray.from_arrays(column, size)
    return column


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("A parquet file", "pyarrow", "data") from error
    return pyarrow, parquet


def read_arrays(path: Path, what: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file of arrays: those in .safetensors stay on the disk until they are used.

    Args:
        path: ends in one of `FORMATS`.
        what: is in it, in messages.

    Returns:
        The arrays by their names, and what made them.

    Raises:
        InputError: it is missing, damaged, or something else.
    """
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} is no file of {what}; these end in {', '.join(FORMATS)}.")
    try:
        arrays, facts = readers[path.suffix](path)
        told = json.loads(facts)
        if isinstance(told, dict):
            return arrays, told
        raise TypeError("its facts are no record")
    except InputError:
        raise
    except Exception as error:  # a damaged file makes readers raise nearly anything
        raise InputError(f"{path} can't be read as {what}: {reason(error)}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    return read_tensors(path), read_metadata(path)[METADATA]


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "run.json"}
    with zipfile.ZipFile(path) as archive:
        return arrays, archive.read("run.json").decode()


def _read_parquet(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    _, parquet = _pyarrow()
    table = parquet.read_table(path)
    arrays = {}
    for name in table.column_names:
        column, shape = table[name].combine_chunks(), [len(table)]
        while hasattr(column.type, "list_size"):
            shape.append(column.type.list_size)
            column = column.flatten()
        arrays[name] = column.to_numpy().reshape(shape)
    return arrays, table.schema.metadata[METADATA.encode()].decode()
