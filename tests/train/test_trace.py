"""Traces on fake tensors against the plan's formula and real tensors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from imagegpt.engine.cost import Training, held_numbers, training_memory
from imagegpt.errors import InputError
from imagegpt.spec import SIZES, ModelSpec
from imagegpt.train.trace import measured, trace, traced

# Wide enough for a block's parts to stand out from what the formula leaves out.
SHORT = ModelSpec(vocab_size=65, n_positions=256, n_embd=64, n_layer=4, n_head=2)
KINDS = {
    "fp32": Training(rows=2),
    "bf16": Training(rows=2, half=True),
    "checkpointing": Training(rows=2, checkpointing=True),
    "dropout": Training(rows=2, dropout=0.1, cpu=True),
    "accumulated": Training(rows=2, accumulate=2),
    "ddp": Training(rows=2, ranks=4),
    "fsdp": Training(rows=2, ranks=4, strategy="fsdp", half=True),
    "fsdp accumulated": Training(rows=2, ranks=4, strategy="fsdp", half=True, accumulate=2),
}


@pytest.mark.parametrize("run", KINDS.values(), ids=KINDS.keys())
def test_a_trace_finds_what_is_planned(run):
    find = traced if run.shards > 1 else trace  # a process group would stay here
    found, parts = find(SHORT, run), training_memory(SHORT, run)
    assert sum(parts.values()) == pytest.approx(found["Total"], rel=0.1)
    assert sum(value for name, value in found.items() if name != "Total") == found["Total"]
    weights = found["Sharded Param"] if run.shards > 1 else found["Parameter"]
    assert weights == 4 * held_numbers(SHORT, run.shards) == parts["weights"]
    moments = found["OptState"] if run.shards > 1 else found["Optstate"]
    assert moments == pytest.approx(parts["optimizer"], abs=8192)  # and the number of steps of each tensor


SHARDS = """
import json, sys, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from imagegpt.engine.cost import Training
from imagegpt.spec import ModelSpec
from imagegpt.train.strategy import divide
from imagegpt.train.trace import _fake_mesh, _network
spec = ModelSpec(vocab_size=65, n_positions=256, n_embd=64, n_layer=4, n_head=2)
mesh = _fake_mesh(int(sys.argv[1]))
with FakeTensorMode():
    model = _network(spec, Training(rows=1))
    divide(model, model.transformer.h, mesh, None)
    print(sum(weight.to_local().numel() for weight in model.parameters()))
"""


@pytest.mark.parametrize("ranks", [2, 3, 7, 64])
def test_the_first_process_s_share_is_what_fsdp_gives_it(ranks):
    done = subprocess.run([sys.executable, "-c", SHARDS, str(ranks)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) == held_numbers(SHORT, ranks)


def test_progress_is_told():
    told = []
    traced(SHORT, Training(rows=1, ranks=2, strategy="fsdp"), told.append)
    assert told[1:] == ["divided among 2 processes", "updated once", "forward and backward 1 of 1"]


def test_a_trace_leaves_no_process_group_here():
    import torch.distributed as dist

    traced(SHORT, Training(rows=1, ranks=2, strategy="fsdp"))
    assert not dist.is_initialized()


def test_a_trace_that_fails_says_why():
    with pytest.raises(InputError, match="The trace of the training step ended with 1"):
        traced(dataclasses.replace(SHORT, activation_function="nothing"), Training(rows=1))


def test_steps_of_one_process_are_measured():
    found = measured(SHORT, Training(rows=2), 2, "cpu")
    assert found["device"] == "cpu"
    assert found["peak"] > 16 * SHORT.num_parameters  # weights, gradients and moments at least
    assert found["seconds"] > 0
    json.dumps(found)


@pytest.mark.slow
def test_xl_on_64_gpus_is_traced_as_planned():
    run = Training(rows=1, half=True, ranks=64, strategy="fsdp")
    found, planned = traced(SIZES["xl"], run), sum(training_memory(SIZES["xl"], run).values())
    assert planned == pytest.approx(found["Total"], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2])
def test_small_is_measured_as_planned(rows):
    run = Training(rows=rows, cpu=True)
    found, planned = measured(SIZES["small"], run, 2, "cpu"), sum(training_memory(SIZES["small"], run).values())
    assert planned == pytest.approx(found["peak"], rel=0.1)
