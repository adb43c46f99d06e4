"""imagegpt plan: what it prints and what it refuses."""

from __future__ import annotations

import json

import pytest

from imagegpt.checkpoint import EMBEDDED
from imagegpt.cli.main import main
from imagegpt.spec import SIZES


@pytest.fixture
def told(capsys):
    """Run a plan; what it prints as JSON."""

    def run(*arguments: str) -> dict:
        assert main(["plan", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    """Run a plan that can't be made; its sentence."""

    def run(*arguments: str) -> str:
        assert main(["plan", *arguments]) == 2
        return capsys.readouterr().err

    return run


def test_xl_on_64_gpus(told):
    record = told("--size", "xl", "--gpus", "64", "--gpu", "h200")
    assert (record["strategy"], record["batch"], record["steps"], record["fits"]) == ("fsdp", 64, 2_000_000, True)
    assert record["memory_total"] == sum(record["memory"].values())
    assert {"weights", "gradients", "optimizer", "ema", "activations", "logits", "overhead"} <= set(record["memory"])


def test_the_paper_s_batch_and_steps_are_the_defaults(told):
    record = told("--size", "small")
    assert (record["batch"], record["steps"], record["gpus"], record["strategy"]) == (128, 1_000_000, 1, "none")


def test_options_reach_the_plan(told):
    plain = told("--size", "small", "--gpus", "4")
    changed = told(
        *("--size", "small", "--gpus", "4", "--checkpointing", "--ema", "--accumulate", "2", "--optimizer", "muon"),
        *("--strategy", "fsdp", "--precision", "fp32", "--steps", "7", "--utilisation", "0.5", "--dropout", "0.1"),
    )
    assert changed["strategy"] == "fsdp" and changed["rows"] == plain["rows"] // 2 and changed["steps"] == 7
    assert changed["memory"]["ema"] == changed["memory"]["weights"] < plain["memory"]["weights"]
    assert changed["memory"]["optimizer"] < 2 * changed["memory"]["weights"]
    assert plain["memory"]["copies"] and not changed["memory"]["copies"]
    assert changed["flops_per_step"] > plain["flops_per_step"]
    assert changed["utilisation"] == 0.5


def test_a_model_folder_and_a_grid(told):
    folder = told("--model", str(EMBEDDED["nano"]), "--batch", "8")
    assert folder["parameters"] == SIZES["nano"].num_parameters
    large = told("--model", str(EMBEDDED["nano"]), "--batch", "8", "--grid", "64x48")
    assert large["ids"] == 64 * 48
    assert large["flops_per_step"] > 3 * folder["flops_per_step"]


def test_people_get_a_table(capsys):
    assert main(["plan", "--size", "xl", "--gpus", "64", "--gpu", "h200"]) == 0
    out = capsys.readouterr().out
    assert "fsdp" in out and "GPU hours" in out and "assumed 40% of peak" in out and "does not fit" not in out


def test_what_does_not_fit_is_said_with_its_remedy(capsys, told):
    assert main(["plan", "--size", "xl"]) == 0
    assert "It does not fit into h200's memory; it fits with --accumulate 64." in capsys.readouterr().out
    assert told("--size", "xl")["fits"] is False
    assert main(["plan", "--size", "xl", "--gpu", "t4", "--precision", "fp16"]) == 0
    assert "no option makes it fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Give --size"),
        (["--size", "small", "--model", "nano"], "Give --size"),
        (["--size", "huge"], "known sizes: nano, small, medium, large, xl"),
        (["--size", "small", "--gpu", "h9000"], "known are a100-40"),
        (["--size", "small", "--grid", "32"], "HEIGHTxWIDTH"),
        (["--size", "small", "--gpus", "48"], "96 and 144 can"),
        (["--size", "xl", "--gpus", "128"], "give --batch 128, or at most 64 GPUs"),
        (["--size", "small", "--measure", "0"], "--measure must be at least 1"),
        (["--size", "small", "--dropout", "2"], "--dropout must be at least 0 and below 1, not 2.0"),
        (["--size", "small", "--model", "nano", "--batch", "1.5"], "whole number"),
    ],
)
def test_what_can_t_be_is_refused_in_a_sentence(arguments, sentence, refused):
    assert sentence in refused(*arguments).replace("\n", " ")


def test_a_trace_and_a_measurement_beside_the_plan(told):
    record = told(
        *("--size", "nano", "--grid", "4x4", "--batch", "4", "--gpus", "2", "--strategy", "fsdp"),
        *("--trace", "--measure", "2"),
    )
    assert record["trace"]["ratio"] == pytest.approx(record["trace"]["planned"] / record["trace"]["traced"])
    assert 0.8 < record["trace"]["ratio"] < 1.2
    assert record["measure"]["peak"] > 16 * SIZES["nano"].num_parameters * 0.9
    assert record["measure"]["seconds"] > 0


def test_too_large_a_measurement_is_refused(refused):
    told = refused("--size", "xl", "--batch", "64", "--gpus", "64", "--measure", "1")
    assert "are free" in told
