"""A run that is killed anywhere, and continued by the same command, ends as one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from imagegpt.cli.main import main
from training_runs import (
    checkpoints,
    column,
    command,
    finish,
    log,
    no_further_than,
    picture,
    started,
    steps_logged,
    tokens,
    wait_until,
)

STEPS = 60
KINDS = {
    "adamw": [],
    "muon": ["--optimizer", "muon"],
    "ema": ["--ema", "0.9", "--weight-decay", "0.1", "--clip", "0.5"],
    "dropout": ["--dropout", "0.2", "--accumulate", "2"],
    "bert": ["--objective", "bert", "--optimizer", "muon", "--ema", "0.95", "--dropout", "0.1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Callable[..., Path]:
    """The folder of a run that nothing interrupts, in this process."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in made:
            made[more] = tmp_path_factory.mktemp("straight") / "run"
            assert main(command(data, made[more], "--steps", STEPS, *more)) == 0
        return made[more]

    return run


def weights(out: Path) -> dict[str, bytes]:
    """Everything that a run ends with, as bytes: weights, averages, what is published."""
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    return {str(path.relative_to(out)): path.read_bytes() for path in [*last.rglob("*.safetensors"), *model_of(out)]}


def model_of(out: Path) -> list[Path]:
    return [out / "model" / "model.safetensors"]


def state(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(checkpoint / "state", folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def check_same(one: Path, other: Path, folder: Path) -> None:
    """Bit by bit: weights, averages, the optimiser's state, and the log, with each step once."""
    assert weights(one) == weights(other)
    name = Path("checkpoints", f"step-{STEPS:08d}")
    states = state(one / name, folder), state(other / name, folder)
    assert states[0].keys() == states[1].keys()
    assert states[0]
    for key, tensor in states[0].items():
        assert tensor.dtype == states[1][key].dtype
        assert torch.equal(tensor, states[1][key]), key
    assert column(one, "step") == column(other, "step") == list(range(1, STEPS + 1))
    for field in ("loss", "grad_norm", "lr", "epoch"):
        assert column(one, field) == column(other, field)


def kill_at(number: int, report: str | None = None) -> None:
    """Kill this process when it is about to touch a file of a checkpoint for the so many-th time."""
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            path = arguments[0]
            writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if isinstance(path, (str, os.PathLike)) and "checkpoints" in str(path) and writes:
                done += 1
                if report is not None:
                    with open(report, "w") as file:
                        file.write(str(done))
                if done == number:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_run_that_is_not_interrupted_learns_and_is_the_same_again(data, straight, tmp_path):
    losses = column(straight(), "loss")
    assert losses[-1] < losses[0] - 0.1
    assert main(command(data, tmp_path / "again", "--steps", STEPS)) == 0
    check_same(straight(), tmp_path / "again", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_time(data, straight, tmp_path, kind):
    """With kill -9, some updates after a checkpoint, as often as it takes."""
    out, chosen = tmp_path / "run", random.Random(kind)
    arguments = command(data, out, "--steps", STEPS, "--save-every", 7, *KINDS[kind])
    for _ in range(4):
        wanted = min(steps_logged(out) // 7 * 7 + 7 + chosen.randrange(1, 12), STEPS - 1)
        with started(arguments, tmp_path / "io", before=partial(no_further_than, STEPS - 1)) as run:
            wait_until(lambda: steps_logged(out) >= wanted, run)  # noqa: B023
            time.sleep(chosen.random() / 50)
            run.send(signal.SIGKILL)
            assert run.wait() == [-signal.SIGKILL]
    finish(arguments, tmp_path / "io")
    check_same(straight(*KINDS[kind]), out, tmp_path)
    assert not [path for path in out.rglob(".*") if path.is_dir()]


def test_killed_while_a_checkpoint_is_written(data, straight, tmp_path):
    """At one file operation after the other; what the next start finds is whole or not there."""
    out, report = tmp_path / "run", tmp_path / "count"
    more = KINDS["ema"]
    arguments = command(data, out, "--steps", STEPS, "--save-every", 20, "--keep", 1, *more)
    finish(arguments, tmp_path / "io", before=partial(kill_at, 10**9, str(report)))
    of_one = int(report.read_text()) // 3
    shutil.rmtree(out)
    assert of_one > 10
    points = random.Random(0).sample(range(1, of_one + 8), 9)
    for point in points:
        finish(arguments, tmp_path / "io", code=-signal.SIGKILL, before=partial(kill_at, point))
        if len(checkpoints(out)) and checkpoints(out)[-1] == f"step-{STEPS:08d}":
            shutil.rmtree(out)
    finish(arguments, tmp_path / "io")
    check_same(straight(*more), out, tmp_path)
    assert checkpoints(out) == [f"step-{STEPS:08d}"]


@pytest.mark.slow
@pytest.mark.parametrize("later", [0, 1])
def test_killed_at_every_point_of_a_checkpoint(data, straight, tmp_path, later):
    """The first one, of which nothing is there yet, and the second, which replaces it."""
    report = tmp_path / "count"
    first = command(data, tmp_path / "0", "--steps", STEPS, "--save-every", 30, "--keep", 1)
    finish(first, tmp_path / "io", before=partial(kill_at, 10**9, str(report)))
    of_one = int(report.read_text()) // 2
    for point in range(1 + later * of_one, (1 + later) * of_one + 1):
        out = tmp_path / "run"
        arguments = [str(out) if word == str(tmp_path / "0") else word for word in first]
        finish(arguments, tmp_path / "io", code=-signal.SIGKILL, before=partial(kill_at, point))
        finish(arguments, tmp_path / "io")
        check_same(straight(), out, tmp_path)
        # Killed before the old one was removed, by a run that has nothing left to do, it stays.
        assert checkpoints(out)[-1] == f"step-{STEPS:08d}"
        assert set(checkpoints(out)) <= {f"step-{STEPS // 2:08d}", f"step-{STEPS:08d}"}
        shutil.rmtree(out)


def test_killed_while_pictures_are_decoded_on_the_fly(tmp_path):
    """The order, the crops and the batches do not depend on where a run began."""
    for number in range(24):
        (tmp_path / "data").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "data" / f"{number}.png")

    def arguments(name: str) -> list[str]:
        more = ["--steps", STEPS, "--save-every", 7, "--augment", "crop,flip"]
        return command(tmp_path / "data", tmp_path / name, *more)

    assert main(arguments("straight")) == 0
    for more in (9, 21):
        with started(arguments("run"), tmp_path / "io", before=partial(no_further_than, more + 7)) as run:
            wait_until(lambda: steps_logged(tmp_path / "run") >= more, run)  # noqa: B023
            run.send(signal.SIGKILL)
            run.wait()
    finish(arguments("run"), tmp_path / "io")
    check_same(tmp_path / "straight", tmp_path / "run", tmp_path)


def test_a_run_that_ended_is_not_run_again(data, straight, tmp_path, capsys):
    out = shutil.copytree(straight(), tmp_path / "run")
    shutil.rmtree(out / "model")  # killed before the model was put in place
    before = weights_of_checkpoints(out)
    assert main(command(data, out, "--steps", STEPS)) == 0
    assert f"{out}/model: {STEPS} updates" in capsys.readouterr().out
    assert weights_of_checkpoints(out) == before
    check_same(straight(), out, tmp_path)


def weights_of_checkpoints(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*") if path.is_file()}


def test_more_steps_go_on(data, tmp_path):
    constant = ["--schedule", "constant"]
    assert main(command(data, tmp_path / "run", "--steps", 30, *constant)) == 0
    assert main(command(data, tmp_path / "run", "--steps", STEPS, *constant)) == 0
    assert main(command(data, tmp_path / "straight", "--steps", STEPS, *constant)) == 0
    check_same(tmp_path / "straight", tmp_path / "run", tmp_path)


# Another number of processes, or another way of sharing the work.

ONE, DDP, FSDP = (1, "ddp"), (2, "ddp"), (2, "fsdp")


@pytest.mark.parametrize(
    ("places", "optimizer"),
    [
        ((FSDP, ONE), "adamw"),
        ((FSDP, ONE), "muon"),
        ((ONE, FSDP), "adamw"),
        ((ONE, FSDP), "muon"),
        ((DDP, FSDP), "adamw"),
        pytest.param((FSDP, DDP), "adamw", marks=pytest.mark.slow),
        pytest.param((DDP, FSDP), "muon", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_continued_by_other_processes(data, straight, tmp_path, places, optimizer):
    """Killed about the middle."""
    out = tmp_path / "run"
    more = ["--optimizer", optimizer, "--ema", "0.9"]
    arguments = command(data, out, "--steps", STEPS, "--save-every", 6, *more)
    (first, strategy), (last, other) = places
    slow = partial(no_further_than, STEPS - 1)
    with started([*arguments, "--strategy", strategy], tmp_path / "io", first, slow) as run:
        wait_until(lambda: steps_logged(out) >= 20, run)
        run.send(signal.SIGKILL)
        run.wait()
    finish([*arguments, "--strategy", other], tmp_path / "io", last)
    expected = straight(*more)
    assert column(out, "step") == list(range(1, STEPS + 1))
    assert column(out) == pytest.approx(column(expected), abs=1e-6)
    assert column(out, "grad_norm") == pytest.approx(column(expected, "grad_norm"), abs=1e-5)
    assert column(out, "epoch") == column(expected, "epoch")
    assert not log(out, "rollback")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_killed(data, tmp_path, strategy):
    """With as many as before the end is the same bit by bit, dropout included."""
    more = ["--strategy", strategy, "--dropout", "0.1", "--save-every", 7]
    finish(command(data, tmp_path / "straight", "--steps", STEPS, *more), tmp_path / "io", 2)
    arguments = command(data, tmp_path / "run", "--steps", STEPS, *more)
    for victim, at in ((0, 10), (1, 30)):
        with started(arguments, tmp_path / "io", 2, partial(no_further_than, at + 7), [victim]) as run:
            wait_until(lambda: steps_logged(tmp_path / "run") >= at, run)  # noqa: B023
            run.send(signal.SIGKILL, victim)
            codes = run.wait()
            assert codes[victim] == -signal.SIGKILL
            assert codes[1 - victim] == 2
            assert "lost the others" in run.errors
            assert "Give the same command again" in run.errors
            assert "Traceback" not in run.errors
    finish(arguments, tmp_path / "io", 2)
    check_same(tmp_path / "straight", tmp_path / "run", tmp_path)
