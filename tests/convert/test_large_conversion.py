"""A checkpoint with the shapes of the large model: 1.36 G parameters, 5.4 GB, twice on the disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bundles import colours, shard_path, variable_shapes, write_bundle
from imagegpt.checkpoint import read_spec
from imagegpt.spec import SIZES
from imagegpt.tensors import map_tensors

GIGABYTE = 1 << 30
# The conversion in a process of its own, which then tells the most memory that was its own, mapped files not counted.
PROGRAM = """
import json, sys, threading, time
from imagegpt.convert.openai import convert_openai

def own():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

most, done = own(), threading.Event()
def watch():
    global most
    while not done.wait(0.02):
        most = max(most, own())

thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
record = convert_openai(sys.argv[1], sys.argv[2])
seconds, cpu = time.perf_counter() - began, time.process_time()
done.set()
thread.join()
print(json.dumps({"anonymous": most, "seconds": seconds, "cpu": cpu, "parameters": record["parameters"]}))
"""


def maker(shape: tuple[int, ...], seed: int):
    """Makes an array when it is asked for: cheap numbers, all different."""
    return lambda: (np.arange(np.prod(shape), dtype=np.float32) % 65_521 * 1e-5 + seed).reshape(shape)


@pytest.mark.slow
def test_the_large_model_converts_in_little_memory(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    if shutil.disk_usage(tmp_path).free < 15 * GIGABYTE:
        pytest.skip("needs 15 GB of disk")
    spec = SIZES["large"]
    shapes = variable_shapes(spec.n_layer, spec.n_embd, spec.n_head, 512, 1024)
    folder = tmp_path / "release"
    folder.mkdir()
    try:
        makers = {name: maker(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
        index = write_bundle(folder / "model.ckpt-1000000.index", makers, 64, size=4096)
        np.save(folder / "kmeans_centers.npy", colours(512))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "model")],
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout)
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "model").iterdir()}
        print(told, sizes, sum(shard_path(index, number, 64).stat().st_size for number in range(64)))
        assert told["parameters"] == spec.num_parameters > 1.36e9
        assert told["anonymous"] < 2 * GIGABYTE
        assert read_spec(tmp_path / "model") == spec
        tensors = map_tensors(tmp_path / "model" / "model.safetensors")
        for layer in (0, 47):
            name = f"model/h{layer}/attn/v_proj"
            found = tensors[f"transformer.h.{layer}.attn.c_attn.weight"][:, 2 * 1536 :]
            np.testing.assert_array_equal(found, makers[name]().reshape(1536, 1536).T)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
