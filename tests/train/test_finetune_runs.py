"""Whole runs of fine-tuning: they end with their best epoch, however they were interrupted or shared."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from classifiers import configure
from imagegpt.cli.main import main
from imagegpt.model.heads import ImageGPTForImageClassification
from training_runs import (
    checkpoints,
    classes,
    column,
    finetune_command,
    finish,
    lit_pictures,
    log,
    no_further_than,
    started,
    steps_logged,
    wait_until,
)

PER_EPOCH, PATIENCE = 8, 3
KINDS: dict[str, list[str]] = {
    "joint": [],
    "no generative loss": ["--generative", "0"],
    "head in the middle": ["--layer", "1", "--layer-decay", "0.8"],
    "cut": ["--layer", "1", "--generative", "0"],
    "lora": ["--lora", "2"],
    "lora, head in the middle": ["--lora", "2", "--layer", "1", "--ema", "0.8"],
    "frozen": ["--freeze", "1", "--head-rate", "3", "--optimizer", "muon"],
    "ema": ["--ema", "0.9", "--dropout", "0.1"],
    "mixture": ["--mixup", "0.4", "--smoothing", "0.1", "--class-weights", "balanced"],
    "bert": ["--mask", "0.3"],
    "pictures": ["--augment", "imagenet", "--batch", "8"],
}
QUICK_KILLS = {"lora", "pictures"}
ALL = [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK_KILLS), id=kind) for kind in KINDS]


@pytest.fixture(scope="module")
def bert(tiny_folder, tmp_path_factory) -> Path:
    """The same weights, read in both directions."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("bert") / "model")
    configure(folder, is_causal=False)
    return folder


@pytest.fixture(scope="module")
def command_of(tiny_folder, bert, tmp_path_factory) -> Callable[..., list[str]]:
    """A function: kind, folder, options -> the command. A third of the training labels are wrong, so it overfits."""
    place = tmp_path_factory.mktemp("data")
    validation = classes(place / "validation", 40, 1)
    train = classes(place / "train", 8 * PER_EPOCH, 0, 0.35)
    shown = lit_pictures(place / "pictures", 8 * PER_EPOCH), lit_pictures(place / "validated", 30, 1000)

    def made(kind: str, out: Path, *more: str | int) -> list[str]:
        data = shown if kind == "pictures" else (train, validation)
        model = bert if kind == "bert" else tiny_folder
        options = ["--validation", data[1], "--lr", "0.005", "--patience", PATIENCE]
        return finetune_command(model, data[0], out, *options, *KINDS[kind], *more)

    return made


@pytest.fixture(scope="module")
def straight(command_of, tmp_path_factory) -> Callable[..., Path]:
    """The folder of a run that nothing interrupts, in this process."""

    @functools.cache
    def run(kind: str, *more: str) -> Path:
        out = tmp_path_factory.mktemp("straight") / "run"
        assert main(command_of(kind, out, *more)) == 0
        return out

    return run


def made_by(out: Path) -> dict[str, Any]:
    return json.loads((out / "model" / "training.json").read_text())


def weights(out: Path, step: int) -> dict[str, bytes]:
    """All weights of a checkpoint and of the model, as bytes."""
    files = [*(out / "checkpoints" / f"step-{step:08d}").rglob("*.safetensors"), out / "model" / "model.safetensors"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def state(out: Path, step: int, folder: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(out / "checkpoints" / f"step-{step:08d}" / "state", folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def records(out: Path, *kinds: str) -> list[dict[str, Any]]:
    """What was logged, but for times."""
    times = ("seconds", "ids_per_s", "pictures_per_s", "mfu")
    found = [record for kind in kinds for record in log(out, kind)]
    return [{name: value for name, value in record.items() if name not in times} for record in found]


def check_same(one: Path, other: Path, folder: Path) -> None:
    """Bit by bit: weights of the last and of the best checkpoint and of the model, state and log, each step once."""
    ours, theirs = made_by(one), made_by(other)
    for name in ("step", "steps", "best", "published", "notes", "trained"):
        assert ours[name] == theirs[name], name
    for step in (ours["step"], ours["published"]):
        assert weights(one, step) == weights(other, step)
    states = state(one, ours["step"], folder), state(other, ours["step"], folder)
    assert states[0]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
    assert column(one, "step") == list(range(1, ours["step"] + 1))
    assert len(log(one, "patience")) == 1
    for kind in ("train", "validation", "patience", "note"):
        assert records(one, kind) == records(other, kind)


def without_model(out: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(out)), path.read_bytes()) for path in sorted(out.rglob("*")) if path.is_file()]


# The best epoch.


def predictions(model: Path, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = ImageGPTForImageClassification.from_pretrained(model).eval()(torch.from_numpy(ids.astype(np.int64)))
    return found.logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_epoch_becomes_the_model(straight, command_of, kind):
    """And its accuracy is that which transformers' way of opening it finds."""
    out = straight(kind)
    found = log(out, "validation")
    values = [record["accuracy"] for record in found]
    best = values.index(max(values))
    assert [record["step"] for record in found] == [PER_EPOCH * epoch for epoch in range(1, len(found) + 1)]
    assert len(found) == best + 1 + PATIENCE, values  # it ended early, and no earlier than it should
    told = made_by(out)
    assert told["best"] == {"step": found[best]["step"], "accuracy": values[best]}
    assert told["published"] == found[best]["step"] < told["step"] == found[-1]["step"] < told["steps"]
    assert records(out, "patience") == [
        {"step": told["step"], "kind": "patience", "best": told["best"]["step"], "waited": PATIENCE}
    ]
    assert checkpoints(out) == [f"step-{step:08d}" for step in (told["published"], told["step"])]
    home = out / "checkpoints" / f"step-{told['published']:08d}"
    kept = (home / "ema" if "--ema" in KINDS[kind] else home) / "model.safetensors"
    assert (out / "model" / "model.safetensors").read_bytes() == kept.read_bytes()
    assert kept.read_bytes() != Path(str(kept).replace(home.name, f"step-{told['step']:08d}")).read_bytes()
    data = command_of(kind, out)
    folder = Path(data[data.index("--validation") + 1])
    folder = out / "data" / "validation" if kind == "pictures" else folder
    logits, labels = predictions(out / "model", np.load(folder / "ids.npy")), np.load(folder / "labels.npy")
    assert (logits.argmax(1) == labels).mean() == pytest.approx(values[best])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels).long())
    assert loss.item() == pytest.approx(found[best]["class_loss"], abs=1e-4)


def test_the_kinds_differ(straight):
    """Else it says nothing that each is the same after a kill."""
    curves = [column(straight(kind)) for kind in KINDS]
    assert len({tuple(curve[1:16]) for curve in curves}) == len(KINDS)
    assert all(min(curve) < curve[0] - 0.05 for curve in curves)


@pytest.mark.parametrize("kind", ["joint", "no generative loss", "head in the middle", "cut"])
def test_the_losses_are_told_apart(straight, kind):
    for record in log(straight(kind)):
        assert record["loss"] == pytest.approx(record["class_loss"] + record.get("generative_loss", 0), abs=1e-6)
        assert ("generative_loss" in record) == (kind in ("joint", "head in the middle"))
    nats = column(straight(kind), "nats_per_token", "validation")
    assert all(value is None for value in nats) if kind == "cut" else min(nats) > 0


def test_no_patience_and_the_last(straight, command_of, tmp_path):
    """All epochs, and the weights at their end; up to its own end an impatient run is the same."""
    out = tmp_path / "run"
    assert main(command_of("joint", out, "--patience", 0, "--publish", "last", "--epochs", 12)) == 0
    told, early = made_by(out), straight("joint")
    assert told["step"] == told["published"] == told["steps"] == 12 * PER_EPOCH
    assert not log(out, "patience")
    assert told["best"]["step"] <= 12 * PER_EPOCH
    length = len(column(early))
    assert column(out)[:length] == column(early)[: 12 * PER_EPOCH]
    assert len(checkpoints(out)) == 2


def test_the_first_of_equals_is_the_best(command_of, straight, tmp_path):
    """With a step size of nothing all validations are the same, and the run ends as soon as it may."""
    assert main(command_of("joint", tmp_path / "run", "--lr", "1e-30", "--head-rate", 0)) == 0
    assert len(set(column(tmp_path / "run", "accuracy", "validation"))) == 1
    assert made_by(tmp_path / "run")["published"] == PER_EPOCH
    assert made_by(tmp_path / "run")["step"] == (1 + PATIENCE) * PER_EPOCH


# Interrupted, and continued by the same command.


@pytest.mark.parametrize("kind", ALL)
def test_killed_at_any_time(command_of, straight, tmp_path, kind):
    """With kill -9, as often as it takes; what is lost is no more than the updates since the last checkpoint."""
    out, chosen, every = tmp_path / "run", random.Random(kind), 5
    arguments = command_of(kind, out, "--save-every", every)
    most = made_by(straight(kind))["step"] - 1
    slow = functools.partial(no_further_than, most)
    for _ in range(3):
        wanted = min(steps_logged(out) // every * every + every + chosen.randrange(1, 14), most)
        with started(arguments, tmp_path / "io", before=slow) as run:
            wait_until(lambda: steps_logged(out) >= wanted, run)  # noqa: B023
            time.sleep(chosen.random() / 50)
            run.send(signal.SIGKILL)
            assert run.wait() == [-signal.SIGKILL]
        newest = int([name for name in checkpoints(out) if name.startswith("step-")][-1].removeprefix("step-"))
        lost = steps_logged(out) - newest
        assert lost <= every + 1  # the next checkpoint may not have been whole yet
        with started(arguments, tmp_path / "io", before=slow) as run:
            wait_until(lambda: "update " in run.errors, run)
            assert run.errors.startswith(f"update {newest} of ")
            run.send(signal.SIGKILL)
            run.wait()
    finish(arguments, tmp_path / "io")
    check_same(straight(kind), out, tmp_path)
    assert not [path for path in out.rglob(".*") if path.is_dir()]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("joint", signal.SIGINT),
        ("ema", signal.SIGTERM),
        pytest.param("lora", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("bert", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("pictures", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_continued(command_of, straight, tmp_path, kind, how):
    """Nothing is lost: the update at hand is finished and saved."""
    out = tmp_path / "run"
    arguments = command_of(kind, out)
    for more in (3, 2 * PER_EPOCH + 3):
        with started(arguments, tmp_path / "io", before=functools.partial(no_further_than, more + 5)) as run:
            wait_until(lambda: steps_logged(out) >= more, run)  # noqa: B023
            run.send(how)
            assert run.wait() == [130]
        step = column(out, "step")[-1]
        assert f"Interrupted at update {step}; the same command goes on from there." in run.errors
        assert checkpoints(out)[-1] == f"step-{step:08d}"
        assert not (out / "model").exists()
    finish(arguments, tmp_path / "io")
    check_same(straight(kind), out, tmp_path)


def test_stopped_while_it_waits_for_a_better_validation(command_of, straight, tmp_path):
    """After one that was not better: the count goes on, and begins neither anew nor twice."""
    told, out = made_by(straight("joint")), tmp_path / "run"
    arguments = command_of("joint", out)
    at = told["published"] + PER_EPOCH + 1
    with started(arguments, tmp_path / "io", before=functools.partial(no_further_than, at + 3)) as run:
        wait_until(lambda: steps_logged(out) >= at, run)
        run.send(signal.SIGTERM)
        assert run.wait() == [130]
    newest = json.loads((out / "checkpoints" / checkpoints(out)[-1] / "checkpoint.json").read_text())
    assert newest["best"] == told["best"]
    assert newest["waited"] >= 1
    finish(arguments, tmp_path / "io")
    check_same(straight("joint"), out, tmp_path)


@pytest.mark.parametrize("kind", ["joint", "lora", "ema"])
def test_a_run_that_ended_is_not_run_again(command_of, straight, tmp_path, capsys, kind):
    out = shutil.copytree(straight(kind), tmp_path / "run")
    before = without_model(out)
    capsys.readouterr()
    assert main(command_of(kind, out)) == 0
    assert without_model(out) == before
    assert f"at update {made_by(out)['published']}" in capsys.readouterr().out
    shutil.rmtree(out / "model")  # killed before the model was put in place
    assert main(command_of(kind, out)) == 0
    assert without_model(out) == before


def test_more_patience_goes_on(command_of, straight, tmp_path):
    out = shutil.copytree(straight("joint"), tmp_path / "run")
    finish(command_of("joint", out, "--patience", PATIENCE + 2), tmp_path / "io")
    assert made_by(out)["step"] > made_by(straight("joint"))["step"]
    assert main(command_of("joint", tmp_path / "patient", "--patience", PATIENCE + 2)) == 0
    ours, theirs = (made_by(place) for place in (out, tmp_path / "patient"))
    assert ours["best"] == theirs["best"]
    assert weights(out, ours["step"]) == weights(tmp_path / "patient", theirs["step"])
    assert records(out, "validation") == records(tmp_path / "patient", "validation")


def test_what_is_said_at_the_start_is_said_once(command_of, tmp_path):
    """Also of a run that is killed before its first checkpoint and begins anew."""
    out = tmp_path / "run"
    arguments = command_of("joint", out, "--start", "hf", "--steps", 40, "--validate-every", 40)
    for _ in range(2):
        with started(arguments, tmp_path / "io", before=functools.partial(no_further_than, 20)) as run:
            wait_until(lambda: steps_logged(out) >= 5, run)
            run.send(signal.SIGKILL)
            run.wait()
        assert not checkpoints(out)
    finish(arguments, tmp_path / "io")
    [note] = log(out, "note")
    assert (note["step"], "The weights are new" in note["sentence"]) == (0, True)
    assert column(out, "step") == list(range(1, 41))


def test_a_best_checkpoint_that_is_damaged_is_not_published(command_of, straight, tmp_path, capsys):
    out = shutil.copytree(straight("joint"), tmp_path / "run")
    shutil.rmtree(out / "model")
    best = out / "checkpoints" / checkpoints(out)[0] / "model.safetensors"
    data = bytearray(best.read_bytes())
    data[-1] ^= 1
    best.write_bytes(data)
    capsys.readouterr()
    assert main(command_of("joint", out)) == 2
    assert f"{best.parent} is damaged: model.safetensors is not as it was written" in capsys.readouterr().err
    assert not (out / "model").exists()
    assert main(command_of("joint", out, "--publish", "last")) == 0
    assert made_by(out)["published"] == made_by(out)["step"]


# Several processes.

STEPS = 20
WAYS = {
    "accumulated": (1, ["--accumulate", "4"]),
    "ddp": (2, ["--strategy", "ddp"]),
    "fsdp": (2, ["--strategy", "fsdp"]),
    "ddp, accumulated": (2, ["--strategy", "ddp", "--accumulate", "2"]),
    "fsdp, accumulated": (2, ["--strategy", "fsdp", "--accumulate", "2"]),
}
QUICK = {
    *(("joint", "ddp"), ("joint", "accumulated"), ("lora", "fsdp"), ("frozen", "ddp")),
    *(("no generative loss", "fsdp"), ("mixture", "ddp, accumulated"), ("head in the middle", "fsdp, accumulated")),
}


@pytest.fixture(scope="module")
def shared(command_of) -> Callable[..., list[str]]:
    """The command of 20 updates of batches of 8, with two validations; dropout is another in each process."""

    def made(kind: str, out: Path, *more: str) -> list[str]:
        return command_of(kind, out, "--dropout", 0, "--steps", STEPS, "--validate-every", STEPS // 2, *more)

    return made


@pytest.fixture(scope="module")
def alone(shared, tmp_path_factory) -> Callable[[str], Path]:
    @functools.cache
    def run(kind: str) -> Path:
        out = tmp_path_factory.mktemp("alone") / "run"
        assert main(shared(kind, out)) == 0
        return out

    return run


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=[pytest.mark.slow] * ((kind, way) not in QUICK), id=f"{kind}-{way}")
        for kind in KINDS
        for way in WAYS
    ],
)
def test_the_same_curve(shared, alone, tmp_path, kind, way):
    count, more = WAYS[way]
    out = tmp_path / "run"
    finish(shared(kind, out, *more), tmp_path / "io", count)
    expected = alone(kind)
    assert column(out, "step") == list(range(1, STEPS + 1))
    for name in ("loss", "class_loss"):
        assert column(out, name) == pytest.approx(column(expected, name), abs=1e-5)
    if "generative_loss" in log(expected)[0]:
        assert column(out, "generative_loss") == pytest.approx(column(expected, "generative_loss"), abs=1e-5)
    assert column(out, "grad_norm") == pytest.approx(column(expected, "grad_norm"), rel=1e-3, abs=1e-4)
    found, wanted = log(out, "validation"), log(expected, "validation")
    assert len(found) == 2
    for one, other in zip(found, wanted, strict=True):
        assert (one["accuracy"], one["pictures"]) == (other["accuracy"], other["pictures"])
        for name in ("class_loss", "nats_per_token"):
            assert one[name] == pytest.approx(other[name], abs=2e-5)
    assert made_by(out)["best"] == made_by(expected)["best"]
    assert made_by(out)["trained"] == made_by(expected)["trained"]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        pytest.param("joint", ((2, "fsdp"), (1, "ddp")), marks=pytest.mark.slow),
        ("lora", ((1, "ddp"), (2, "fsdp"))),
        pytest.param("ema", ((2, "ddp"), (2, "fsdp")), marks=pytest.mark.slow),
        pytest.param("head in the middle", ((2, "fsdp"), (2, "ddp")), marks=pytest.mark.slow),
        pytest.param("frozen", ((2, "fsdp"), (1, "ddp")), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_continued_by_other_processes(shared, alone, tmp_path, kind, places):
    """Killed after the first validation."""
    out = tmp_path / "run"
    arguments = shared(kind, out, "--save-every", "2")
    (first, strategy), (last, other) = places
    slow = functools.partial(no_further_than, STEPS - 1)
    with started([*arguments, "--strategy", strategy], tmp_path / "io", first, slow) as run:
        wait_until(lambda: steps_logged(out) >= 13, run)
        run.send(signal.SIGKILL)
        run.wait()
    assert made_by(alone(kind))["step"] == STEPS
    assert checkpoints(out)[-1] < f"step-{STEPS:08d}"
    finish([*arguments, "--strategy", other], tmp_path / "io", last)
    expected = alone(kind)
    assert column(out, "step") == list(range(1, STEPS + 1))
    assert column(out) == pytest.approx(column(expected), abs=1e-5)
    assert column(out, "accuracy", "validation") == column(expected, "accuracy", "validation")
    assert made_by(out)["best"] == made_by(expected)["best"]


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(command_of, tmp_path):
    """Bit by bit, early stop and best included, with as many as before."""
    more = ["--strategy", "fsdp", "--save-every", "5"]
    finish(command_of("ema", tmp_path / "straight", *more), tmp_path / "io", 2)
    arguments = command_of("ema", tmp_path / "run", *more)
    with started(arguments, tmp_path / "io", 2, functools.partial(no_further_than, 20), [1]) as run:
        wait_until(lambda: steps_logged(tmp_path / "run") >= 13, run)
        run.send(signal.SIGKILL, 1)
        assert run.wait() == [2, -signal.SIGKILL]
        assert "Give the same command again" in run.errors
    finish(arguments, tmp_path / "io", 2)
    check_same(tmp_path / "straight", tmp_path / "run", tmp_path)


def test_pairs_that_processes_would_tear_apart(command_of, tmp_path):
    run = finish(command_of("mixture", tmp_path / "run", "--batch", "6"), tmp_path / "io", 2, code=2)
    assert "--mixup mixes pairs of pictures: give a --batch that is even in every forward." in run.errors
    assert not checkpoints(tmp_path / "run")
