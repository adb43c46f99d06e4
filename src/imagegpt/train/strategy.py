"""How a network is spread over processes: not at all, copied (DDP), or divided (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from imagegpt.train.objectives import Autoregressive, Masked
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Compute


def spread(objective: Autoregressive | Masked, compute: Compute, group: Processes) -> torch.nn.Module:
    """Make an objective ready for training as a recipe says.

    Args:
        objective: its network is changed in place: divided, or told to compute activations again.
        compute: strategy, checkpointing, compile.
        group: the processes.

    Returns:
        What is called in the objective's place; the network's own parameters stay those to optimise.
    """
    model: Any = objective.model
    if compute.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    divided = compute.strategy == "fsdp" and group.count > 1
    if divided:
        divide(objective, group.count, group.device.type)
    if compute.compile and divided:
        for block in model.transformer.h:
            block.compile()  # whole graphs would hide the blocks' hooks
        return objective
    ready: Any = torch.compile(objective) if compute.compile else objective
    if group.count == 1 or divided:
        return ready
    own = [group.device] if group.device.type == "cuda" else None
    return DistributedDataParallel(ready, device_ids=own, gradient_as_bucket_view=True)


def divide(objective: torch.nn.Module, count: int, kind: str) -> None:
    """Divide every weight among `count` processes (FSDP2); each block's are gathered while it runs.

    Args:
        objective: with a `model`; changed in place.
        count: processes of the group.
        kind: of their devices.
    """
    mesh = init_device_mesh(kind, (count,))
    model: Any = objective.model
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


@contextmanager
def syncing(ready: torch.nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward: gradients are summed over the processes in an update's last forward only."""
    if isinstance(ready, FSDPModule):
        ready.set_requires_gradient_sync(last)
    waits = isinstance(ready, DistributedDataParallel) and not last
    own: Any = ready
    with own.no_sync() if waits else nullcontext():
        yield


def gather_again(objective: torch.nn.Module) -> None:
    """After forwards without backward: FSDP lets go of the weights that it has gathered, which may change now."""
    if isinstance(objective, FSDPModule):
        objective.reshard()
