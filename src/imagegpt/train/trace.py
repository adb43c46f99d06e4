"""The checks of a plan: a training step traced on fake tensors, for any number of GPUs and without any, or run here.

Tracing runs the model's own code on tensors that have shapes and no numbers, under a process group that sends nothing,
and adds up what is alive: it knows nothing of the plan's formula. Each check has a process of its own, as a process
group and the peak of a process's memory are the whole process's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

from imagegpt.engine.cost import Training
from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec

Progress = Callable[[str], None]
MOST_MAPPED = 1 << 20  # bytes of a tensor from which on glibc gives its memory back


def traced(spec: ModelSpec, run: Training, on_progress: Progress | None = None) -> dict[str, int]:
    """What `trace` finds, in a process of its own.

    Args:
        spec: the model's numbers.
        run: how it is trained.
        on_progress: is told what is done, in words.

    Raises:
        InputError: the trace failed; the message holds torch's last line.
    """
    return _apart("trace", {"spec": asdict(spec), "run": asdict(run)}, on_progress)


def measured(
    spec: ModelSpec, run: Training, steps: int = 2, device: str | None = None, mapped: bool = True
) -> dict[str, Any]:
    """What `measure` finds, in a process of its own; the arguments are its own.

    Raises:
        InputError: the steps failed, for want of memory most likely.
    """
    arguments = {"spec": asdict(spec), "run": asdict(run), "steps": steps, "device": device, "mapped": mapped}
    return _apart("measure", arguments, None)


def _apart(check: str, arguments: dict[str, Any], on_progress: Progress | None) -> Any:
    """Run a check in a child, which prints what it does line by line, and its result last."""
    command = [sys.executable, "-m", "imagegpt.train.trace", check]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout and child.stderr
        try:
            child.stdin.write(json.dumps(arguments))
            child.stdin.close()
            last = _follow(child.stdout, on_progress)
            told = child.stderr.read().strip().splitlines() or ["nothing was said"]
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise InputError(f"The {check} of the training step ended with {child.returncode}: {told[-1]}")
    return json.loads(last)


def _follow(lines: Iterable[str], on_progress: Progress | None) -> str:
    last = ""
    for line in lines:
        if last and on_progress is not None:
            on_progress(last)
        last = line.strip()
    return last


def trace(spec: ModelSpec, run: Training, on_progress: Progress | None = None) -> dict[str, int]:
    """Peak bytes of one process, by torch's names of the parts, with their sum as "Total"; no GPU is needed.

    Weights are updated once, so that the optimiser's moments are there; then all forwards and backward passes of a
    step are traced. Its update is not: AdamW's is fused and needs no memory.

    Of "fsdp" with several ranks, FSDP2 divides the blocks and the root among so many processes. Of "ddp" one process
    is traced, and the gradients' buckets, which DDP makes once and never gives back, are added as "Buckets".
    It joins a fake process group that lasts as long as the process; `traced` gives it one of its own.

    Args:
        spec: the model's numbers.
        run: how it is trained. The optimiser is AdamW, also where the plan's is Muon, and there is no moving average.
        on_progress: is told what is done, in words.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from imagegpt.train.strategy import divide

    told, divided = on_progress or (lambda words: None), run.shards > 1
    mesh: Any = _fake_mesh(run.ranks) if divided else None
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of views that FSDP2 hooks, and of old profilers
        model = _network(spec, replace(run, cpu=False))
        told(f"built: {spec.num_parameters / 1e6:,.0f} million weights")
        if divided:
            divide(model, model.transformer.h, mesh, torch.bfloat16 if run.half else None)
            told(f"divided among {run.ranks} processes")
        optimizer = _optimizer(model)
        ids = torch.zeros((run.rows, spec.n_positions), dtype=torch.long)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        _update(optimizer)
        told("updated once")
        tracker = _tracker(model, optimizer, ids, divided)
        with tracker:
            for part in range(run.accumulate):
                tracker.reset_mod_stats()  # it counts one call of each module
                _forward_and_backward(model, ids, run, last=part == run.accumulate - 1)
                told(f"forward and backward {part + 1} of {run.accumulate}")
        [snapshot] = tracker.get_tracker_snapshot("peak").values()
    return _with_buckets({str(getattr(kind, "value", kind)): value for kind, value in snapshot.items()}, spec, run)


def _fake_mesh(ranks: int) -> Any:
    """A mesh of processes that are not there; collectives do nothing."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    return init_device_mesh("cpu", (ranks,))


def _network(spec: ModelSpec, run: Training) -> Any:
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling
    from imagegpt.train.strategy import checkpoint_activations

    rate = run.dropout
    of_attention = rate if run.cpu else 0.0  # draws a seed on a CPU, which a fake one can't; on GPUs it keeps nothing
    config = ImageGPTConfig(**asdict(spec), resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=of_attention)
    model = ImageGPTForCausalImageModeling(config).train()
    if run.checkpointing:
        checkpoint_activations(model)
    return model


def _optimizer(model: Any) -> Any:
    import torch

    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def _tracker(model: Any, optimizer: Any, ids: Any, divided: bool) -> Any:
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker

    if not divided:
        tracker = MemTracker()
        tracker.track_external(model, optimizer, ids)
        return tracker
    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs((ids,))
    return tracker


def _forward_and_backward(model: Any, ids: Any, run: Training, last: bool) -> None:
    """One of a step's forwards; FSDP2 sends gradients in the last one only, as the training loop has it do."""
    import torch

    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    with torch.autocast(ids.device.type, dtype=torch.bfloat16) if run.half else nullcontext():
        loss = model.image_loss(ids)
    (loss / run.accumulate).backward()


def _update(optimizer: Any) -> None:
    optimizer.step()
    optimizer.zero_grad()


def _with_buckets(parts: dict[str, int], spec: ModelSpec, run: Training) -> dict[str, int]:
    if run.ranks == 1 or run.shards > 1 or run.accumulate > 1:
        return parts
    buckets = 4 * spec.num_parameters - parts.get("Gradient", 0)  # those that are there lie in them
    return parts | {"Buckets": buckets, "Total": parts["Total"] + buckets}


def measure(
    spec: ModelSpec, run: Training, steps: int = 2, device: str | None = None, mapped: bool = True
) -> dict[str, Any]:
    """Real steps of one process here: its peak bytes beyond what it had before the model was made, and seconds.

    On a CPU bytes are those of the whole process (its resident set), libraries taken off; on CUDA those that torch's
    allocator gave out and, as `reserved`, holds.

    Args:
        spec: the model's numbers.
        run: how it is trained; its ranks do not count.
        steps: of training; the first makes the optimiser's moments and warms up, and is not timed if there are more.
        device: cpu or cuda; default: the best one here.
        mapped: on Linux, have glibc give memory back at once that is not needed; else it keeps freed tensors of up to
            32 MiB in its heap, and their memory is lost in pieces.
    """
    import torch

    from imagegpt.engine.backends import torch_device
    from imagegpt.engine.machine import peak_memory
    from imagegpt.model import heads  # noqa: F401 - the libraries are no part of a run

    place = torch_device(device)
    if mapped:
        _give_back_memory()
    before = peak_memory()
    model = _network(spec, replace(run, cpu=True)).to(place)
    optimizer = _optimizer(model)
    ids = torch.randint(spec.num_colors, (run.rows, spec.n_positions), device=place)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        for part in range(run.accumulate):
            _forward_and_backward(model, ids, run, last=part == run.accumulate - 1)
        _update(optimizer)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - began)
    timed = sorted(times[1:] or times)
    result = {"device": place.type, "libraries": before, "seconds": timed[len(timed) // 2]}
    if place.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(place)
        return result | {"peak": torch.cuda.max_memory_allocated(place), "reserved": reserved}
    return result | {"peak": peak_memory() - before}


def _give_back_memory() -> None:
    """Fix the size from which on glibc maps memory; by itself it raises it to 32 MiB at the first free."""
    import ctypes

    try:
        ctypes.CDLL(None).mallopt(-3, MOST_MAPPED)  # M_MMAP_THRESHOLD
    except (AttributeError, OSError, TypeError):
        return  # no glibc: other allocators have other rules


def _main(check: str) -> None:
    given = json.loads(sys.stdin.read())
    pruned = given["spec"]["pruned_heads"]
    given["spec"]["pruned_heads"] = pruned and {int(layer): heads for layer, heads in pruned.items()}
    given["spec"], given["run"] = ModelSpec(**given["spec"]), Training(**given["run"])
    if check == "trace":
        found: dict[str, Any] = trace(**given, on_progress=lambda words: print(words, flush=True))
    else:
        found = measure(**given)
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1])
