"""Peak memory of sampling with the onnxruntime backend, beside what `imagegpt.engine.cost` predicts. Linux only.

    python benchmarks/memory.py

Each shape runs in a process of its own, with random weights; the process's memory before the weights is taken off.
Prints one JSON line last: MiB, and measured over predicted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from imagegpt import checkpoint
from imagegpt.checkpoint import expected_shapes
from imagegpt.engine.backends import Precision, open_onnx
from imagegpt.engine.batches import Task
from imagegpt.engine.cost import decode_memory, weight_memory
from imagegpt.engine.decode import Decoding
from imagegpt.engine.onnx_backend import OnnxBackend  # noqa: F401 - the libraries are no part of a run
from imagegpt.engine.warp import Sampling
from imagegpt.spec import SIZES

# size, rows, different prompts, ids of a prompt, precision
SHAPES = [
    ("nano", 32, 1, 0, "fp32"),
    ("small", 1, 1, 512, "fp32"),
    ("small", 8, 1, 512, "fp32"),
    ("small", 8, 8, 512, "fp32"),
    ("small", 8, 8, 1000, "int8"),
    ("medium", 2, 2, 512, "fp32"),
]
STEPS = 16


def measure(folder: str, rows: int, prompts: int, prompt: int, precision: Precision) -> dict[str, int]:
    """Bytes: predicted and measured, of weights and sampling beyond what the process had before."""
    spec, before = checkpoint.read_spec(Path(folder)), _status("VmRSS")
    backend = open_onnx(Path(folder), spec, precision)
    Path("/proc/self/clear_refs").write_text("5")  # the file's own pages are gone again; the peak counts from here on
    known_RT = np.ones((prompts, spec.n_positions), bool)
    known_RT[:, prompt : prompt + STEPS] = False
    ids_RT = np.random.default_rng(0).integers(0, spec.num_colors, known_RT.shape)
    task = Task(ids_RT, known_RT, list(range(prompts)), rows // prompts)
    for part in task.parts(rows):
        for _ in Decoding(backend, task.batch(part), Sampling()):
            pass
    number = 1 if precision == "int8" else 4
    predicted = weight_memory(spec, number) + decode_memory(spec, rows, prompts, prompt, number)
    return {"predicted": predicted, "measured": _status("VmHWM") - before}


def write_model(size: str, folder: str) -> None:
    """A model folder of a known size with random weights."""
    spec, rng = SIZES[size], np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) / 50 for name, shape in expected_shapes(spec).items()}
    save_file(tensors, f"{folder}/model.safetensors")
    Path(folder, "config.json").write_text(json.dumps({"model_type": "imagegpt", **asdict(spec)}))


def _status(entry: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{entry}:")]
    return int(line.split()[1]) << 10


def main() -> None:
    """Measure all shapes."""
    results = []
    for shape in SHAPES:
        size, rows, prompts, prompt, precision = shape
        with tempfile.TemporaryDirectory() as folder:
            write_model(size, folder)
            command = [sys.executable, __file__, json.dumps([folder, *shape[1:]])]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        figures = json.loads(line)
        record = {"size": size, "rows": rows, "prompts": prompts, "prompt": prompt, "precision": precision}
        record |= {name: round(value / 2**20) for name, value in figures.items()}
        results.append(record | {"ratio": round(figures["measured"] / figures["predicted"], 3)})
        print(json.dumps(results[-1]), file=sys.stderr)
    print(json.dumps({"benchmark": "memory", "mib": results}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
