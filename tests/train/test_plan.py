"""A plan's numbers against tensors that are there, sharded sizes under a fake process group, and hand-made sums."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from imagegpt.engine.accelerators import ACCELERATORS
from imagegpt.engine.cost import Training, block_numbers, training_flops
from imagegpt.errors import InputError
from imagegpt.spec import SIZES, ModelSpec
from imagegpt.train.plan import bytes_sent, memory_parts, paper_run, plan, rows_of

TINY = ModelSpec(vocab_size=11, n_positions=20, n_embd=24, n_layer=3, n_head=3)


def test_xl_on_64_gpus_is_divided_and_fits():
    made = plan(SIZES["xl"], batch=64, gpus=64, steps=2_000_000)
    assert (made.strategy, made.rows, made.fits, made.remedy) == ("fsdp", 1, True, "")
    assert made.memory["weights"] == pytest.approx(4 * SIZES["xl"].num_parameters / 64, rel=0.001)
    assert made.memory["optimizer"] == 2 * made.memory["weights"]
    assert made.memory_total == sum(made.memory.values())
    assert made.flops == 2_000_000 * made.flops_per_step


def test_a_plan_loads_no_torch():
    code = (
        "from imagegpt.train.plan import plan; from imagegpt.spec import SIZES; import sys;"
        "plan(SIZES['xl'], batch=64, gpus=64); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_small_models_are_copied_and_large_ones_divided():
    chosen = {name: plan(spec, batch=128, gpus=64).strategy for name, spec in SIZES.items()}
    assert chosen == {"nano": "ddp", "small": "ddp", "medium": "ddp", "large": "ddp", "xl": "fsdp"}
    assert plan(SIZES["small"], batch=4).strategy == "none"
    assert plan(SIZES["small"], batch=128, gpus=64, strategy="fsdp").strategy == "fsdp"


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"batch": 64, "gpus": 64, "strategy": "ddp", "gpu": "h100"}, "--strategy fsdp"),
        ({"batch": 1024, "gpus": 64, "strategy": "fsdp", "gpu": "h100"}, "--checkpointing"),
        ({"batch": 64, "gpus": 1, "gpu": "h200"}, "--accumulate 64"),
        ({"batch": 64, "gpus": 2, "gpu": "t4", "precision": "fp16"}, None),
    ],
)
def test_what_does_not_fit_has_the_first_remedy_that_does(options, remedy):
    made = plan(SIZES["xl"], **options)
    assert not made.fits
    assert made.memory_total > made.memory_available
    assert made.remedy == remedy


def test_a_remedy_makes_it_fit():
    options = {"batch": 1024, "gpus": 8, "gpu": "a100-40"}
    made = plan(SIZES["large"], **options)
    words = (made.remedy or "").replace("--", "").split()
    assert not made.fits and words
    changes = {}
    if "strategy" in words:
        changes["strategy"] = "fsdp"
    if "checkpointing" in words:
        changes["checkpointing"] = True
    if "accumulate" in words:
        changes["accumulate"] = int(words[words.index("accumulate") + 1])
    assert plan(SIZES["large"], **options, **changes).fits


@pytest.mark.parametrize(
    ("batch", "gpus", "accumulate", "told"),
    [
        (100, 64, 1, "64 and 128 can"),
        (100, 8, 4, "96 and 128 can"),
        (32, 64, 1, "give --batch 64, or at most 32 GPUs"),
        (32, 8, 8, "give --batch 64, or at most 4 GPUs"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(batch, gpus, accumulate, told):
    with pytest.raises(InputError, match=told):
        rows_of(batch, gpus, accumulate)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 0}, "--batch"),
        ({"gpus": 0}, "--gpus"),
        ({"accumulate": 0}, "--accumulate"),
        ({"steps": 0}, "--steps"),
        ({"gpu": "h9000"}, "known are a100-40"),
        ({"gpu": "v100"}, "no fast bf16"),
        ({"precision": "int8"}, "--precision"),
        ({"strategy": "zero"}, "--strategy"),
        ({"optimizer": "sgd"}, "--optimizer"),
        ({"utilisation": 1.5}, "--utilisation"),
        ({"network": 0.0}, "--network"),
        ({"gpus_per_node": 0}, "--gpus-per-node"),
        ({"dropout": 2.0}, "--dropout must be at least 0 and below 1, not 2.0"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "--dropout must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "--dropout must be at least 0 and below 1"),
    ],
)
def test_what_can_t_be_is_refused(change, told):
    with pytest.raises(InputError, match=told):
        plan(TINY, **{"batch": 4, **change})


def test_time_follows_from_operations_and_the_peak():
    made = plan(SIZES["medium"], batch=128, gpus=8, utilisation=0.5, steps=1000)
    assert made.flops_per_step == training_flops(SIZES["medium"], 128)
    assert made.compute_seconds == pytest.approx(made.flops_per_step / 8 / (0.5 * 989e12))
    assert made.seconds_per_step == max(made.compute_seconds, made.communication_seconds)
    assert made.ids_per_second == pytest.approx(128 * 1024 / made.seconds_per_step)
    assert made.gpu_hours == pytest.approx(8 * 1000 * made.seconds_per_step / 3600)
    twice = plan(SIZES["medium"], batch=128, gpus=8, utilisation=0.25, steps=1000)
    assert twice.compute_seconds == pytest.approx(2 * made.compute_seconds)


def test_an_assumption_is_told_as_one():
    assert any("assumed 40%" in note for note in plan(TINY, batch=4).notes)
    assert not any("assumed 40%" in note for note in plan(TINY, batch=4, utilisation=0.4).notes)


def test_gpus_of_one_node_use_its_link_and_more_the_network():
    near, far = (plan(SIZES["xl"], batch=64, gpus=gpus) for gpus in (8, 16))
    assert near.link == ACCELERATORS["h200"].link
    assert far.link == 50e9
    assert (near.limited_by, far.limited_by) == ("compute", "communication")
    assert plan(SIZES["xl"], batch=64, gpus=16, gpus_per_node=16).link == near.link
    assert plan(SIZES["xl"], batch=64, gpus=16, network=100).communication_seconds == far.communication_seconds / 2


def test_what_is_sent():
    parameters, blocks = TINY.num_parameters, sum(block_numbers(TINY))
    assert bytes_sent(TINY, Training(rows=1)) == 0
    assert bytes_sent(TINY, Training(rows=1, ranks=4)) == 4 * 2 * parameters * 3 // 4
    assert bytes_sent(TINY, Training(rows=1, ranks=4, accumulate=5)) == 4 * 2 * parameters * 3 // 4
    divided = Training(rows=1, ranks=4, strategy="fsdp", accumulate=5)
    assert bytes_sent(TINY, divided) == 4 * (5 * (parameters + blocks) + parameters) * 3 // 4
    half = dataclasses.replace(divided, half=True)
    assert bytes_sent(TINY, half) == (5 * (4 * (parameters - blocks) + 4 * blocks) + 4 * parameters) * 3 // 4


def test_the_overhead_is_listed_apart():
    run = Training(rows=1)
    for cpu in (False, True):
        parts = memory_parts(TINY, dataclasses.replace(run, cpu=cpu))
        assert parts["overhead"] > 100 << 20
        assert list(parts)[-1] == "overhead"


def test_the_paper_s_runs():
    assert paper_run("small") == (128, 1_000_000)
    assert paper_run("xl") == (64, 2_000_000)
    assert paper_run(None) == (128, 1_000_000)


def test_this_cpu_can_be_planned_for():
    made = plan(TINY, batch=2, gpu="cpu", precision="fp32", steps=10)
    assert made.fits and made.memory["overhead"] < 1 << 30
    assert made.seconds_per_step > 0
    assert any("glibc" in note for note in made.notes)
