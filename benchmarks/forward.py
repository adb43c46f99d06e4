"""The network: transformers' ImageGPT against ours, in turn, on random weights of a known size.

    python benchmarks/forward.py --size small --batch 4 --repeats 5

Prints one JSON line last: images/s of a full forward and of a training step (forward, backward, AdamW), the ratios to
the peer, the part of the matmul limit that ours reaches (the products a forward needs over the measured rate of one
product of the model's own shape), and the peak memory of a training step, each side in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable
from typing import Any, Literal

import cyclopts
import torch
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

from imagegpt.config import ImageGPTConfig
from imagegpt.engine.cost import forward_flops
from imagegpt.engine.machine import matmul_rate, peak_memory, seconds
from imagegpt.model.heads import ImageGPTForCausalImageModeling

Side = Literal["imagegpt", "transformers"]
Runs = dict[Side, Callable[[], object]]
SIDES: tuple[Side, ...] = ("imagegpt", "transformers")


def build(side: Side, size: str, dropout: float) -> Any:
    """A model of random weights: ours, or the peer's of the same numbers."""
    torch.manual_seed(0)
    ours = ImageGPTConfig.from_size(size, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    if side == "imagegpt":
        return ImageGPTForCausalImageModeling(ours)
    known = PeerConfig().to_dict()
    return Peer(PeerConfig(**{key: value for key, value in ours.to_dict().items() if key in known}))


def step_memory(side: Side, size: str, batch: int, dropout: float, queue: Any) -> None:
    """Put the peak of a training step above what the process held before it, in bytes; runs in its own process."""
    model = build(side, size, dropout).train()
    ids = torch.randint(0, model.config.vocab_size - 1, (batch, model.config.n_positions))
    before = peak_memory()
    _train(model, torch.optim.AdamW(model.parameters(), lr=1e-4), ids)
    queue.put(peak_memory() - before)


def forward(
    *, size: str = "small", batch: int = 4, repeats: int = 5, dropout: float = 0.0, training: bool = True
) -> None:
    """Time both.

    Args:
        size: a size's name.
        batch: pictures.
        repeats: of each side, in turn; medians count.
        dropout: of the training step; the paper has none, the published configurations say 0.1.
        training: time the training step and measure its memory too.
    """
    peaks: dict[Side, int] = {side: _peak_of_a_step(side, size, batch, dropout) for side in SIDES} if training else {}
    models: dict[Side, Any] = {side: build(side, size, dropout).eval() for side in SIDES}
    config = models["imagegpt"].config
    models["transformers"].load_state_dict(models["imagegpt"].state_dict(), strict=False)
    ids = torch.randint(0, config.vocab_size - 1, (batch, config.n_positions))
    with torch.no_grad():
        difference = (models["imagegpt"](ids).logits - models["transformers"](ids).logits).abs().max().item()
        runs: Runs = {side: lambda m=m: m(ids, use_cache=False) for side, m in models.items()}
        seconds = _alternate(runs, repeats)
    rate = matmul_rate(config.n_positions, config.n_embd)
    record = {
        "benchmark": "forward",
        "size": size,
        "batch": batch,
        "images_per_s": {side: round(batch / value, 3) for side, value in seconds.items()},
        "ratio": round(seconds["transformers"] / seconds["imagegpt"], 2),
        "part_of_matmul_limit": round(batch * forward_flops(config.spec) / rate / seconds["imagegpt"], 3),
        "matmul_gflops": round(rate / 1e9),
        "largest_logit_difference": difference,
    }
    if training:
        record["training"] = {"dropout": dropout} | _training(models, ids, batch, repeats) | _memory(peaks)
    print(json.dumps(record | {"threads": torch.get_num_threads(), "torch": torch.__version__}))


def _training(models: dict[Side, Any], ids: torch.Tensor, batch: int, repeats: int) -> dict[str, Any]:
    runs: Runs = {}
    for side, model in models.items():
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
        runs[side] = lambda model=model, optimizer=optimizer: _train(model, optimizer, ids)
    seconds = _alternate(runs, repeats)
    return {
        "images_per_s": {side: round(batch / value, 3) for side, value in seconds.items()},
        "ratio": round(seconds["transformers"] / seconds["imagegpt"], 2),
    }


def _peak_of_a_step(side: Side, size: str, batch: int, dropout: float) -> int:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=step_memory, args=(side, size, batch, dropout, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{side}'s training step ended with {process.exitcode}: too little memory for it?")
    return queue.get()


def _memory(peaks: dict[Side, int]) -> dict[str, Any]:
    return {
        "peak_mib": {side: round(peak / 2**20) for side, peak in peaks.items()},
        "memory_ratio": round(peaks["imagegpt"] / peaks["transformers"], 3),
    }


def _train(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def _alternate(runs: Runs, repeats: int) -> dict[Side, float]:
    """Median seconds of each, run in turn; the first round warms up."""
    times: dict[Side, list[float]] = {side: [] for side in runs}
    for _ in range(repeats + 1):
        for side, run in runs.items():
            times[side].append(seconds(run))
    return {side: statistics.median(values[1:]) for side, values in times.items()}


if __name__ == "__main__":
    cyclopts.run(forward)
