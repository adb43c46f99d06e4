"""Sampling: transformers' `generate`, ctranslate2 and ours, in turn, on random weights of a known size.

    python benchmarks/generate.py --size small --batch 1 --steps 128 --repeats 3

Each side has a process of its own, which waits while another one is measured: threads of different libraries in one
process get into one another's way. Milliseconds a step are measured in two windows, at the first and at the last ids of
a picture; a step's cost grows evenly in between, so their mean times the ids is the whole picture (`ms_per_step` is
that mean). Prints one JSON line last: medians, the ratios to both peers, and the part of the bandwidth limit that ours
reaches: the bytes that a step must read (all weights, and the cache of each row) over the measured bandwidth.
ctranslate2 is left out where it is not installed.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import cyclopts
import numpy as np

from imagegpt.engine.cost import step_bytes
from imagegpt.engine.decode import Backend, Batch, Decoding
from imagegpt.engine.machine import bandwidth, seconds
from imagegpt.engine.warp import Sampling
from imagegpt.spec import SIZES

Run = Callable[[int, int], object]  # (ids of the prompt, ids to draw)
TOP_K = 40
CPU_SIDES = ("transformers", "imagegpt fp32", "imagegpt int8", "imagegpt torch", "ctranslate2 fp32", "ctranslate2 int8")
GPU_SIDES = ("transformers", "imagegpt torch")


def generate(
    *, size: str = "nano", batch: int = 1, steps: int = 128, repeats: int = 3, device: str = "cpu", sides: str = ""
) -> None:
    """Time the first and the last steps of pictures.

    Args:
        size: a size's name.
        batch: rows.
        steps: ids sampled in a window.
        repeats: of each side, in turn; medians count.
        device: of the torch sides.
        sides: which ones, with commas between; default: all that there are.
    """
    spec = SIZES[size]
    names = sides.split(",") if sides else CPU_SIDES if device == "cpu" else GPU_SIDES
    names = [name for name in names if "ctranslate2" not in name or find_spec("ctranslate2")]
    starts = (0, spec.n_positions - steps)
    workers = {name: _start(name, size, batch, device) for name in names}
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(repeats + 1):
        for name, worker in workers.items():
            worker.send([(start, steps) for start in starts])
            times[name].append(worker.recv())
    for worker in workers.values():
        worker.send(None)
    windows = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in times.items()
    }
    whole = {name: sum(values) / len(values) for name, values in windows.items()}
    record = {
        "benchmark": "generate",
        "size": size,
        "batch": batch,
        "device": device,
        "windows": [f"{start}..{start + steps}" for start in starts],
        "ms_per_step_in_windows": {
            name: [round(1e3 * value, 3) for value in values] for name, values in windows.items()
        },
        "ms_per_step": {name: round(1e3 * value, 3) for name, value in whole.items()},
        "seconds_per_picture": {name: round(value * spec.n_positions / batch, 2) for name, value in whole.items()},
    }
    ours = [name for name in whole if name.startswith("imagegpt")]
    for peer in ("transformers", "ctranslate2 fp32", "ctranslate2 int8"):
        if peer in whole:
            record[f"ratio to {peer}"] = {name: round(whole[peer] / whole[name], 2) for name in ours}
    if device == "cpu":
        rate = bandwidth()
        limits = {
            name: step_bytes(spec, batch, spec.n_positions / 2, 1 if "int8" in name else 4) / rate for name in ours
        }
        record["part_of_bandwidth_limit"] = {name: round(limits[name] / whole[name], 3) for name in ours}
        record["bandwidth_gb_per_s"] = round(rate / 1e9, 1)
    print(json.dumps(record))


def _start(*arguments: Any) -> Connection:
    """A side in a process of its own, which measures when it is told to."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_work, args=(there, *arguments), daemon=True).start()
    return here


def _work(told: Connection, name: str, size: str, batch: int, device: str) -> None:
    run = _side(name, size, batch, device)
    while (windows := told.recv()) is not None:
        told.send([_per_step(run, start, steps) for start, steps in windows])


def _side(name: str, size: str, batch: int, device: str) -> Run:
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.engine.onnx_backend import OnnxBackend, calibrate
    from imagegpt.engine.onnx_weights import float_weights, int8_weights
    from imagegpt.engine.torch_backend import TorchBackend
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    config = ImageGPTConfig.from_size(size)
    model: Any = ImageGPTForCausalImageModeling(config).eval()
    prompt = torch.randint(0, config.vocab_size - 1, (1, config.n_positions)).numpy()
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    if name == "transformers":
        return _transformers(model, prompt, batch, device)
    if name == "imagegpt torch":
        return _ours(TorchBackend(model.to(device)), prompt, batch)
    if name == "imagegpt fp32":
        return _ours(OnnxBackend(config.spec, float_weights(tensors)), prompt, batch)
    if name == "imagegpt int8":
        weights = int8_weights(config.spec, tensors)
        return _ours(OnnxBackend(config.spec, weights | calibrate(config.spec, weights)), prompt, batch)
    from ctranslate2_peer import ctranslate2_side

    return ctranslate2_side(name.split()[1], config.spec, tensors, prompt[0], batch, TOP_K)


def _transformers(model: Any, prompt: np.ndarray, batch: int, device: str) -> Run:
    import torch
    from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

    known = PeerConfig().to_dict()
    peer: Any = Peer(PeerConfig(**{key: value for key, value in model.config.to_dict().items() if key in known}))
    peer.load_state_dict(model.state_dict(), strict=False)
    peer.eval().to(device)
    sos = torch.full((batch, 1), peer.config.vocab_size - 1)
    ids = torch.from_numpy(prompt).expand(batch, -1)

    def run(start: int, count: int) -> None:
        inputs = torch.cat([sos, ids[:, :start]], 1).to(device)
        peer.generate(inputs, do_sample=True, top_k=TOP_K, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)

    return run


def _ours(backend: Backend, prompt: np.ndarray, batch: int) -> Run:
    noise_BT = np.random.default_rng(0).random((batch, prompt.shape[1]))

    def run(start: int, count: int) -> None:
        known = np.ones(prompt.shape, bool)
        known[:, start : start + count] = False
        task = Batch(prompt, known, np.zeros(batch, np.int64), noise_BT)
        decoding = Decoding(backend, task, Sampling(top_k=TOP_K))
        for _ in decoding:
            pass
        decoding.ids()  # waits for a GPU

    return run


def _per_step(run: Run, start: int, steps: int) -> float:
    """Seconds a step; the prompt's own time is taken off by a run of one step."""
    first = seconds(lambda: run(start, 1))
    return (seconds(lambda: run(start, steps)) - first) / (steps - 1)


if __name__ == "__main__":
    cyclopts.run(generate)
