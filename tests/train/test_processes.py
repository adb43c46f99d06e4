"""Several processes train as one does: the same losses and gradients, however the work is shared."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imagegpt.cli.main import main
from imagegpt.errors import InputError
from imagegpt.train.processes import LostProcessError, Processes, processes
from imagegpt.train.training import Training
from running import free_port
from training_runs import column, command, finish, log, pictures, started, tokens

STEPS = 30
WAYS = {
    "accumulated": (1, ["--accumulate", "4"]),
    "ddp": (2, ["--strategy", "ddp"]),
    "ddp, accumulated": (2, ["--strategy", "ddp", "--accumulate", "2"]),
    "fsdp": (2, ["--strategy", "fsdp"]),
    "fsdp, accumulated": (2, ["--strategy", "fsdp", "--accumulate", "2"]),
    "checkpointing": (1, ["--checkpointing"]),
}
RUNS = {
    "ar": ["--weight-decay", "0.1"],
    "bert": ["--objective", "bert", "--mask", "0.3"],
    "muon": ["--optimizer", "muon", "--weight-decay", "0.1", "--ema", "0.9"],
    "clip": ["--clip", "0.2", "--augment", "cifar"],
}
SLOW = {("bert", "ddp, accumulated"), ("muon", "ddp, accumulated"), ("clip", "fsdp, accumulated")}
SLOW |= {(run, "checkpointing") for run in ("bert", "muon", "clip")} | {("muon", "accumulated"), ("clip", "ddp")}


def marks_of(run: str, way: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * ((run, way) in SLOW)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return tokens(tmp_path_factory.mktemp("data") / "tokens", 42)


def arguments(data: str, out: Path, *more: str) -> list[str]:
    """30 updates; validated at each tenth, where there is something to validate with."""
    options = ["--steps", STEPS, "--batch", 8, "--save-every", 0, "--lr", "0.01", "--validate-every", 10]
    return command(data, out, *options, *more)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of one process."""

    @functools.cache
    def run(name: str) -> Path:
        out = tmp_path_factory.mktemp("alone") / "run"
        assert main(arguments(data, out, *RUNS[name], "--validation", data)) == 0
        return out

    return run


@pytest.mark.parametrize(
    ("run", "way"),
    [pytest.param(run, way, marks=marks_of(run, way), id=f"{run}-{way}") for run in RUNS for way in WAYS],
)
def test_the_same_curve(data, alone, tmp_path, run, way):
    count, more = WAYS[way]
    out = tmp_path / "run"
    finish(arguments(data, out, *RUNS[run], *more, "--validation", data), tmp_path / "io", count)
    expected = alone(run)
    assert column(out, "step") == list(range(1, STEPS + 1))
    assert column(out) == pytest.approx(column(expected), abs=1e-5)
    assert column(out, "grad_norm") == pytest.approx(column(expected, "grad_norm"), abs=1e-4)
    assert column(out, "lr") == column(expected, "lr")
    assert column(out, "epoch") == column(expected, "epoch")
    for name in ("nats_per_token", "bits_per_dim", "pictures"):
        found, wanted = (column(place, name, "validation") for place in (out, expected))
        assert len(found) == 3
        assert found == pytest.approx(wanted, abs=1e-5)
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in (out, expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        one, other = (without_keys(name, found[name]) for found in (ours, theirs))
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0, msg=name)


def without_keys(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The keys' bias changes no attention: its gradient is rounding, which Adam turns into steps of full length."""
    if not name.endswith("c_attn.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def test_the_curves_differ_where_they_should(alone):
    """Else a comparison of curves says nothing."""
    curves = [column(alone(run)) for run in RUNS]
    for number, one in enumerate(curves):
        assert max(one) - min(one) > 0.05
        for other in curves[:number]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


# With these, Adam's first step is minus the gradient that it is given.
DESCENT = ["--eps", "1e6", "--lr", "1e6", "--beta1", "0", "--warmup", "0", "--steps", "1", "--batch", "8"]


@pytest.mark.parametrize("way", ["accumulated", "ddp", "fsdp"])
def test_clipping_cuts_the_norm_of_the_whole_gradient(data, tmp_path, way):
    count, more = WAYS[way]
    assert main(command(data, tmp_path / "start", *DESCENT, "--lr", "1e-30")) == 0
    start = load_file(tmp_path / "start" / "model" / "model.safetensors")
    norms = {}
    for clip in ("0", "0.001", "1000"):
        finish(command(data, tmp_path / clip, *DESCENT, "--clip", clip, *more), tmp_path / "io", count)
        end = load_file(tmp_path / clip / "model" / "model.safetensors")
        norms[clip] = torch.cat([(end[name] - start[name]).double().flatten() for name in start]).norm().item()
        assert column(tmp_path / clip, "grad_norm") == pytest.approx([norms["0"]], rel=1e-3)  # told before it is cut
    assert norms["0"] > 0.1
    assert norms["1000"] == pytest.approx(norms["0"], rel=1e-5)
    assert norms["0.001"] == pytest.approx(1e-3, rel=0.01)


def test_dropout_of_two_processes_is_not_twice_the_same(data, tmp_path):
    """And depends on the update alone, so that it can be repeated."""
    for name in ("a", "b"):
        finish(arguments(data, tmp_path / name, "--dropout", "0.3"), tmp_path / "io", 2)
    assert column(tmp_path / "a") == column(tmp_path / "b")
    (same,) = {tuple(column(tmp_path / name)) for name in ("a", "b")}
    assert main(arguments(data, tmp_path / "none")) == 0
    assert max(abs(a - b) for a, b in zip(same, column(tmp_path / "none"), strict=True)) > 1e-3


def test_pictures_of_which_some_are_broken_shared_by_two(tmp_path):
    """Each process replaces what it can't read as one alone would, and both list it."""
    data = pictures(tmp_path / "data", 24)
    for name in ("cat/004.png", "dog/011.png"):
        Path(data, name).write_bytes(b"no picture")
    more = ["--augment", "crop,flip"]
    assert main(arguments(data, tmp_path / "one", *more)) == 0
    run = finish(arguments(data, tmp_path / "two", *more), tmp_path / "io", 2)
    assert column(tmp_path / "two") == pytest.approx(column(tmp_path / "one"), abs=1e-5)
    lists = [sorted(set((tmp_path / name / "skipped.txt").read_text().splitlines())) for name in ("one", "two")]
    assert lists[0] == lists[1]
    assert len(lists[0]) == 2
    assert run.errors.count("update 0 of") == 1


def test_two_make_ids_of_pictures_together(tmp_path):
    data = pictures(tmp_path / "data", 24)
    more = ["--validation", data, "--codec", "fit", "--colors", "8"]
    assert main(arguments(data, tmp_path / "one", *more)) == 0
    run = finish(arguments(data, tmp_path / "two", *more), tmp_path / "io", 2)
    assert column(tmp_path / "two") == pytest.approx(column(tmp_path / "one"), abs=1e-5)
    for name in ("palette.npy", "data/train/ids.npy", "data/validation/ids.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert run.errors.count("warning") == 0


def test_only_the_first_speaks(data, tmp_path):
    run = finish([*arguments(data, tmp_path / "run"), "--json"], tmp_path / "io", 2)
    assert run.out.count('"processes": 2') == 1
    assert run.files[1].with_suffix(".out").read_text() == ""
    assert run.files[1].with_suffix(".err").read_text() == ""


def test_samples_and_probe_of_two(tmp_path):
    """The first makes them; the other waits."""
    data = tokens(tmp_path / "tokens", 24, labelled=True)
    more = ["--steps", "4", "--sample-every", "2", "--probe-every", "2", "--samples", "2", "--validation", data]
    finish([*command(data, tmp_path / "run", *more, "--strategy", "fsdp")], tmp_path / "io", 2)
    assert column(tmp_path / "run", "step", "probe") == [2, 4]
    assert all(0 <= record["accuracy"] <= 1 for record in log(tmp_path / "run", "probe"))
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2
    assert not (tmp_path / "run" / ".export").exists()


# The group itself.


def test_one_process_sends_nothing():
    group = Processes(0, 1, torch.device("cpu"))
    assert group.first
    assert group.total(1, 2.5) == [1.0, 2.5]
    assert group.gather({"a": 1}) == [{"a": 1}]
    assert group.once(lambda: "a") == "a"
    assert group.any(True)
    assert not group.any(False)
    group.wait()


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with processes((0, 1), "cpu", 1) as group:
        assert group == Processes(0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_several_processes_need_torchrun(monkeypatch, missing):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv(missing)
    with (
        pytest.raises(InputError, match=f"{missing} is not set: start them with torchrun"),
        processes((0, 2), "cpu", 1),
    ):
        pass


def test_the_others_never_come(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostProcessError, match="Process 0 of 2 lost the others"), processes((0, 2), "cpu", 0.02):
        pass
    assert not torch.distributed.is_initialized()


def test_an_error_of_ones_own_is_not_taken_for_a_lost_process(data, tmp_path):
    """A fault of the program keeps its traceback."""
    with started(arguments(data, tmp_path / "run"), tmp_path / "io", 2, before=_fail) as run:
        assert run.wait() == [1, 1]
    assert run.errors.count("RuntimeError: mine") == 2
    assert "lost" not in run.errors


def _fail() -> None:
    def gradient(*_):
        raise RuntimeError("mine")

    Training.gradient = gradient


def test_the_end_of_a_group_does_not_hang(tmp_path):
    """A model that DDP copies outlives the group; one time in ten it waited for ever where Python held no reference."""
    ports = [free_port() for _ in range(25)]
    with started(["--version"], tmp_path / "io", 2, before=functools.partial(_join_and_leave, ports)) as run:
        assert run.wait(seconds=120) == [0, 0], run.errors


def _join_and_leave(ports: list[int]) -> None:
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        kept = []
        with processes((int(os.environ["RANK"]), 2), "cpu", 1) as group:
            kept.append(torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4)))
            kept[0](torch.ones(2, 4)).sum().backward()
            assert group.any(group.first)
        kept.clear()
