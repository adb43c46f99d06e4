"""What a terminal shows of a training run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """What a terminal shows of a run: a bar, and a line for what is rare.

    Args:
        progress: the bar.
        unit: of the loss.
    """

    def __init__(self, progress: Progress, unit: str) -> None:
        self._progress, self._unit = progress, unit
        self._bar = progress.add_task("loading", total=None, note="")

    def working(self, words: str, done: int, total: int) -> None:
        """Before the first update."""
        self._progress.update(self._bar, description=words, completed=done, total=total)

    def tell(self, kind: str, record: dict[str, Any]) -> None:
        """An event of the loop."""
        if kind == "step":
            note = (
                f"{record['loss']:.3f} {self._unit}, {record['ids_per_s']:,.0f} ids/s, {100 * record['mfu']:.0f} % MFU"
            )
            self._progress.update(
                self._bar, description="training", completed=record["step"], total=record["steps"], note=note
            )
        elif line := LINES[kind](record) if kind in LINES else None:
            self._progress.console.print(line, highlight=False, markup=False)


def _validation(record: dict[str, Any]) -> str:
    told = []
    for name, words in WORTH.items():
        if (value := record.get(name)) is not None:
            told.append(f"{100 * value:.2f} % {words}" if name in PARTS else f"{value:.4f} {words}")
    codec = f" ({record['codec']})" if "codec" in record else ""
    return f"update {record['step']}: {', '.join(told)}{codec} on validation"


# What a validation may find, in the order in which it is told.
PARTS = ("accuracy", "top5", "used")
WORTH = {
    "accuracy": "accuracy",
    "top5": "top-5",
    "average_precision": "mean average precision",
    "squared_error": "mean squared error",
    "class_loss": "class loss",
    "nats_per_token": "nats/token",
    "bits_per_dim": "bits/dim",
    "psnr": "dB PSNR",
    "used": "of the codes used",
    "perplexity": "perplexity of codes",
}
LINES = {
    "start": lambda record: (
        f"update {record['step']} of {record['steps']}: {record['parameters']:,} parameters, {record['pictures']:,} "
        f"pictures, {record['processes']} x {record['device']}"
        + (f"; {record['skipped']} pictures could not be read" if record["skipped"] else "")
    ),
    "note": lambda record: record["sentence"],
    "validation": _validation,
    "patience": lambda record: f"No validation was better since update {record['best']}: the run ends here.",
    "samples": lambda record: f"update {record['step']}: samples in {record['path']}",
    "probe": lambda record: f"update {record['step']}: linear probe {100 * record['accuracy']:.2f} %",
    "rollback": lambda record: f"{record['trouble']} Back to update {record['to']}, without the data since then.",
    "skipped": lambda record: f"skipped: {record['sentence']}",
}


def best_of(summary: dict[str, Any]) -> str:
    """The end of a sentence on a run: its best validation, if it had any."""
    if not summary["best"]:
        return ""
    [(name, value)] = [(name, value) for name, value in summary["best"].items() if name != "step"]
    told = f"{100 * value:.2f} %" if name in PARTS else f"{value:.4f}"
    return f"; best validation {told} {WORTH[name]} at update {summary['best']['step']}"


@contextmanager
def showing(shown: bool, unit: str = "nats/token") -> Iterator[Display]:
    """The display of the first process; the others show nothing."""
    console = Console(emoji=False, stderr=True, quiet=not shown, soft_wrap=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        yield Display(progress, unit)
