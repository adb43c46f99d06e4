"""A probe study's curve, read back from its folder; `imagegpt.probe.study` writes it.

Nothing of a file is believed: it may have been edited, cut off, or be of something else.
"""

from __future__ import annotations

import json
from pathlib import Path
from sys import float_info
from typing import Any

from imagegpt.errors import InputError, reason
from imagegpt.probe.sweep import Curve, Row

CURVE = "curve.json"


def read_curve(path: str | Path) -> Curve:
    """Read the rows of a study, finished or stopped.

    Args:
        path: a folder that `imagegpt probe --out` made, or its curve.json.

    Returns:
        The curve as it was written; its linear probes are not in the file.

    Raises:
        InputError: there is no such file, or it is damaged, or no curve; the message names it.
    """
    path = Path(path)
    file = path / CURVE if path.is_dir() else path
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {file}: give a folder that `imagegpt probe --out` made.") from None
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged, or no JSON: {reason(error)}.") from None
    rows = told.get("rows") if isinstance(told, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{file} is no curve of a probe study: it has no rows.")
    curve = Curve(tuple(_row(file, f"row {number}", row) for number, row in enumerate(rows)))
    names = [row.name for row in curve.rows]
    if len(set(names)) < len(names):
        raise InputError(f"{file} is damaged: two of its rows have one name.")
    if told.get("best") != curve.as_dict()["best"]:
        raise InputError(f"{file} is damaged: its best row is not {told.get('best')!r}.")
    return curve


def _row(file: Path, which: str, told: Any) -> Row:
    _check(file, which, told, ROW)
    _check(file, f"{which}, metrics", told["metrics"], METRICS)
    classes = len(told["metrics"]["per_class"])
    confusion = told["metrics"]["confusion"]
    if len(confusion) != classes or any(len(row) != classes for row in confusion):
        raise InputError(f"{file} is damaged: {which} has confusions of other than its {classes} classes.")
    if told["baseline"] == bool(told["layers"]):
        raise InputError(f"{file} is damaged: {which} has layers, or it is a baseline.")
    return Row.from_dict(told)


def _check(file: Path, which: str, told: Any, fields: dict[str, Any]) -> None:
    """Refuse what has other fields, or one of another kind."""
    if not isinstance(told, dict):
        raise InputError(f"{file} is damaged: {which} is no table of values.")
    for name in [*fields, *told]:
        if name not in fields or name not in told:
            raise InputError(f"{file} is damaged: {which} {'lacks' if name in fields else 'has an unknown'} {name!r}.")
        if not fields[name](told[name]):
            raise InputError(f"{file} is damaged: {which} has {told[name]!r:.80} as its {name}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= float_info.max  # NaN fails too


def _is_part(value: Any) -> bool:
    return _is_number(value) and value <= 1


def _or_none(known: Any) -> Any:
    return lambda value: value is None or known(value)


def _all(known: Any) -> Any:
    return lambda values: isinstance(values, list) and all(map(known, values))


def _is_held_out(value: Any) -> bool:
    """Strengths, which JSON has as texts, with the accuracy of each."""
    try:
        return all(_is_number(float(strength)) and _is_part(part) for strength, part in value.items())
    except (AttributeError, ValueError):
        return False


ROW = {
    "name": _is_text,
    "layers": _all(_is_count),
    "solver": _is_text,
    "strength": _is_number,
    "held_out": _is_held_out,
    "converged": _is_bool,
    "metrics": lambda value: isinstance(value, dict),
    "knn": _or_none(_is_part),
    "ridge": _or_none(_is_part),
    "ridge_strength": _or_none(_is_number),
    "seconds": _is_number,
    "baseline": _is_bool,
}
METRICS = {
    "count": _is_count,
    "top1": _is_part,
    "top5": _or_none(_is_part),
    "per_class": _all(_or_none(_is_part)),
    "confusion": _all(_all(_is_count)),
}
