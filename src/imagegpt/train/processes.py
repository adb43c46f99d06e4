"""The processes of a run: how torchrun's group is joined, and what its members tell one another.

One process without torchrun is a group of one, in which nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from imagegpt.engine.backends import torch_device
from imagegpt.errors import InputError, reason


class LostProcessError(InputError):
    """Another process of the run ended or no longer answers."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Args:
        rank: number of this one.
        count: how many.
        device: torch's, of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """The sums over all processes, in float64 (float32 on a device without it)."""
        if self.count == 1:
            return [float(number) for number in numbers]
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        values = torch.tensor(numbers, dtype=kind, device=self.device)
        dist.all_reduce(values)
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.total(float(flag))[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def once(self, work: Callable[[], Any]) -> Any:
        """Have the first process do something; all get its result, or its InputError."""
        found = failure = None
        if self.first:
            try:
                found = work()
            except InputError as error:
                failure = str(error)
        found, failure = self.gather((found, failure))[0]
        if failure is not None:
            raise InputError(failure)
        return found


@contextmanager
def processes(place: tuple[int, int], device: str | None, minutes: float) -> Iterator[Processes]:
    """Join the group that torchrun describes in the environment, and leave it at the end.

    Args:
        place: rank and number of processes.
        device: of the computation; default: the best one here.
        minutes: without an answer after which another process counts as lost.

    Raises:
        LostProcessError: another process ended, or did not answer in time.
    """
    rank, count = place
    own = torch_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if count == 1:
        yield Processes(0, 1, own)
        return
    with _lost_told(rank, count):
        _join(own, minutes)
        try:
            yield Processes(rank, count, own)
            dist.barrier()  # a process that leaves early would look like a lost one
        finally:
            dist.destroy_process_group()


def _join(device: torch.device, minutes: float) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE says several processes, but {missing[0]} is not set: start them with torchrun.")
    backend = "nccl" if device.type == "cuda" else "gloo"
    # With the device named, NCCL's group is made at once; gloo has none to bind.
    bound: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes), **bound)
    # Held for good. Where DDP's reducer has the last reference to a group, its end waits for gloo's threads while it
    # has the GIL, and one of them, at the end of the last barrier, may wait for the GIL: for ever.
    GROUPS.append(dist.group.WORLD)


GROUPS: list[Any] = []
SIGNS: Sequence[str] = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "store",
)


@contextmanager
def _lost_told(rank: int, count: int) -> Iterator[None]:
    """Turn what torch.distributed raises when a member is gone into one sentence."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        told = str(error).lower()
        if isinstance(error, InputError) or not (
            isinstance(error, dist.DistError) or any(sign in told for sign in SIGNS)
        ):
            raise
        raise LostProcessError(
            f"Process {rank} of {count} lost the others ({reason(error)}): one of them ended or did not answer in "
            "time. Give the same command again; it goes on from the last checkpoint."
        ) from error
