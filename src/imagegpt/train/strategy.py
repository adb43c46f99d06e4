"""How a network is spread over processes: not at all, copied (DDP), or divided (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Compute

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in


def spread(objective: Any, compute: Compute, group: Processes) -> torch.nn.Module:
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
        checkpoint_activations(model)
    divided = compute.strategy == "fsdp" and group.count > 1
    if divided:
        mesh = init_device_mesh(group.device.type, (group.count,))
        divide(objective, model.transformer.h, mesh, HALF.get(compute.precision))
    if compute.compile and divided:
        for block in model.transformer.h:
            block.compile()  # whole graphs would hide the blocks' hooks
        return objective
    ready: Any = torch.compile(objective) if compute.compile else objective
    if group.count == 1 or divided:
        return ready
    own = [group.device] if group.device.type == "cuda" else None
    return DistributedDataParallel(ready, device_ids=own, gradient_as_bucket_view=True)


def checkpoint_activations(model: Any) -> None:
    """Have a network keep its blocks' inputs alone and compute the rest again in the backward pass."""
    new = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def divide(
    root: torch.nn.Module, blocks: Iterable[torch.nn.Module], mesh: DeviceMesh, half: torch.dtype | None
) -> None:
    """Divide every weight among processes (FSDP2); each block's are gathered while it runs.

    In half precision the blocks' weights are gathered in it: half the bytes are sent, and autocast need not keep copies
    of the whole network until the backward pass. The residual stream stays float32, and so do the sums of gradients;
    the norms' weights and the biases are rounded, which DDP does not do.

    Args:
        root: changed in place.
        blocks: of it, each a unit of its own.
        mesh: the processes.
        half: autocast's dtype, if it is used.
    """
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh)


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
