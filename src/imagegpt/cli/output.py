"""What the verbs share when they tell: progress, where pictures go, how a record is printed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from imagegpt import __version__
from imagegpt.cli.options import PaintOptions
from imagegpt.errors import InputError, Interrupted
from imagegpt.files import check_folder, check_writable, make_folder, write_whole
from imagegpt.painting import Progress as OnProgress

SHEET_FORMATS = (".png", ".webp", ".jpg", ".jpeg")
MOST_SAMPLES = 10**12  # of more the positions can't even be counted in 64 bits


class Output:
    """A file for a sheet, or a folder for single pictures; checked before anything is painted.

    Args:
        target: a file that ends in .png, .webp or .jpg; or a folder: one that exists or a name that ends in a slash.
        facts: what made the pictures; written into PNG files.
        option: that `target` is the value of.
        others: endings that the verb has taken already, for the message.
        folders: whether it may be a folder.

    Raises:
        InputError: nothing can be written there.
    """

    def __init__(
        self,
        target: str,
        facts: dict[str, Any],
        option: str = "--out",
        others: Sequence[str] = (),
        folders: bool = True,
    ) -> None:
        self.path = Path(target)
        self.is_folder = target.endswith(("/", "\\")) or os.path.isdir(target)
        self._facts = {"software": f"imagegpt {__version__}", **facts}
        if not (folders if self.is_folder else self.path.suffix.lower() in SHEET_FORMATS):
            endings, folder = ", ".join((*SHEET_FORMATS, *others)), ", or a folder with a / at its end"
            raise InputError(f"{option} {target}: give a file that ends in {endings}{folder if folders else ''}.")
        if not self.is_folder and not os.path.isdir(self.path.parent):
            raise InputError(f"{option} {target}: there is no folder {self.path.parent}.")
        if self.is_folder:
            check_folder(self.path)
        else:
            check_writable(self.path)

    def save(self, name: str | None, image: Image.Image) -> str:
        """Write one picture (`name` in the folder, or the sheet itself) and return its path."""
        if self.is_folder:
            make_folder(self.path)
        path = self.path / f"{name}.png" if self.is_folder else self.path
        options: dict[str, Any] = {}
        if path.suffix.lower() == ".png":
            text = PngInfo()
            text.add_text("imagegpt", json.dumps(self._facts, sort_keys=True))
            options = {"pnginfo": text}
        write_whole(path, lambda temporary: image.save(temporary, **options))
        return str(path)


@contextmanager
def working(words: str, unit: str, before: str | None = None) -> Iterator[OnProgress]:
    """A progress bar with rate and remaining time, on standard error; nothing where that is no terminal.

    Args:
        words: what is being done.
        unit: of the rate.
        before: what is being done until the first step; default `words`.
    """
    console = Console(emoji=False, stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}")]
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(before or words, total=None, rate="")

        def on_progress(done: int, total: int) -> None:
            speed = progress.tasks[0].speed if progress.tasks else None
            rate = f"{speed:,.0f} {unit}/s" if speed else ""
            progress.update(task, description=words, completed=done, total=total, rate=rate)

        yield on_progress


@contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Say of a run that Ctrl-C stops that its parts are kept, once there are any in their folder."""
    try:
        yield
    except Interrupted:
        raise  # it says what is kept
    except KeyboardInterrupt:
        if not folder.exists():
            raise
        raise Interrupted(f"Interrupted; what is done is kept in {folder}: the same command continues.") from None


def painting(words: str) -> AbstractContextManager[OnProgress]:
    """The progress bar of the painting verbs, which load a model first."""
    return working(words, "ids", before="loading the model")


def check_num(num: int) -> None:
    """Refuse a number of samples that can't be, in the words of the command line."""
    if num < 1:
        raise InputError(f"--num must be at least 1, not {num}.")
    if num > MOST_SAMPLES:
        raise InputError(f"--num must be at most {MOST_SAMPLES:,}, not {num:,}.")


def report(options: PaintOptions, record: dict[str, Any], note: str = "") -> None:
    """Print what was written: JSON for programs, a sentence for people, with a note behind it."""
    written = record["written"]
    what = written[0] if len(written) == 1 else f"{len(written)} pictures in {Path(written[0]).parent}"
    sentence = f"{what} ({record['seconds']:.1f} s){note and f'; {note}'}"
    print_record({"model": options.model, **record}, options.json, sentence)


def print_record(record: dict[str, Any], as_json: bool, sentence: str | None = None) -> None:
    """Print a record: JSON for programs; for people a sentence or, where there is none, a table."""
    if as_json:
        # JSON has no infinity, which is the psnr of a palette that loses nothing.
        json.dump({name: None if value == math.inf else value for name, value in record.items()}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    if sentence is not None:
        Console(emoji=False, soft_wrap=True).print(sentence, highlight=False, markup=False)
        return
    table = Table(show_header=False)
    for name, value in record.items():
        table.add_row(name, _cell(name, value))
    Console(emoji=False).print(table)


def _cell(name: str, value: Any) -> str:
    if name in ("bytes", "parameters"):
        return f"{value:,}"
    if isinstance(value, float) and not 0 < value < 0.001:  # of a norm's epsilon three decimals would be zeros
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
