"""Scores: transformers' logits and a log-softmax, a bare forward of ours, and ImageGPT.score_ids, in turn.

    python benchmarks/score.py --size small --pictures 4 --repeats 5

Random weights of a known size, written to a folder and opened as a user would. The bare forward is the same network up
to its logits, of which nothing is kept. Prints one JSON line last: medians of pictures/s, the ratio to the peer and to
the bare forward of the same precision, the part of the matmul limit (the network's products over the best rate of one
product of the model's own shape), and the largest difference of a score from the peer's.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import find_codec, save_preprocessor
from imagegpt.config import ImageGPTConfig
from imagegpt.engine.cost import forward_flops
from imagegpt.engine.features import inputs_of
from imagegpt.engine.machine import matmul_rate
from imagegpt.engine.torch_features import rows_of
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.pipeline import ImageGPT
from imagegpt.spec import SIZES, ModelSpec

PEER = "transformers"
Run = Callable[[NDArray[np.int64]], NDArray[np.float64] | None]


def score(*, size: str = "nano", pictures: int = 16, repeats: int = 5, sides: str = "torch fp32,onnx fp32") -> None:
    """Time them.

    Args:
        size: a size's name.
        pictures: of each run.
        repeats: of each side, in turn; medians count.
        sides: ours, with commas between: a backend and a precision; each of torch's has its bare forward.
    """
    spec = SIZES[size]
    ids = np.random.default_rng(0).integers(0, spec.num_colors, (pictures, spec.n_positions))
    with tempfile.TemporaryDirectory() as folder:
        _save(spec, Path(folder))
        runs = {PEER: _peer(spec, Path(folder)), **_ours(Path(folder), sides.split(","))}
        times: dict[str, list[float]] = {name: [] for name in runs}
        found, rates = {}, []
        for _ in range(repeats + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                found[name] = run(ids)
                times[name].append(time.perf_counter() - began)
            rates.append(matmul_rate(spec.n_positions, spec.n_embd))
    rate = {name: pictures / statistics.median(values[1:]) for name, values in times.items()}
    limit = max(rates) / forward_flops(spec)
    record: dict[str, Any] = {"benchmark": "score", "size": size, "pictures": pictures, "repeats": repeats}
    record["matmul_gflops"] = round(max(rates) / 1e9)
    for name in runs:
        told: dict[str, Any] = {"pictures_per_s": round(rate[name], 3), "ratio": round(rate[name] / rate[PEER], 2)}
        told["part_of_fp32_matmul_limit"] = round(rate[name] / limit, 3)
        bare = f"bare forward, {name.removeprefix('score, ')}"
        if bare in rate and bare != name:
            told["of_bare_forward"] = round(rate[name] / rate[bare], 3)
        if found[name] is not None:
            told["largest_relative_difference"] = float(np.abs(found[name] / found[PEER] - 1).max())
        record[name] = told
    print(json.dumps(record))


def _save(spec: ModelSpec, folder: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_embd": spec.n_embd, "n_layer": spec.n_layer, "n_head": spec.n_head}
    ImageGPTForCausalImageModeling(ImageGPTConfig(**shape)).save_pretrained(folder)
    save_preprocessor(folder, find_codec("nano"), Framing(32, 32))


def _peer(spec: ModelSpec, folder: Path) -> Run:
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

    peer: Any = Peer.from_pretrained(folder).eval()

    @torch.no_grad()
    def run(ids: NDArray[np.int64]) -> NDArray[np.float64]:
        logits = peer(torch.from_numpy(inputs_of(ids, spec.sos, True)), use_cache=False).logits
        log_probs = logits.log_softmax(-1).gather(2, torch.from_numpy(ids)[..., None])
        return log_probs.sum((1, 2), dtype=torch.float64).numpy()

    return run


def _ours(folder: Path, sides: list[str]) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for side in sides:
        backend, precision = side.split()
        model = ImageGPT.from_pretrained(folder, device="cpu", backend=backend, precision=precision)  # pyright: ignore[reportArgumentType]
        if backend == "torch":
            runs[f"bare forward, {side}"] = _bare(model)
        runs[f"score, {side}"] = lambda ids, model=model: model.score_ids(ids).log_likelihood
    return runs


def _bare(model: ImageGPT) -> Run:
    network = model.model
    rows = rows_of(network)

    @torch.inference_mode()
    def run(ids: NDArray[np.int64]) -> None:
        inputs = torch.from_numpy(inputs_of(ids, model.spec.sos, True))
        for part in inputs.split(rows):
            x = network.transformer.wte(part) + network.transformer.wpe.weight
            for block in network.transformer.h:
                x, *_ = block(x)
            network.logits(network.transformer.ln_f(x))

    return run


if __name__ == "__main__":
    cyclopts.run(score)
