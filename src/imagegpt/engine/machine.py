"""What this machine has: free memory, the bandwidth that limits decoding, the matmul rate that limits all else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: Any = None) -> int:
    """Bytes that can still be had: of a torch device's own memory on CUDA, else of the host's.

    In a container the host's figure is not the limit; the group's own is counted too.
    """
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such group
    return max(free, 0)


def bandwidth(device: Any = None, size: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second that can be read from memory: the sum of a large array, its best time.

    Args:
        device: a torch device whose own memory is meant; default: the host's, read by all cores together.
        size: bytes of the array, which should be far larger than the caches.
        repeats: how often it is read.
    """
    if getattr(device, "type", "cpu") == "cuda":
        read = _gpu_reader(device, size)
        return size / min(seconds(read) for _ in range(repeats))
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    parts = np.array_split(np.ones(size // 8), cores or 1)
    with ThreadPoolExecutor(cores) as pool:

        def read() -> None:
            list(pool.map(np.sum, parts))  # numpy lets go of the interpreter's lock

        read()
        return size / min(seconds(read) for _ in range(repeats))


def _gpu_reader(device: Any, size: int) -> Callable[[], None]:
    import torch

    array = torch.ones(size // 4, device=device)

    def read() -> None:
        array.sum()
        torch.cuda.synchronize(device)

    read()
    return read


def matmul_rate(rows: int, width: int, dtype: str = "float32", device: Any = None, repeats: int = 30) -> float:
    """Operations a second of one product of a model's own shape, (rows, width) by (width, 4 width); the best time.

    Args:
        rows: ids that are run together.
        width: D.
        dtype: a torch dtype's name.
        device: a torch device; default: the CPU, all its cores.
        repeats: how often it is run.
    """
    import torch

    kind = getattr(torch, dtype)
    left, right = (
        torch.rand(rows, width, dtype=kind, device=device),
        torch.rand(width, 4 * width, dtype=kind, device=device),
    )
    out = left @ right

    def run() -> None:
        torch.mm(left, right, out=out)  # into the same memory: none is asked for and cleared
        if out.is_cuda:
            torch.cuda.synchronize(out.device)

    return 8 * rows * width**2 / min(seconds(run) for _ in range(repeats))


def peak_memory() -> int:
    """The most bytes that this process has held so far.

    On Linux from /proc: there getrusage would count what a parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii"))
        if found:
            return 1024 * int(found[1])
    info = psutil.Process().memory_info()
    return getattr(info, "peak_wset", info.rss)


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
