"""imagegpt plan"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagegpt import checkpoint
from imagegpt.cli.options import Json, Whole, parse_grid
from imagegpt.engine.cost import Training, training_memory
from imagegpt.errors import InputError, check_count
from imagegpt.spec import SIZES, ModelSpec, size_spec
from imagegpt.train.plan import NETWORK, NODE, Plan, paper_run
from imagegpt.train.plan import plan as plan_run

MIB = 1 << 20


def plan(
    *,
    size: str | None = None,
    model: str | None = None,
    grid: str | None = None,
    codes: Whole | None = None,
    batch: Whole | None = None,
    gpus: Whole = 1,
    gpu: str = "h200",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "bf16",
    strategy: Literal["ddp", "fsdp"] | None = None,
    accumulate: Whole = 1,
    checkpointing: bool = False,
    ema: bool = False,
    optimizer: Literal["adamw", "muon"] = "adamw",
    dropout: float = 0.0,
    steps: Whole | None = None,
    utilisation: float | None = None,
    gpus_per_node: Whole = NODE,
    network: float = NETWORK,
    trace: bool = False,
    measure: Whole | None = None,
    json_: Json = False,
) -> None:
    """Say what a training run will cost: memory, time and what is sent, before anything is started.

    Args:
        size: nano, small, medium, large or xl.
        model: a model folder or name, in the place of a size.
        grid: height x width of ids, such as 64x64; default: the model's.
        codes: how many ids the codec has, such as 4096; default: the model's.
        batch: pictures of a step, on all GPUs; default: the paper's, 128, and 64 for xl.
        gpus: how many.
        gpu: a100-40, a100-80, b200, h100, h200, l40s, mi300x, rtx4090, t4, v100; or cpu, this machine.
        precision: of the products: fp32, tf32, bf16 or fp16; the weights are float32.
        strategy: ddp, each GPU with the whole model; fsdp, which divides it; default: ddp if it fits.
        accumulate: forwards that make up a step.
        checkpointing: compute activations again in the backward pass.
        ema: keep a moving average of the weights.
        optimizer: adamw or muon.
        dropout: of the sublayers and embeddings.
        steps: of the run; default: the paper's, 1,000,000, and 2,000,000 for xl.
        utilisation: part of the GPU's peak that is reached; default: 0.4, an assumption.
        gpus_per_node: GPUs that share the fast link.
        network: GB/s that a GPU sends to other nodes.
        trace: also trace a step on fake tensors and fake processes; this needs no GPU, and minutes for xl.
        measure: also run so many steps of one process here.
        json_: print it as JSON.
    """
    spec = _spec(size, model, grid, codes)
    usual_batch, usual_steps = paper_run(size)
    if measure is not None:
        check_count("--measure", measure)
    made = plan_run(
        spec,
        batch=usual_batch if batch is None else batch,
        gpus=gpus,
        gpu=gpu,
        precision=precision,
        strategy=strategy,
        accumulate=accumulate,
        checkpointing=checkpointing,
        ema=ema,
        optimizer=optimizer,
        steps=usual_steps if steps is None else steps,
        dropout=dropout,
        utilisation=utilisation,
        gpus_per_node=gpus_per_node,
        network=network,
    )
    record = {"model": size or model, **made.record()}
    if trace:
        record["trace"] = _trace(spec, made)
    if measure is not None:
        record["measure"] = _measure(spec, made, measure)
    if json_:
        json.dump(record, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(record, made)


def _spec(size: str | None, model: str | None, grid: str | None, codes: int | None) -> ModelSpec:
    if (size is None) == (model is None):
        raise InputError(f"Give --size, one of {', '.join(SIZES)}, or --model, a folder.")
    try:
        spec = checkpoint.read_spec(checkpoint.find_model(model)) if model else size_spec(size or "")
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"--size: {error}") from None
    if grid is not None:
        spec = dataclasses.replace(spec, n_positions=math.prod(parse_grid(grid)))
    if codes is not None:
        check_count("--codes", codes)
        spec = dataclasses.replace(spec, vocab_size=codes + 1)
    return spec


def _run(made: Plan, **changes: Any) -> Training:
    """What the memory of a plan was computed from, without what no check runs: a moving average, Muon."""
    strategy: Any = "fsdp" if made.strategy == "fsdp" else "ddp"
    run = Training(
        rows=made.rows,
        half=made.precision in ("bf16", "fp16"),
        checkpointing=made.checkpointing,
        ranks=made.gpus,
        strategy=strategy,
        accumulate=made.accumulate,
        dropout=made.dropout,
    )
    return dataclasses.replace(run, **changes)


def _planned(spec: ModelSpec, run: Training) -> int:
    """Bytes of a plan that a check can see: all but the overhead, without an average and with AdamW."""
    return sum(training_memory(spec, run).values())


def _trace(spec: ModelSpec, made: Plan) -> dict[str, Any]:
    from imagegpt.train.trace import traced

    run, console = _run(made), Console(emoji=False, stderr=True)
    parts = traced(spec, run, lambda words: console.print(f"trace: {words}", highlight=False, markup=False))
    planned = _planned(spec, run)
    return {"parts": parts, "traced": parts["Total"], "planned": planned, "ratio": planned / parts["Total"]}


def _measure(spec: ModelSpec, made: Plan, steps: int) -> dict[str, Any]:
    """One process with the plan's rows; it is compared with a plan of one process of its own device."""
    import torch

    from imagegpt.engine.machine import free_memory
    from imagegpt.train.trace import measured

    on_cpu = made.gpu == "cpu" or not torch.cuda.is_available()
    device = "cpu" if on_cpu else "cuda"
    run = _run(made, ranks=1, strategy="ddp", cpu=on_cpu)
    planned, free = _planned(spec, run), free_memory(torch.device(device))
    if planned > free:
        raise InputError(
            f"--measure needs {planned / MIB:,.0f} MiB for one process here, and {free / MIB:,.0f} MiB are free; "
            "give a smaller --batch."
        )
    found = measured(spec, run, steps, device)
    return found | {"planned": planned, "ratio": planned / found["peak"], "planned_seconds": made.seconds_per_step}


def _show(record: dict[str, Any], made: Plan) -> None:
    console, table = Console(emoji=False, soft_wrap=True), Table(show_header=False)
    for name, value in _rows(record, made):
        table.add_row(name, escape(value))
    console.print(table)
    for note in made.notes:
        console.print(note, highlight=False, markup=False)
    if not made.fits:
        with_what = f"it fits with {made.remedy}" if made.remedy else "no option makes it fit: more GPUs or memory do"
        console.print(f"It does not fit into {made.gpu}'s memory; {with_what}.", highlight=False, markup=False)


def _rows(record: dict[str, Any], made: Plan) -> list[tuple[str, str]]:
    seconds = f"{made.seconds_per_step:.4g} s: computing {made.compute_seconds:.4g}"
    if made.gpus > 1:
        seconds += f", sending {made.communication_seconds:.4g}; {made.limited_by} limits"
    rows = [
        ("model", f"{record['model']}, {made.parameters:,} parameters, {made.ids} ids"),
        ("run", f"{made.gpus} x {made.gpu}, {made.strategy}, {made.precision}, {made.optimizer}"),
        ("batch", f"{made.batch} = {made.gpus} GPUs x {made.accumulate} forwards x {made.rows} rows"),
        *((f"memory: {name}", f"{value / MIB:,.0f} MiB") for name, value in made.memory.items() if value),
        ("memory of a GPU", f"{made.memory_total / MIB:,.0f} MiB of {made.memory_available / MIB:,.0f}"),
        ("fits", "yes" if made.fits else "no"),
        ("operations", f"{made.flops_per_step:.4g} a step, {made.flops:.4g} in all"),
        ("sent by a GPU", f"{made.bytes_per_step / 1e9:,.2f} GB a step"),
        ("a step", seconds),
        ("ids/s", f"{made.ids_per_second:,.0f}"),
        ("the run", f"{made.steps:,} steps, {made.hours:,.1f} hours, {made.gpu_hours:,.0f} GPU hours"),
    ]
    if "trace" in record:
        found = record["trace"]
        told = f"{found['traced'] / MIB:,.0f} MiB; planned {found['planned'] / MIB:,.0f}, ratio {found['ratio']:.3f}"
        rows.append(("traced, without overhead", told))
    if "measure" in record:
        found = record["measure"]
        told = f"{found['peak'] / MIB:,.0f} MiB on {found['device']}; planned {found['planned'] / MIB:,.0f}"
        rows.append(("measured, one process", f"{told}, ratio {found['ratio']:.3f}; {found['seconds']:.3f} s a step"))
    return rows
