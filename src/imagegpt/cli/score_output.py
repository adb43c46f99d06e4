"""What `imagegpt score` prints: for people, as JSON, or as lines of a table; each as the scores come."""

from __future__ import annotations

import heapq
import json
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagegpt.cli.output import print_record
from imagegpt.score_file import COLUMNS, Entry, csv_lines

SHOWN = 10  # pictures that people are shown, of the likeliest and of the least likely
NAME = 20  # characters of a picture's name, so that a line fits into 80


class Printer(Protocol):
    """Prints scores on standard output."""

    def tell(self, told: list[Entry]) -> None:
        """Some pictures' scores."""
        ...

    def end(self, summary: dict[str, Any]) -> None:
        """What is told of all of them."""
        ...


class CsvPrinter:
    """A line for each picture, below one that names the columns."""

    def __init__(self) -> None:
        self._begun = False

    def tell(self, told: list[Entry]) -> None:
        """Some pictures' lines."""
        sys.stdout.write(("" if self._begun else ",".join(COLUMNS) + "\n") + csv_lines(told))
        self._begun = True

    def end(self, summary: dict[str, Any]) -> None:
        """Lines for what could not be read."""
        sys.stdout.write(csv_lines({"skipped": sentence} for sentence in summary["skipped"]))


class JsonPrinter:
    """One JSON object, whose list of pictures is printed as it comes."""

    def __init__(self) -> None:
        self._before = '{\n  "images": [\n    '

    def tell(self, told: list[Entry]) -> None:
        """Some pictures' entries."""
        for entry in told:
            sys.stdout.write(self._before + json.dumps(entry))
            self._before = ",\n    "

    def end(self, summary: dict[str, Any]) -> None:
        """Close the list, and tell the rest."""
        sys.stdout.write("\n  ],\n" + json.dumps(summary, indent=2).removeprefix("{\n") + "\n")


class TablePrinter:
    """Tables at the end: all pictures, or of many the likeliest and the least likely."""

    def __init__(self) -> None:
        self._first: list[Entry] = []
        self._likeliest: list[tuple[float, int, Entry]] = []
        self._unlikeliest: list[tuple[float, int, Entry]] = []

    def tell(self, told: list[Entry]) -> None:
        """Keep what may have to be shown."""
        self._first += told[: 2 * SHOWN + 1 - len(self._first)]
        for entry in told:
            for kept, sign in ((self._likeliest, 1), (self._unlikeliest, -1)):
                item = (sign * entry["log_likelihood"], -entry["number"], entry)
                (heapq.heappush if len(kept) < SHOWN else heapq.heappushpop)(kept, item)

    def end(self, summary: dict[str, Any]) -> None:
        """Print them, and the summary."""
        if len(self._first) <= 2 * SHOWN:
            _print_table(None, self._first)
        else:
            _print_table(f"the likeliest {SHOWN}", [entry for *_, entry in sorted(self._likeliest, reverse=True)])
            _print_table(f"the least likely {SHOWN}", [entry for *_, entry in sorted(self._unlikeliest, reverse=True)])
        print_record({name: value for name, value in summary.items() if value != []}, False)


def _print_table(title: str | None, told: list[Entry]) -> None:
    table = Table("record", "picture", "log p", "nats/token", "bits/dim", "entropy", title=title)
    for entry in told:
        numbers = (f"{entry[name]:.{places}f}" for name, places in zip(COLUMNS[2:6], (1, 4, 4, 4), strict=True))
        table.add_row(str(entry["number"]), escape(_shortened(entry["picture"])), *numbers)
    Console(emoji=False).print(table)


def _shortened(name: str) -> str:
    """The end of a name, which tells more than the folders before it."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"
