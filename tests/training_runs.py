"""`imagegpt train` and `finetune` in processes that start in no time, so that tests can kill, stop and freeze dozens.

They are forks of a server that has imported everything and done nothing with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegpt.codec.palette import PaletteCodec
from imagegpt.train.loop import Run
from imagegpt.train.rows import Batch
from imagegpt.train.stopping import Stop
from making import tokenise
from running import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("imagegpt.cli.main", "imagegpt.cli.train", "imagegpt.train.loop", "imagegpt.probe.online"),
        *("imagegpt.cli.finetune", "imagegpt.train.finetuning"),
        *("transformers.modeling_utils", "torch.distributed.fsdp"),
    ]
)
PATIENCE = 240.0  # seconds; machines are busy
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
SMALL = ["--recipe", "debug", "--device", "cpu", "--validate-every", "0"]
SMALL_FINETUNING = [
    *("--device", "cpu", "--augment", "none", "--batch", "8", "--lr", "0.01", "--log-every", "1", "--save-every", "0"),
]
Before = Callable[[], None]


def ids(count: int = 48, seed: int = 0) -> np.ndarray:
    """(count, 64) ids that can be learnt: sorted."""
    return np.sort(np.random.default_rng(seed).integers(0, len(CODEC), (count, 64)), 1).astype(np.uint16)


def tokens(folder: Path, count: int = 48, seed: int = 0, labelled: bool = False) -> str:
    """A tokenised data set on a grid of 8 x 8."""
    clusters = CODEC.clusters.astype(float).tolist()
    labels = np.arange(count) % 2 if labelled else None
    meta = {"codec": CODEC.fingerprint, "grid": [8, 8], "clusters": clusters}
    return str(tokenise(folder, ids(count, seed), labels, **meta))


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8))


def pictures(folder: Path, count: int = 16) -> str:
    """A folder of pictures in two classes."""
    for number in range(count):
        path = folder / ("cat", "dog")[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return str(folder)


def classes(folder: Path, count: int = 48, seed: int = 0, noise: float = 0.0, **meta: Any) -> str:
    """A tokenised data set in two classes, cat and dog, whose darker and lighter ids a network can learn to tell.

    Args:
        folder: is made.
        count: of pictures.
        seed: of the ids.
        noise: this part of the labels is drawn at random.
        meta: of meta.json.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    made = np.sort(rng.integers(0, 12, (count, 64)) + 4 * labels[:, None] * rng.integers(0, 2, (count, 64)), 1)
    labels = np.where(rng.random(count) < noise, rng.integers(0, 2, count), labels)
    told = {"codec": CODEC.fingerprint, "grid": [8, 8], "clusters": CODEC.clusters.astype(float).tolist()}
    return str(tokenise(folder, made.astype(np.uint16), labels, **{**told, **meta}))


def lit_pictures(folder: Path, count: int = 16, first: int = 0) -> str:
    """A folder of pictures in two classes, dark cats and light dogs, which a network can learn to tell."""
    for number in range(count):
        path = folder / ("cat", "dog")[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.asarray(picture(first + number)).astype(float)
        Image.fromarray((noise * 0.8 + 50 * (number % 2)).astype(np.uint8)).save(path)
    return str(folder)


def command(data: str | Path, out: str | Path, *more: str | int | float) -> list[str]:
    """A run of the recipe "debug"; of an option that is given twice the last one counts."""
    return _words("train", SMALL, data, out, more)


def finetune_command(model: str | Path, data: str | Path, out: str | Path, *more: str | int | float) -> list[str]:
    """A run of fine-tuning; of an option that is given twice the last one counts."""
    return _words("finetune", [*SMALL_FINETUNING, "--model", str(model)], data, out, more)


def _words(
    verb: str, small: list[str], data: str | Path, out: str | Path, more: Sequence[str | int | float]
) -> list[str]:
    options: dict[str, list[str]] = {}
    for word in [*small, "--train", str(data), "--out", str(out), *map(str, more)]:
        if word.startswith("--"):
            name, options[word] = word, []
        else:
            options[name].append(word)
    return [verb, *(word for name, values in options.items() for word in (name, *values))]


class Started:
    """The processes of one command, each with its output in files."""

    def __init__(self, arguments: Sequence[str], folder: Path, count: int, before: Before | None, ranks: Sequence[int]):
        folder.mkdir(parents=True, exist_ok=True)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
        self.files, self.processes = [], []
        for rank in range(count):
            file = folder / f"{time.monotonic_ns()}-{rank}"
            variables = {**group, "RANK": str(rank)} if count > 1 else {}
            chosen = before if rank in ranks else None
            process = CONTEXT.Process(target=_work, args=(list(arguments), str(file), variables, chosen), daemon=True)
            process.start()
            self.files.append(file)
            self.processes.append(process)

    @property
    def out(self) -> str:
        return _read(self.files[0].with_suffix(".out"))

    @property
    def errors(self) -> str:
        return "".join(_read(file.with_suffix(".err")) for file in self.files)

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def send(self, kind: int, *ranks: int) -> None:
        """Send a signal; none of several processes acts on it, and ends, before all have it."""
        chosen = [self.processes[rank].pid for rank in ranks or range(len(self.processes))]
        together = len(chosen) > 1 and kind != signal.SIGKILL
        for each in (signal.SIGSTOP, kind, signal.SIGCONT) if together else (kind,):
            for pid in chosen:
                os.kill(pid, each)

    def wait(self, *ranks: int, seconds: float = PATIENCE) -> list[int]:
        """Exit codes; a command that does not end is killed, and the test fails."""
        until = time.monotonic() + seconds
        chosen = [self.processes[rank] for rank in ranks or range(len(self.processes))]
        for process in chosen:
            process.join(max(0.0, until - time.monotonic()))
        found = [process.exitcode for process in chosen]
        assert None not in found, (found, self.errors)
        return found  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join(PATIENCE)


@contextmanager
def started(
    arguments: Sequence[str], folder: Path, count: int = 1, before: Before | None = None, ranks: Sequence[int] = (0, 1)
) -> Iterator[Started]:
    """Start a command; at the end what is left of it is killed.

    Args:
        arguments: of `imagegpt`.
        folder: for its output.
        count: processes, which form a group.
        before: called in the process before the command.
        ranks: the processes in which `before` is called.
    """
    made = Started(arguments, folder, count, before, ranks)
    try:
        yield made
    finally:
        made.close()


def finish(
    arguments: Sequence[str],
    folder: Path,
    count: int = 1,
    code: int = 0,
    before: Before | None = None,
    ranks: Sequence[int] = (0, 1),
) -> Started:
    """Run a command to its end, which must have this exit code in every process."""
    with started(arguments, folder, count, before, ranks) as run:
        assert run.wait() == [code] * count, run.errors
        assert "Traceback" not in run.errors
        return run


def no_further_than(step: int) -> None:
    """After this update the process waits for a signal, as one that is to be stopped must not be at its end by then."""
    follow = Run._follow

    def waiting(self: Run, stream: Iterator[Batch], stop: Stop) -> bool:
        def batches() -> Iterator[Batch]:
            for batch in stream:
                while self.step >= step and not stop.asked:
                    time.sleep(0.005)
                yield batch

        return follow(self, batches(), stop)

    Run._follow = waiting


def wait_until(found: Callable[[], Any], run: Started) -> None:
    """Until something is so; the command must still be at work."""
    until = time.monotonic() + PATIENCE
    while not found():
        assert run.alive() or found(), run.errors
        assert time.monotonic() < until, run.errors
        time.sleep(0.005)


def checkpoints(out: str | Path) -> list[str]:
    return sorted(path.name for path in Path(out, "checkpoints").glob("*"))


def log(out: str | Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = Path(out, "log.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def column(out: str | Path, name: str = "loss", kind: str = "train") -> list[Any]:
    return [record[name] for record in log(out, kind)]


def steps_logged(out: str | Path) -> int:
    """How many updates are in the log, whose last line may be half written."""
    path = Path(out, "log.jsonl")
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _work(arguments: list[str], file: str, variables: dict[str, str], before: Before | None) -> None:
    os.setsid()
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(file + ending, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(int(2 * PATIENCE))  # ends what a test that was killed has left behind
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    from imagegpt.cli.main import main

    if before is not None:
        before()
    sys.exit(main(arguments))
