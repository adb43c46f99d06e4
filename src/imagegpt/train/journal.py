"""What a run writes down: log.jsonl always, and a tracker by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagegpt.errors import MissingExtra
from imagegpt.files import write_text

LOG = "log.jsonl"


class Journal:
    """A run's log: one JSON record a line, each with its `step`.

    Args:
        folder: of the run.
        tracker: "tensorboard" (in `folder`/tensorboard), "trackio" or none.
        settings: the recipe's values, for the tracker.
        step: from which the run goes on.

    Raises:
        MissingExtra: the tracker is not installed.
    """

    def __init__(self, folder: Path, tracker: str | None, settings: dict[str, Any], step: int = 0) -> None:
        self._path = folder / LOG
        self._track = _trackers[tracker](folder, settings, step) if tracker else None

    def rewind(self, step: int) -> None:
        """Leave out the records after a step, from which the run goes on."""
        if self._path.exists():
            kept = [record for record in read_journal(self._path) if record["step"] <= step]
            write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, step: int, **record: Any) -> None:
        """Add a record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")
        if self._track is not None:
            numbers = {name: float(value) for name, value in record.items() if isinstance(value, (int, float))}
            self._track(step, numbers)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a line that a kill cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


Track = Callable[[int, dict[str, float]], None]


def _tensorboard(folder: Path, settings: dict[str, Any], step: int) -> Track:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("--tracker tensorboard", "tensorboard", "track") from None
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    writer.add_text("recipe", json.dumps(settings, indent=1))

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _trackio(folder: Path, settings: dict[str, Any], step: int) -> Track:
    try:
        import trackio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("--tracker trackio", "trackio", "track") from None
    run = trackio.init(project="imagegpt", name=folder.resolve().name, config=settings, resume="allow")
    return lambda step, numbers: run.log(numbers, step=step)


_trackers: dict[str, Callable[[Path, dict[str, Any], int], Track]] = {"tensorboard": _tensorboard, "trackio": _trackio}
