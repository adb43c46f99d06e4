"""Work on many numbered items, in parts, by one process or by several, whatever interrupts it.

Each part is a file in a folder beside the result, so a run continues where the last one was stopped, and processes
share the parts among them. `run.json` in the folder says what is being made, so that parts of other settings are never
mixed in; a folder in which no part was finished is anyone's. The result is put together when all are there, and the
folder goes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt import __version__
from imagegpt.errors import InputError
from imagegpt.files import write_text, write_whole
from imagegpt.painting import Progress

RECORD = "run.json"
SECONDS_BETWEEN_LOOKS = 0.5
PATIENCE = 60.0  # seconds without a new part, or five times a part of one's own, after which a process counts as dead
# Makes a part: the first item, how many, the file; and is told how many items of the part are done.
Make = Callable[[int, int, Path, Callable[[int], None]], None]
Join = Callable[[Path, list[Path]], None]


class NoResultError(InputError):
    """No result can come of the parts, whoever joins them; they go."""


@dataclass(frozen=True)
class Parts:
    """A run over `total` items into `out`.

    Args:
        out: the file that is made; its parts lie in the folder `out`.parts until then.
        total: items.
        facts: what decides the result, as JSON has it.
        what: the items, in messages.
        stem, suffix: name of a part's file, before and after its number.
        rank, processes: which of how many processes this is; all run the same.
    """

    out: Path
    total: int
    facts: dict[str, Any]
    what: str
    stem: str
    suffix: str
    rank: int = 0
    processes: int = 1

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return folder_of(self.out)

    def run(
        self, size: int, make: Make, join: Join, joined: Callable[[], dict[str, Any]], progress: Progress | None = None
    ) -> int:
        """Make this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            size: items of a part, in a new run; one that is continued keeps its own.
            make: makes a part's file.
            join: makes the result's file, from those of the parts in order.
            joined: reads the facts in a result that is there; any error means that it is no result.
            progress: called with (items there, items in all), of all processes.

        Returns:
            How many items this process made.

        Raises:
            InputError: `out` is there already, or its folder holds parts of another run, or a damaged record.
        """
        size = self._begin(size, joined)
        if not size:
            return 0
        try:
            return self._finish(size, make, join, joined, progress)
        except NoResultError:
            self._clear()
            raise
        except InputError:
            # Of several processes one does not know whether the others are in the middle of a part.
            if self.processes == 1 and not has_parts(self.folder) and self.is_ours(size):
                self._clear()
            raise

    def is_ours(self, size: int) -> bool:
        """Whether the folder is that of this very run, in parts of `size` items."""
        try:
            return self._is_of_these_facts(found := self._found()) and found["part"] == size
        except InputError:
            return False

    def path(self, first: int) -> Path:
        """The file of the part that begins with item `first`."""
        return self.folder / f"{self.stem}-{first:09}{self.suffix}"

    def _finish(
        self, size: int, make: Make, join: Join, joined: Callable[[], dict[str, Any]], progress: Progress | None
    ) -> int:
        """Make what is missing of this process's parts, and of all if it is the first; how many items these were."""
        firsts = range(0, self.total, size)
        work = _Work(self, firsts, make, progress)
        made = 0
        for first in firsts[self.rank :: self.processes]:
            try:
                made += work.make(first)
            except InputError:
                if self.rank and self._is_result(joined):  # taken for dead: the first process made the rest
                    return made
                raise
        if self.rank == 0:
            made += work.wait()
            write_whole(self.out, lambda temporary: join(temporary, [self.path(first) for first in firsts]))
            self._clear()
        return made

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, size: int, joined: Callable[[], dict[str, Any]]) -> int:
        """Make the folder of a new run, or check that of an interrupted one.

        Returns:
            The number of items of a part; 0 where another process has joined them all by now.
        """
        if self.out.exists():
            if self.rank and self._is_result(joined):
                return 0
            refuse_existing(self.out)
        try:
            self.folder.mkdir(exist_ok=True)  # and none above it: that would be a misspelt path
        except OSError as error:
            raise InputError(f"The folder {self.folder} can't be made: {error.strerror}.") from None
        if not has_parts(self.folder) and not self._is_recorded():
            record = {**self.facts, "part": size, "imagegpt": __version__}
            write_text(self.folder / RECORD, json.dumps(record, indent=2) + "\n")
        found = self._found()
        for name, value in self.facts.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self.folder} holds {self.what} with {name} {found.get(name)}, not {value}: give the same "
                    "command to continue them, or remove the folder."
                )
        return found["part"]

    def _is_result(self, joined: Callable[[], dict[str, Any]]) -> bool:
        """Whether `out` is the result of this very run."""
        try:
            return self._is_of_these_facts(joined())
        except Exception:  # whatever a foreign file makes a reader raise
            return False

    def _is_recorded(self) -> bool:
        """Whether the folder's record is that of such a run, in parts of whatever size."""
        try:
            return self._is_of_these_facts(self._found())
        except InputError:
            return False

    def _is_of_these_facts(self, found: dict[str, Any]) -> bool:
        return all(found.get(name) == value for name, value in self.facts.items())

    def _found(self) -> dict[str, Any]:
        path = self.folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["part"] >= 1:
                return found
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise InputError(f"{path} is damaged; remove the folder {self.folder}.")


class _Work:
    """The parts on their way, in one process."""

    def __init__(self, parts: Parts, firsts: range, make: Make, progress: Progress | None) -> None:
        self._parts, self._firsts, self._make, self._progress = parts, firsts, make, progress
        self._slowest = 0.0

    def make(self, first: int) -> int:
        """Make one part unless it is there; how many items that were."""
        path, there = self._parts.path(first), self.tell()
        if path.exists():
            return 0
        began, count = time.monotonic(), self._count(first)

        def tell(done: int) -> None:
            if self._progress is not None and done < count:
                self._progress(min(there + done, self._parts.total), self._parts.total)

        def write(temporary: Path) -> None:
            self._make(first, count, temporary, tell)
            # Before any part was there, another run may have taken the folder over.
            if not self._parts.is_ours(self._firsts.step):
                raise InputError(f"{self._parts.folder} holds another run's {self._parts.what} by now.")

        write_whole(path, write)
        self._slowest = max(self._slowest, time.monotonic() - began)
        return count

    def wait(self) -> int:
        """Wait for the other processes' parts; make those of a dead one. How many items these were."""
        made, last = 0, time.monotonic()
        there = self.tell()
        while there < self._parts.total:
            if time.monotonic() - last > max(PATIENCE, 5 * self._slowest):
                made += self.make(next(first for first in self._firsts if not self._parts.path(first).exists()))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            before, there = there, self.tell()
            last = time.monotonic() if there > before else last
        return made

    def tell(self) -> int:
        """How many items are there, which the caller's progress is told."""
        there = sum(self._count(first) for first in self._firsts if self._parts.path(first).exists())
        if self._progress is not None:
            self._progress(there, self._parts.total)
        return there

    def _count(self, first: int) -> int:
        return min(self._firsts.step, self._parts.total - first)


def folder_of(out: Path) -> Path:
    """Where the parts of a result lie."""
    return out.with_name(f"{out.name}.parts")


def has_parts(folder: Path) -> bool:
    """Whether any part was finished in the folder; what is hidden there was not."""
    return any(path.name != RECORD for path in folder.glob("[!.]*"))


def recorded(out: Path, name: str) -> Any:
    """A fact of the parts of a run into `out`; `None` where there are none, or their record is damaged."""
    folder = folder_of(out)
    if not has_parts(folder):
        return None
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def refuse_existing(out: Path) -> None:
    """Refuse to write over a result."""
    if out.exists():
        raise InputError(f"{out} is there already; remove it, or choose another --out.")
