"""Scores of a data set, as they lie in a file: a table (.csv), or arrays (`imagegpt.array_file`).

The table has a line for each record, those included that could not be read, and says what made it in a file beside it,
OUT.json. The arrays are `numbers` (N,), which record of the data each row is; `log_likelihood` (N,) float64, nats;
`entropy` (N,) float64, the mean of each picture's places; on request `surprise_map` and `entropy_map` (N, T) float16;
and `labels` (N,), where the data has labels.

Shape suffixes: N pictures, T ids.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import array_file
from imagegpt.data.ids import Ids
from imagegpt.data.records import label_array
from imagegpt.engine.score import Scores
from imagegpt.errors import InputError, reason
from imagegpt.files import write_text

TABLE = ".csv"
FORMATS = (TABLE, *array_file.FORMATS)
COLUMNS: tuple[str, ...] = (
    "number",
    "picture",
    "log_likelihood",
    "nats_per_token",
    "bits_per_dim",
    "entropy",
    "label",
    "skipped",
)
Entry = dict[str, Any]


def check_format(path: Path, maps: bool) -> None:
    """Refuse a path whose ending names no format, or a table where maps are asked for."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: give a file that ends in {', '.join(FORMATS)}.")
    if path.suffix != TABLE:
        array_file.check_format(path)
    elif maps:
        raise InputError(f"{path}: a table has no room for maps; give a file that ends in {array_file.FORMATS[0]}.")


def entries(batch: Ids, scores: Scores) -> list[Entry]:
    """What is told of each picture of a batch."""
    columns = (scores.log_likelihood, scores.nats_per_token, scores.bits_per_dim, scores.mean_entropy)
    told: list[Entry] = [
        dict(zip(COLUMNS, (int(number), name, *(float(value) for value in values)), strict=False))
        for number, name, *values in zip(batch.numbers, batch.names, *columns, strict=True)
    ]
    for entry, label in zip(told, batch.labels or (), strict=False):
        entry["label"] = label
    return told


def csv_lines(told: Iterable[Mapping[str, Any]]) -> str:
    """Lines of the table, without the one that names the columns."""
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(told)
    return text.getvalue()


def write_part(path: Path, batches: list[tuple[Ids, Scores]], maps: bool) -> None:
    """Write the scores of a part's batches in the format that `path`'s ending names."""
    if path.suffix == TABLE:
        write_text(path, "".join(_lines(*batch) for batch in batches))
    else:
        skipped = [sentence for batch, _ in batches for sentence in batch.skipped]
        array_file.write_part(path, _arrays(batches, maps), skipped)


def _lines(batch: Ids, scores: Scores) -> str:
    return csv_lines([*entries(batch, scores), *({"skipped": sentence} for sentence in batch.skipped)])


def _arrays(batches: list[tuple[Ids, Scores]], maps: bool) -> dict[str, NDArray[Any]]:
    def joined(of: Any) -> NDArray[Any]:
        return np.concatenate([of(scores) for _, scores in batches])

    numbers = np.concatenate([batch.numbers for batch, _ in batches])
    arrays = {
        "numbers": numbers,
        "log_likelihood": joined(lambda scores: scores.log_likelihood),
        "entropy": joined(lambda scores: scores.mean_entropy),
    }
    if maps:
        arrays["surprise_map"] = joined(lambda scores: scores.surprise.astype(np.float16))
        arrays["entropy_map"] = joined(lambda scores: scores.entropy.astype(np.float16))
    if batches[0][0].labels is not None:
        arrays["labels"] = label_array([label for batch, _ in batches for label in batch.labels or ()], numbers)
    return arrays


def nothing_read(parts: list[Path]) -> str | None:
    """Why the first picture of all parts could not be read, where none of them could; else `None`."""
    if not parts or parts[0].suffix != TABLE:
        return array_file.nothing_read(parts)
    first = None
    for part in parts:
        with part.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, COLUMNS):
                if not row["skipped"]:
                    return None
                first = first or row["skipped"]
    return first


def join_parts(path: Path, out: Path, parts: list[Path], facts: Mapping[str, Any]) -> None:
    """Put parts together, with one in memory at a time.

    Args:
        path: of the file that is written.
        out: where it will lie; a table's facts are written beside that.
        parts: in their order.
        facts: what made them.
    """
    if out.suffix != TABLE:
        array_file.join_parts(path, parts, facts)
        return
    write_text(facts_of(out), json.dumps(facts, indent=2) + "\n")
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(COLUMNS) + "\n")
        for part in parts:
            file.write(part.read_text(encoding="utf-8"))


def facts_of(table: Path) -> Path:
    """Where a table's facts lie."""
    return table.with_name(f"{table.name}.json")


def read_scores(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.float64], dict[str, Any]]:
    """Read a file that `imagegpt score --out` has written.

    Returns:
        Numbers of the records that could be read, their log-likelihoods in nats, and what made them.

    Raises:
        InputError: it is missing, damaged, or something else.
    """
    path = Path(path)
    try:
        if path.suffix == TABLE:
            facts = json.loads(facts_of(path).read_text(encoding="utf-8"))
            numbers, values = _read_table(path)
            return numbers, values, facts
        arrays, facts = array_file.read_arrays(path, "scores")
        return arrays["numbers"], arrays["log_likelihood"], facts
    except InputError:
        raise
    except Exception as error:  # a damaged file makes readers raise nearly anything
        raise InputError(f"{path} can't be read as scores: {reason(error)}") from None


def _read_table(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path} is no table of scores: its columns are others than {', '.join(COLUMNS)}.")
        pairs = [(int(row["number"]), float(row["log_likelihood"])) for row in rows if not row["skipped"]]
    return np.array([number for number, _ in pairs], np.int64), np.array([value for _, value in pairs], np.float64)
