"""How fast a backend draws or makes features, and how near that is to the machine's limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagegpt.engine.cost import blocks_flops, decode_memory, forward_flops, step_bytes, weight_memory
from imagegpt.engine.decode import Backend, Batch, Decoding
from imagegpt.engine.features import Extractor
from imagegpt.engine.machine import bandwidth, matmul_rate, seconds
from imagegpt.engine.warp import Sampling
from imagegpt.spec import ModelSpec


def step_seconds(backend: Backend, rows: int, start: int, steps: int) -> float:
    """Seconds that a step with its draw takes, over `steps` of them after a prompt of `start` ids."""
    spec, rng = backend.spec, np.random.default_rng(0)
    known_RT = np.ones((1, spec.n_positions), bool)
    known_RT[:, start : start + steps] = False
    ids_RT = rng.integers(0, spec.num_colors, known_RT.shape)
    uniforms_BT = rng.random((rows, spec.n_positions))
    decoding = Decoding(backend, Batch(ids_RT, known_RT, np.zeros(rows, np.int64), uniforms_BT), Sampling())
    positions = iter(decoding)
    next(positions)
    decoding.ids()  # waits for a GPU
    return seconds(lambda: (list(positions), decoding.ids())) / (steps - 1)


def measure(backend: Backend, rows: int, steps: int, number: int) -> dict[str, Any]:
    """The first and the last steps of pictures, and what they must cost.

    A step's cost grows evenly with the position, so the mean of both windows times the ids is the whole picture.

    Args:
        backend: draws.
        rows: pictures that are drawn together.
        steps: of a window.
        number: bytes of a number of the weights and of the cache.

    Returns:
        Floating-point operations of a picture's forward; MiB of memory; for the first steps, the last ones, and their
        mean the bytes that a step must read and the milliseconds that it takes; the bandwidth; the part of the limit
        that is reached; pictures a second.
    """
    spec = backend.spec
    starts = (0, spec.n_positions - steps)
    taken = [step_seconds(backend, rows, start, steps) for start in starts]
    needed = [step_bytes(spec, rows, start + steps / 2, number) for start in starts]
    taken.append(sum(taken) / 2)
    needed.append(sum(needed) / 2)
    rate = bandwidth(getattr(backend, "device", None))
    memory = weight_memory(spec, number) + decode_memory(spec, rows, 1, 0, number)
    return {
        "gflop_per_picture": round(forward_flops(spec) / 1e9, 1),
        "memory_mib": round(memory / 2**20),
        "mib_read_per_step": [round(value / 2**20, 1) for value in needed],
        "ms_per_step": [round(1e3 * value, 3) for value in taken],
        "bandwidth_gb_per_s": round(rate / 1e9, 1),
        "part_of_limit": [round(must / rate / value, 3) for must, value in zip(needed, taken, strict=True)],
        "pictures_per_s": round(rows / taken[2] / spec.n_positions, 3),
    }


def measure_features(
    spec: ModelSpec,
    extractor: Extractor,
    layers: Sequence[int],
    pictures: int,
    batch_size: int | None,
    dtype: str,
    device: Any = None,
) -> dict[str, Any]:
    """The features of random pictures, and what they must cost.

    Args:
        spec: the model's numbers.
        extractor: makes them.
        layers: that it makes.
        pictures: how many.
        batch_size: that are run together; default: the extractor's.
        dtype: a torch dtype's name, of the products.
        device: torch's, where they run.

    Returns:
        Operations of a picture; pictures a second; the rate of one product of the model's shape, and the pictures a
        second that it would allow; the part of this limit that is reached.
    """
    inputs_BT = np.random.default_rng(0).integers(0, spec.num_colors, (pictures, spec.n_positions))
    rows = batch_size or extractor.rows
    extractor(inputs_BT[:rows])  # warms up
    taken = seconds(lambda: [extractor(inputs_BT[start : start + rows]) for start in range(0, pictures, rows)])
    operations = blocks_flops(spec, max(layers))
    rate = matmul_rate(spec.n_positions, spec.n_embd, dtype, device)
    limit = rate / max(operations, 1)
    return {
        "gflop_per_picture": round(operations / 1e9, 1),
        "pictures_per_s": round(pictures / taken, 3),
        "matmul_gflops": round(rate / 1e9),
        "limit_pictures_per_s": round(limit, 3),
        "part_of_limit": round(pictures / taken / limit, 3),
    }
