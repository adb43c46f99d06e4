"""What goes wrong while a run is under way: full disks, lost and frozen processes, signals, losses that leap."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imagegpt.cli.main import main
from imagegpt.errors import InputError
from imagegpt.train import checkpoints as checkpoints_module
from imagegpt.train.journal import Journal
from imagegpt.train.loop import Run, train
from imagegpt.train.recipe import Recipe
from imagegpt.train.training import Gradient, Training
from training_runs import (
    checkpoints,
    column,
    command,
    finish,
    log,
    no_further_than,
    pictures,
    started,
    steps_logged,
    tokens,
    wait_until,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return tokens(tmp_path_factory.mktemp("data") / "tokens")


def one_sentence(printed: str, *words: str) -> str:
    """The last line is the error, the only one, and has the words."""
    lines = printed.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    for word in words:
        assert word in lines[-1]
    return lines[-1]


# Disks.


def small_files(size: int) -> None:
    """No file of this process may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("size", "count"),
    [(50_000, 1), (150_000, 1), (50_000, 2), (100_000, 2)],
    ids=["weights", "state", "two", "state-2"],
)
def test_a_disk_without_room(data, tmp_path, size, count):
    """The weights take 114 kB, the optimiser's state 230; the checkpoint before it was made with room for all."""
    out = tmp_path / "run"
    how = ["--strategy", "fsdp", "--save-every", 4]
    finish(command(data, out, "--steps", 4, *how), tmp_path / "io", count)
    before = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()}
    run = finish(command(data, out, "--steps", 8, *how), tmp_path / "io", count, 2, partial(small_files, size))
    told = run.errors.splitlines()[1]
    assert told.startswith("error: The checkpoint ")
    assert "step-00000008 can't be written" in told
    assert "that of update 4 is kept" in told
    assert {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()} == before
    assert checkpoints(out) == ["step-00000004"]
    assert not list((out / "checkpoints").glob(".*"))
    finish(command(data, out, "--steps", 8, *how), tmp_path / "io", count)
    assert column(out, "step") == list(range(1, 9))


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name", ["write_tensors", "write_preprocessor", "_save_state", "_list_files", "write_text", "make_folder", "_sync"]
)
def test_a_disk_that_fills_at_any_part_of_a_checkpoint(data, tmp_path, monkeypatch, capsys, name):
    out = tmp_path / "run"
    assert main(command(data, out, "--steps", 4)) == 0
    capsys.readouterr()
    monkeypatch.setattr(checkpoints_module, name, full)
    assert main(command(data, out, "--steps", 8, "--save-every", 8)) == 2
    one_sentence(capsys.readouterr().err, "step-00000008 can't be written", "No space left on device")
    assert "step-00000004" in checkpoints(out)
    assert not list((out / "checkpoints").glob(".*"))


def test_a_disk_that_is_full_before_the_first_checkpoint(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints_module, "write_tensors", full)
    assert main(command(data, tmp_path / "run")) == 2
    one_sentence(capsys.readouterr().err, "step-00000005 can't be written", "there is none yet")


def test_a_disk_that_fills_with_the_log(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Journal, "write", full)
    assert main(command(data, tmp_path / "run")) == 2
    one_sentence(capsys.readouterr().err, "No space left on device", str(tmp_path / "run"))


def test_a_disk_that_fills_with_the_model(data, tmp_path, monkeypatch, capsys):
    from imagegpt.train import loop

    assert main(command(data, tmp_path / "run")) == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(loop.shutil, "copyfile", full)
    assert main(command(data, tmp_path / "run")) == 2
    one_sentence(capsys.readouterr().err, "No space left on device")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_a_disk_that_is_really_full(data, tmp_path):
    """As only root can make one."""
    out = tmp_path / "disk"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", out], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        run = finish(command(data, out, "--steps", 40, "--keep", 9, "--save-every", 4), tmp_path / "io", code=2)
        one_sentence(run.errors, "can't be written", "is kept")
        kept = checkpoints(out)
        assert kept
        assert run.errors.split("that of update ")[1].split()[0] == str(int(kept[-1].removeprefix("step-")))
        checkpoints_module.read_checkpoint(out / "checkpoints" / kept[-1])
    finally:
        subprocess.run(["umount", "-l", out], check=True)


# Signals.


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_a_signal_ends_a_run_after_a_checkpoint(data, tmp_path, kind, count):
    """Of two processes, one is told: both stop at the same update."""
    out = tmp_path / "run"
    arguments = command(data, out, "--steps", 3000, "--save-every", 0, "--strategy", "fsdp")
    with started(arguments, tmp_path / "io", count) as run:
        wait_until(lambda: steps_logged(out) >= 5, run)
        run.send(kind, count - 1)
        assert run.wait() == [130] * count
    [name] = checkpoints(out)
    step = int(name.removeprefix("step-"))
    assert 5 <= step < 3000
    message = f"Interrupted at update {step}; the same command goes on from there."
    assert run.errors.count(message) == count
    assert "Traceback" not in run.errors
    assert column(out, "step") == list(range(1, step + 1))
    with started(arguments, tmp_path / "io", count) as run:
        wait_until(lambda: f"update {step} of 3000" in run.errors, run)
        run.send(signal.SIGTERM)
        assert run.wait() == [130] * count


def slow_start() -> None:
    """This process has its weights a second later than the others."""
    load = checkpoints_module.Checkpoints.load

    def slowly(*arguments):
        load(*arguments)
        time.sleep(1)

    checkpoints_module.Checkpoints.load = slowly


def test_a_run_tells_of_its_start_when_every_process_listens(data, tmp_path):
    """A signal to all would else kill those that are not there yet, and the others would call them lost."""
    arguments = command(data, tmp_path / "run", "--steps", 3000)
    finish(command(data, tmp_path / "run", "--steps", 4), tmp_path / "io", 2)
    with started(arguments, tmp_path / "io", 2, slow_start, [1]) as run:
        wait_until(lambda: "update 4 of 3000" in run.errors, run)
        run.send(signal.SIGTERM)
        assert run.wait() == [130, 130]
    assert "Traceback" not in run.errors


def save_after(sign: Path) -> None:
    """A checkpoint is not written before there is this file."""
    save = Run.save

    def waiting(self):
        while not sign.exists():
            time.sleep(0.005)
        save(self)

    Run.save = waiting


def test_ctrl_c_of_all_processes_at_once(data, tmp_path):
    """As a terminal does, several times while they stop."""
    out, sign = tmp_path / "run", tmp_path / "sign"
    arguments = command(data, out, "--steps", 3000, "--save-every", 0)
    with started(arguments, tmp_path / "io", 2, partial(save_after, sign)) as run:
        wait_until(lambda: steps_logged(out) >= 5, run)
        for _ in range(3):
            run.send(signal.SIGINT)
        sign.touch()
        assert run.wait() == [130, 130]
    assert len(checkpoints(out)) == 1


def test_ctrl_c_before_the_first_update(tmp_path):
    data = pictures(tmp_path / "data", 600)
    with started(command(data, tmp_path / "run"), tmp_path / "io", before=partial(no_further_than, 0)) as run:
        wait_until((tmp_path / "run" / "data").exists, run)
        run.send(signal.SIGINT)
        assert run.wait() == [130]
    assert "Traceback" not in run.errors


# Processes.


def lost(errors: str, count: int = 1) -> None:
    assert errors.count("lost the others") == count
    assert errors.count("it goes on from the last checkpoint") == count
    assert "Traceback" not in errors


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_hangs(data, tmp_path, strategy):
    out = tmp_path / "run"
    arguments = command(data, out, "--steps", 3000, "--save-every", 4, "--strategy", strategy, "--timeout", 0.15)
    with started(arguments, tmp_path / "io", 2) as run:
        wait_until(lambda: checkpoints(out)[:1] == ["step-00000004"] or len(checkpoints(out)) > 1, run)
        run.send(signal.SIGSTOP, 1)
        assert run.wait(0, seconds=120) == [2]
        lost(run.errors)
        run.send(signal.SIGKILL, 1)
        run.wait(1)
    whole = [name for name in checkpoints(out) if name.startswith("step-")]  # beside one that it hung in, perhaps
    kept = int(whole[-1].removeprefix("step-"))
    finish(command(data, out, "--steps", kept + 3, "--strategy", strategy), tmp_path / "io", 2)
    assert column(out, "step") == list(range(1, kept + 4))


def torchrun(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    how = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python", "--"]
    return subprocess.Popen(
        [*how, str(Path(sys.executable).with_name("imagegpt")), *arguments],
        stdout=subprocess.PIPE,
        stderr=(folder / "errors").open("w"),
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_process_that_is_killed_under_torchrun(data, tmp_path):
    """The job stops, says so, and goes on by the same command; and the end of a run is the end of torchrun."""
    out = tmp_path / "run"
    arguments = command(data, out, "--steps", 400, "--save-every", 10)
    process = torchrun(arguments, tmp_path)
    try:
        until = time.monotonic() + 240
        while steps_logged(out) < 25:
            assert process.poll() is None, (tmp_path / "errors").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"\0train\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        process.communicate(timeout=240)
        assert process.returncode != 0
        told = (tmp_path / "errors").read_text()
        assert "lost the others" in told or "exitcode  : -9" in told
        process = torchrun(arguments, tmp_path)
        process.communicate(timeout=240)
        assert process.returncode == 0, (tmp_path / "errors").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert column(out, "step") == list(range(1, 401))


def fail_in_evaluation() -> None:
    def draw(*_):
        raise InputError("no room for a sheet.")

    Run._draw = draw


def test_a_failure_of_the_first_process_ends_all(data, tmp_path):
    arguments = command(data, tmp_path / "run", "--sample-every", 3)
    with started(arguments, tmp_path / "io", 2, fail_in_evaluation) as run:
        assert run.wait() == [2, 2]
    assert "error: no room for a sheet." in run.errors
    lost(run.errors)


# Losses.


def with_losses(monkeypatch, leap) -> list[int]:
    """Have `leap` say what the loss at a position of the data is; holds the positions that were seen."""
    seen, gradient = [], Training.gradient

    def changed(self, ids_BT, position, more=None):
        seen.append(position)
        found = gradient(self, ids_BT, position, more)
        value = leap(position)
        return found if value is None else Gradient(value, found.norm)

    monkeypatch.setattr(Training, "gradient", changed)
    return seen


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, capsys):
    """Of a step size that no network survives."""
    assert main(command(data, tmp_path / "run", "--lr", "1e18", "--save-every", 1, "--warmup", 0)) == 2
    told = one_sentence(capsys.readouterr().err, "The run stops", "lower --lr", "--on-spike rollback")
    assert "nan" in told or "inf" in told
    [kept] = checkpoints(tmp_path / "run")[-1:]
    assert f"the checkpoint of update {int(kept.removeprefix('step-'))} is kept" in told
    assert column(tmp_path / "run", "step")[-1] == int(kept.removeprefix("step-"))


def test_a_loss_that_is_not_finite_before_any_checkpoint(data, tmp_path, capsys):
    more = ["--lr", "1e18", "--save-every", 0, "--warmup", 0, "--on-spike", "rollback"]
    assert main(command(data, tmp_path / "run", *more)) == 2
    one_sentence(capsys.readouterr().err, "there is no checkpoint yet")


def test_the_data_of_a_leap_are_left_out(data, tmp_path, monkeypatch, capsys):
    seen = with_losses(monkeypatch, lambda position: float("nan") if position == 6 else None)
    more = ["--steps", 12, "--save-every", 4, "--on-spike", "rollback", "--ema", "0.9"]
    assert main(command(data, tmp_path / "run", *more)) == 0
    assert seen == [*range(7), *range(7, 15)]
    told = [line for line in capsys.readouterr().err.splitlines() if "without the data since then" in line]
    assert told == ["At update 7 the loss is nan. Back to update 4, without the data since then."]
    [record] = log(tmp_path / "run", "rollback")
    assert (record["step"], record["to"], record["position"]) == (4, 4, 7)
    assert column(tmp_path / "run", "step") == list(range(1, 13))  # each once
    # Update 5 is now of other data: the weights are those of a run that never saw them.
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_after_a_rollback_all_is_as_it_was_saved(data, tmp_path, monkeypatch):
    """A run that was killed there, and told to leave out the same data, ends the same."""
    more = ["--steps", 12, "--save-every", 4, "--on-spike", "rollback", "--ema", "0.9", "--optimizer", "muon"]
    with monkeypatch.context() as patch:
        with_losses(patch, lambda position: float("inf") if position == 6 else None)
        assert main(command(data, tmp_path / "one", *more)) == 0
    with monkeypatch.context() as patch:
        seen = with_losses(
            patch, lambda position: 1 / 0 if position == 4 and not (tmp_path / "two.txt").exists() else None
        )
        with pytest.raises(ZeroDivisionError):
            main(command(data, tmp_path / "two", *more))
        assert seen[-1] == 4
    resume = Run._resume

    def skipping(self):
        resume(self)
        self.position = 7

    monkeypatch.setattr(Run, "_resume", skipping)
    assert main(command(data, tmp_path / "two", *more)) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert column(tmp_path / "one") == column(tmp_path / "two")


def test_it_gives_up_after_three(data, tmp_path, monkeypatch, capsys):
    seen = with_losses(monkeypatch, lambda position: float("nan") if position >= 6 else None)
    more = ["--steps", 12, "--save-every", 4, "--on-spike", "rollback"]
    assert main(command(data, tmp_path / "run", *more)) == 2
    printed = capsys.readouterr().err
    one_sentence(printed, "The run stops; the checkpoint of update 4 is kept")
    assert printed.count("without the data since then") == 3
    assert seen == [*range(7), 7, 8, 9]


def test_a_checkpoint_between_rollbacks_makes_them_good(data, tmp_path, monkeypatch, capsys):
    """Three in a row are too many; ten in a long run are not."""
    leaps = {3, 8, 13, 18, 23}
    with_losses(monkeypatch, lambda position: float("nan") if position in leaps else None)
    more = ["--steps", 20, "--save-every", 2, "--on-spike", "rollback"]
    assert main(command(data, tmp_path / "run", *more)) == 0
    assert capsys.readouterr().err.count("without the data since then") == len(leaps)
    assert column(tmp_path / "run", "step") == list(range(1, 21))


def test_a_leap(data, tmp_path, monkeypatch, capsys):
    """It is compared with the latest 50 updates."""
    with_losses(monkeypatch, lambda position: 9.0 if position in (20, 55) else None)
    more = ["--steps", 60, "--save-every", 50, "--spike", 1.5]
    assert main(command(data, tmp_path / "run", *more)) == 2
    one_sentence(capsys.readouterr().err, "At update 56 the loss jumped to 9.000 nats/token", "update 50 is kept")
    assert main(command(data, tmp_path / "run", *more, "--on-spike", "rollback")) == 0
    assert "Back to update 50" in capsys.readouterr().err
    assert column(tmp_path / "run", "step") == list(range(1, 61))


def test_a_loss_that_is_not_finite_in_one_of_two_processes(data, tmp_path):
    """Both see the sum, and do the same."""
    more = ["--steps", 12, "--save-every", 4, "--on-spike", "rollback", "--strategy", "fsdp"]
    run = finish(command(data, tmp_path / "run", *more), tmp_path / "io", 2, 0, leap_of_one)
    assert run.errors.count("Back to update 4, without the data since then.") == 1
    assert column(tmp_path / "run", "step") == list(range(1, 13))


def leap_of_one() -> None:
    gradient = Training.gradient

    def changed(self, ids_BT, position, more=None):
        if position == 6 and self.group.rank == 1:
            self.model.transformer.ln_f.weight.grad = None
            with torch.no_grad():
                parameter = self.parameters["transformer.ln_f.weight"]
                parameter.mul_(float("nan"))
        return gradient(self, ids_BT, position, more)

    Training.gradient = changed


# Pictures.


@pytest.mark.parametrize("more", [[], ["--augment", "crop"]], ids=["ids", "on the fly"])
def test_pictures_that_do_not_decode(tmp_path, capsys, more):
    data = pictures(tmp_path / "data", 16)
    for name in ("cat/002.png", "dog/005.png"):
        Path(data, name).write_bytes(b"no picture")
    out = tmp_path / "run"
    assert main(command(data, out, "--steps", 12, *more)) == 0
    printed = capsys.readouterr().err
    if more:
        assert printed.count("skipped: ") == 2
        listed = (out / "skipped.txt").read_text().splitlines()
    else:
        assert "2 pictures could not be read" in printed
        listed = json.loads((out / "data" / "train" / "meta.json").read_text())["skipped"]
    assert len(listed) == 2
    assert sum("002.png" in line for line in listed) == sum("005.png" in line for line in listed) == 1
    assert column(out, "step") == list(range(1, 13))


def test_a_list_of_broken_pictures_has_each_once(tmp_path):
    """Also of a run that went on."""
    data = pictures(tmp_path / "data", 8)
    Path(data, "cat/002.png").write_bytes(b"no picture")
    for steps in (6, 12):
        more = ["--steps", steps, "--augment", "crop", "--schedule", "constant", "--warmup", 1]
        assert main(command(data, tmp_path / "run", *more)) == 0
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "run" / "model" / "training.json").read_text())["skipped"] == 1


def test_python_can_train_without_a_command(data, tmp_path):
    told = []
    recipe = Recipe.load("debug", train=data, device="cpu", steps=4)
    summary = train(recipe, tmp_path / "run", tell=lambda kind, record: told.append(kind))
    assert summary["steps"] == 4
    assert told == ["start", *["step"] * 4, "checkpoint"]
    assert (tmp_path / "run" / "model" / "config.json").exists()
