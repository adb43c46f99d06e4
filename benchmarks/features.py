"""Features: transformers with output_hidden_states against ours, in turn, on random weights of a known size.

    python benchmarks/features.py --size small --batch 8 --repeats 5

Each side has a process of its own, which waits while another one is measured. The peer runs all blocks, as it must, and
pools one layer; ours stops after the layer that is asked for: the middle one and the last. Prints one JSON line last:
medians of images/s, the ratios to the peer, the part of the matmul limit that is reached (the products that the layer
needs over the best rate of one product of the model's own shape, measured in the same rounds), the peak memory of each
process above what it held with the model loaded, and the largest difference between the features.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cyclopts
import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.backends import TORCH_DTYPES
from imagegpt.engine.cost import blocks_flops
from imagegpt.engine.machine import matmul_rate, peak_memory
from imagegpt.engine.onnx_weights import float_weights
from imagegpt.spec import SIZES, ModelSpec

PEER = "transformers"
Run = Callable[[NDArray[np.int64], int], NDArray[np.float32]]  # (inputs, layer)


def features(
    *, size: str = "small", batch: int = 8, repeats: int = 5, sides: str = "torch fp32,onnx fp32,torch bf16"
) -> None:
    """Time them.

    Args:
        size: a size's name.
        batch: pictures.
        repeats: of each side, in turn; medians count.
        sides: ours, with commas between: a backend and a precision.
    """
    spec = SIZES[size]
    layers = (spec.n_layer // 2, spec.n_layer)
    names = [PEER, *sides.split(",")]
    workers = {name: _start(name, size, batch) for name in names}
    jobs = [(name, layer) for name in names for layer in layers]
    times: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    rates = []
    for _ in range(repeats + 1):
        for job in jobs:
            times[job].append(_ask(workers[job[0]], job[1])[0])
        rates.append(_ask(workers[PEER], "rate"))
    found = {job: _ask(workers[job[0]], job[1])[1] for job in jobs}
    peaks = {name: _ask(workers[name], "peak") for name in names}
    for worker in workers.values():
        worker.send(None)
    rate = statistics.median(rates)
    images = {job: batch / statistics.median(values[1:]) for job, values in times.items()}
    record: dict[str, Any] = {"benchmark": "features", "size": size, "batch": batch, "layers": layers}
    record |= {
        "matmul_gflops": round(rate / 1e9),
        "peak_mib": {name: round(peak / 2**20) for name, peak in peaks.items()},
    }
    for name, layer in jobs:
        limit = rate / blocks_flops(spec, layer)
        record[f"{name}, layer {layer}"] = {
            "images_per_s": round(images[name, layer], 3),
            "ratio": round(images[name, layer] / images[PEER, layer], 2),
            "part_of_fp32_matmul_limit": round(images[name, layer] / limit, 3),
            "memory_ratio": round(peaks[name] / peaks[PEER], 3),
            "largest_difference": float(np.abs(found[name, layer] - found[PEER, layer]).max()),
        }
    print(json.dumps(record))


def _start(name: str, size: str, batch: int) -> Connection:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    context.Process(target=_work, args=(name, size, batch, theirs), daemon=True).start()
    return mine


def _ask(worker: Connection, question: int | str) -> Any:
    worker.send(question)
    return worker.recv()


def _work(name: str, size: str, batch: int, connection: Connection) -> None:
    """One side: answers a layer with (seconds, features), "rate" with the matmul rate, "peak" with bytes."""
    spec = SIZES[size]
    run = _peer(spec) if name == PEER else _ours(spec, *name.split())
    inputs = np.random.default_rng(0).integers(0, spec.num_colors, (batch, spec.n_positions))
    inputs[:, 0] = spec.sos
    run(inputs[:1, :], 1)  # threads, kernels and weights are there
    before = peak_memory()
    while (question := connection.recv()) is not None:
        if question == "rate":
            connection.send(matmul_rate(spec.n_positions, spec.n_embd))
        elif question == "peak":
            connection.send(peak_memory() - before)
        else:
            began = time.perf_counter()
            found = run(inputs, question)
            connection.send((time.perf_counter() - began, found))


def _weights(spec: ModelSpec) -> Any:
    """The same random model for every side, as torch has it."""
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**_shape(spec))).eval()


def _shape(spec: ModelSpec) -> dict[str, Any]:
    return {"n_embd": spec.n_embd, "n_layer": spec.n_layer, "n_head": spec.n_head}


def _peer(spec: ModelSpec) -> Run:
    import torch
    from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTModel as Peer

    peer: Any = Peer(PeerConfig(**_shape(spec))).eval()
    peer.load_state_dict(_weights(spec).transformer.state_dict(), strict=False)

    @torch.no_grad()
    def run(inputs: NDArray[np.int64], layer: int) -> NDArray[np.float32]:
        states = peer(torch.from_numpy(inputs), output_hidden_states=True, use_cache=False).hidden_states[layer]
        return (states if layer == spec.n_layer else peer.h[layer].ln_1(states)).mean(1).numpy()

    return run


def _ours(spec: ModelSpec, backend: str, precision: str) -> Run:
    import torch

    from imagegpt.engine.onnx_features import OnnxFeatures
    from imagegpt.engine.torch_features import TorchFeatures

    model = _weights(spec)
    extractors: dict[int, Any] = {}
    if backend == "torch":
        model = model.to(getattr(torch, TORCH_DTYPES[precision]))
    tensors = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}

    def run(inputs: NDArray[np.int64], layer: int) -> NDArray[np.float32]:
        if layer not in extractors:
            extractors.clear()  # of the sessions only the one in use counts
            if backend == "torch":
                extractors[layer] = TorchFeatures(model, [layer], "mean")
            else:
                extractors[layer] = OnnxFeatures(spec, float_weights(tensors), [layer], "mean")
        extractor = extractors[layer]
        pieces = [inputs[start : start + extractor.rows] for start in range(0, len(inputs), extractor.rows)]
        return np.concatenate([extractor(piece)[0] for piece in pieces])

    return run


if __name__ == "__main__":
    cyclopts.run(features)
