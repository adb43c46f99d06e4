"""Training steps on this CPU beside what `imagegpt plan` says of them: peak memory and seconds. Linux only.

    python benchmarks/plan.py

Each run is a process of its own: forward, backward and AdamW's step, twice, on random ids. Bytes are the process's peak
beyond what it held before the model was made (Python, torch, transformers: `libraries`), once with glibc giving memory
back at once (`measured`) and once as it does by itself (`by_itself`). Ratios are planned over measured.
Prints one JSON line last.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import cyclopts

from imagegpt.engine.cost import Training, training_flops, training_memory
from imagegpt.engine.machine import free_memory, matmul_rate
from imagegpt.errors import InputError
from imagegpt.spec import SIZES
from imagegpt.train.trace import measured

# size, rows, half, checkpointing
SHAPES = [
    ("small", 1, False, False),
    ("small", 2, False, False),
    ("small", 4, False, False),
    ("small", 2, False, True),
    ("small", 2, True, False),
    ("small", 4, True, False),
    ("small", 2, True, True),
    ("medium", 1, False, False),
    ("medium", 1, False, True),
    ("medium", 1, True, False),
    ("medium", 1, True, True),
]


def one(size: str, rows: int, half: bool, checkpointing: bool, by_itself: bool) -> dict[str, Any]:
    """A shape's plan and measurement, in MiB and seconds."""
    spec, run = SIZES[size], Training(rows=rows, half=half, checkpointing=checkpointing, cpu=True)
    record = {"size": size, "rows": rows, "precision": "bf16" if half else "fp32", "checkpointing": checkpointing}
    planned = sum(training_memory(spec, run).values())
    if 1.3 * planned > free_memory():
        return record | {"skipped": "too little memory is free"}
    found = measured(spec, run, 2, "cpu")
    rate = matmul_rate(rows * spec.n_positions, spec.n_embd, "bfloat16" if half else "float32", repeats=5)
    record |= {"planned_mib": planned >> 20, "measured_mib": found["peak"] >> 20}
    record |= {"ratio": round(planned / found["peak"], 3), "libraries_mib": found["libraries"] >> 20}
    record |= {"seconds": round(found["seconds"], 2)}
    record |= {"utilisation": round(training_flops(spec, rows, checkpointing) / found["seconds"] / rate, 2)}
    if by_itself:
        other = measured(spec, run, 2, "cpu", mapped=False)
        record |= {"by_itself_mib": other["peak"] >> 20, "by_itself_seconds": round(other["seconds"], 2)}
    return record


def main(*, sizes: str = "small,medium", by_itself: bool = False) -> None:
    """Measure all shapes.

    Args:
        sizes: whose shapes, with commas between them.
        by_itself: measure a second time, with glibc's own rule for giving memory back.
    """
    results = []
    for shape in SHAPES:
        if shape[0] not in sizes.split(","):
            continue
        try:
            results.append(one(*shape, by_itself))
        except InputError as error:  # such as a process that the system ended for its memory
            results.append({"size": shape[0], "rows": shape[1], "failed": str(error)})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "plan", "runs": results}))


if __name__ == "__main__":
    cyclopts.run(main)
