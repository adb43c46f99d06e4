"""Sampling: transformers' `generate` against ours, in turn, on random weights of a known size.

    python benchmarks/generate.py --size nano --batch 1 --steps 128 --repeats 3

Prints one JSON line last: milliseconds a step of each (medians), their ratio, and the part of the bandwidth limit
that ours reaches: the bytes that a step must read (all weights, and the cache of each row) over the measured bandwidth.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cyclopts
import numpy as np
import torch
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

from imagegpt.config import ImageGPTConfig
from imagegpt.engine.cost import step_bytes
from imagegpt.engine.decode import decode
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.spec import ModelSpec


def bandwidth() -> float:
    """Bytes a second that all threads read together, from a buffer far larger than the caches."""
    buffer = torch.ones(1 << 28)  # 1 GiB
    buffer.sum()
    times = [_seconds(buffer.sum) for _ in range(5)]
    return buffer.nbytes / min(times)


def generate(*, size: str = "nano", batch: int = 1, steps: int = 128, repeats: int = 3, prompt: int = 512) -> None:
    """Time the steps after a prompt.

    Args:
        size: a size's name.
        batch: rows.
        steps: ids sampled in a repeat.
        repeats: of each side, in turn; medians count.
        prompt: given ids; the prompt's own time is taken off by a run with one step.
    """
    torch.manual_seed(0)
    config = ImageGPTConfig.from_size(size)
    ours = ImageGPTForCausalImageModeling(config).eval()
    peer: Any = Peer(PeerConfig(**{k: v for k, v in config.to_dict().items() if k in PeerConfig().to_dict()})).eval()
    peer.load_state_dict(ours.state_dict(), strict=False)
    ids = torch.randint(0, config.vocab_size - 1, (batch, prompt))
    inputs = torch.cat([torch.full((batch, 1), config.vocab_size - 1), ids], 1)
    noise = np.random.default_rng(0).random((batch, config.n_positions))
    backend = TorchBackend(ours)

    def run_ours(count: int) -> None:
        backend.spec = _shortened(config.spec, prompt + count)
        decode(backend, ids.numpy(), np.arange(batch), Sampling(top_k=40), noise)

    def run_peer(count: int) -> None:
        peer.generate(inputs, do_sample=True, top_k=40, max_new_tokens=count, min_new_tokens=count)

    times = {"imagegpt": [], "transformers": []}
    for _ in range(repeats + 1):
        for name, run in (("imagegpt", run_ours), ("transformers", run_peer)):
            first = _seconds(lambda run=run: run(1))
            times[name].append((_seconds(lambda run=run: run(steps + 1)) - first) / steps)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first one warms up
    limit = step_bytes(config.spec, batch, prompt + steps / 2) / bandwidth()
    record = {
        "benchmark": "generate",
        "size": size,
        "batch": batch,
        "steps": f"{prompt}..{prompt + steps}",
        "ms_per_step": {name: round(1e3 * value, 3) for name, value in medians.items()},
        "ratio": round(medians["transformers"] / medians["imagegpt"], 2),
        "part_of_bandwidth_limit": round(limit / medians["imagegpt"], 3),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(record))


def _shortened(spec: ModelSpec, length: int) -> ModelSpec:
    return dataclasses.replace(spec, n_positions=length)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    cyclopts.run(generate)
