"""What GPUs can do by their vendors' data sheets, and what this machine's CPU does by measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psutil

from imagegpt.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
GIGA, TERA = 10**9, 10**12


@dataclass(frozen=True)
class Accelerator:
    """One GPU, or the CPU of this machine.

    Args:
        name: as it is typed.
        memory: bytes; the data sheets' decimal gigabytes, which is a little less than most of them have.
        flops: precision -> dense multiply-and-add operations a second, each counted as two, sums in float32; what it
            can't do is left out.
        bandwidth: bytes a second of its memory; 0 where it was not measured.
        link: bytes a second that it sends to the others of its node, in one direction.
        source: where the figures come from.
        words: what a CUDA device's name has in it, all of them, in lower case.
    """

    name: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    link: float
    source: str
    words: tuple[str, ...] = field(default=())

    def rate(self, precision: str) -> float:
        """Operations a second in a precision.

        Raises:
            InputError: it has no units for that; the message names what it has.
        """
        if precision not in self.flops:
            known = ", ".join(name for name in PRECISIONS if name in self.flops)
            raise InputError(f"A {self.name} has no fast {precision}; it has {known}.")
        return self.flops[precision]


def _gpu(
    name: str, memory: float, tera: tuple[float | None, ...], bandwidth: float, link: float, source: str, words: str
) -> Accelerator:
    """A row of the table: GB, TFLOP/s of fp32, tf32, bf16 and fp16, GB/s of memory, GB/s in one direction."""
    flops = {kind: value * TERA for kind, value in zip(PRECISIONS, tera, strict=True) if value is not None}
    return Accelerator(name, int(memory * GIGA), flops, bandwidth * GIGA, link * GIGA, source, tuple(words.split()))


# Dense rates: data sheets that give them with sparsity are halved. Links: half of what is given for both directions.
# A name is looked for in this order, so h200 comes before h100, and a100's two kinds differ in their size.
_TABLE = (
    _gpu("h200", 141, (67, 494.5, 989, 989), 4800, 450, "NVIDIA H200 data sheet (SXM)", "h200"),
    _gpu("h100", 80, (67, 494.5, 989, 989), 3350, 450, "NVIDIA H100 data sheet (SXM)", "h100"),
    _gpu("b200", 180, (75, 1125, 2250, 2250), 7700, 900, "NVIDIA HGX B200 data sheet, an eighth", "b200"),
    _gpu("a100-80", 80, (19.5, 156, 312, 312), 2039, 300, "NVIDIA A100 data sheet (80 GB SXM)", "a100 80gb"),
    _gpu("a100-40", 40, (19.5, 156, 312, 312), 1555, 300, "NVIDIA A100 data sheet (40 GB SXM)", "a100"),
    _gpu("l40s", 48, (91.6, 183, 362, 362), 864, 32, "NVIDIA L40S data sheet; PCIe 4 x16", "l40s"),
    _gpu(
        "rtx4090", 24, (82.6, 82.6, 165.2, 165.2), 1008, 32, "NVIDIA Ada architecture, appendix A; PCIe 4", "rtx 4090"
    ),
    _gpu("v100", 32, (15.7, None, None, 125), 900, 150, "NVIDIA V100 data sheet (32 GB SXM2)", "v100"),
    _gpu("t4", 16, (8.1, None, None, 65), 320, 16, "NVIDIA T4 data sheet; PCIe 3 x16", "t4"),
    _gpu("mi300x", 192, (163.4, 653.7, 1307.4, 1307.4), 5300, 448, "AMD Instinct MI300X data sheet", "mi300x"),
)
ACCELERATORS: dict[str, Accelerator] = {row.name: row for row in _TABLE}
NAMES = (*sorted(ACCELERATORS), "cpu")


def accelerator(name: str, precision: str = "fp32", rows: int = 1024, width: int = 512) -> Accelerator:
    """An accelerator by its name; "cpu" is this machine, whose memory and rate are measured.

    Args:
        name: one of `NAMES`.
        precision: in which the CPU's product is measured.
        rows, width: of that product, (rows, width) by (width, 4 width): the model's ids and its width.

    Raises:
        InputError: an unknown name, with the known ones.

    Example:
        >>> accelerator("h200").memory
        141000000000
    """
    if name == "cpu":
        return _this_cpu(precision, rows, width)
    if name not in ACCELERATORS:
        raise InputError(f"--gpu {name} is not known; known are {', '.join(NAMES)}.")
    return ACCELERATORS[name]


def _this_cpu(precision: str, rows: int, width: int) -> Accelerator:
    from imagegpt.engine.machine import free_memory

    rate = _measured(precision, None, rows, width)
    memory = min(free_memory(), psutil.virtual_memory().total)
    return Accelerator("cpu", memory, {precision: rate}, 0.0, GIGA, "measured here: free memory, one product")


def by_device_name(name: str) -> Accelerator | None:
    """The accelerator that a CUDA device's name, such as "NVIDIA A100-SXM4-80GB", speaks of; `None` if unknown."""
    told = set(name.lower().replace("-", " ").split())
    for row in _TABLE:
        if set(row.words) <= told:
            return row
    return None


def peak_flops(device: Any, precision: str, rows: int = 1024, width: int = 1024) -> float:
    """Operations a second that a torch device can do at most: what "MFU" is a part of.

    Args:
        device: a torch device. CUDA devices in the table have their data sheet's figure; of all others the rate of
            one product is measured, which takes about a second.
        precision: fp32, tf32, bf16 or fp16.
        rows, width: of the product that is measured.
    """
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        known = by_device_name(torch.cuda.get_device_name(device))
        if known is not None and precision in known.flops:
            return known.flops[precision]
    return _measured(precision, device, rows, width)


def _measured(precision: str, device: Any, rows: int, width: int) -> float:
    from imagegpt.engine.backends import TORCH_DTYPES
    from imagegpt.engine.machine import matmul_rate

    return matmul_rate(rows, width, TORCH_DTYPES.get(precision, "float32"), device, repeats=5)
