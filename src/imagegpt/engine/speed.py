"""How fast a backend draws, and how near that is to the machine's limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagegpt.engine.cost import decode_memory, forward_flops, step_bytes, weight_memory
from imagegpt.engine.decode import Backend, Batch, Decoding
from imagegpt.engine.machine import bandwidth, seconds
from imagegpt.engine.warp import Sampling


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
