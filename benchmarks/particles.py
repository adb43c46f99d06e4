"""What particles are worth: the likelihood of pictures that are completed around known pixels.

    python benchmarks/particles.py --data ../shared/data/cifar10/validation.parquet --pictures 50

Two masks: every second pixel known, as on a chessboard, and the lower half known. Plain forcing is one particle. The
figure is the mean log-likelihood of the whole picture (all T ids, SOS first) under the model, in nats. Prints one JSON
line last.
"""

from __future__ import annotations

import json
import sys
import time

import cyclopts
import numpy as np

from imagegpt.data.sources import open_source
from imagegpt.pipeline import ImageGPT
from int8 import nats_per_token


def masks(grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """True where a pixel is painted."""
    rows, columns = np.indices(grid)
    return {"chessboard": (rows + columns) % 2 == 0, "lower half known": rows < grid[0] // 2}


def main(
    *,
    data: str,
    pictures: int = 50,
    particles: tuple[int, ...] = (1, 4, 16, 32),
    precision: str = "fp32",
    only: str | None = None,
) -> None:
    """Complete the same pictures with more and more particles.

    Args:
        data: DATA, as the command has it.
        pictures: the first so many.
        particles: numbers of them.
        precision: of the completions; they are scored in fp32.
        only: the name of one mask.
    """
    model = ImageGPT.from_pretrained("nano", precision=precision)  # pyright: ignore[reportArgumentType]
    judge = ImageGPT.from_pretrained("nano")
    files = [record.picture for record in open_source(data, limit=pictures)]
    own = -nats_per_token(judge, judge.encode(files)) * judge.spec.n_positions
    results = []
    for name, mask in masks(model.grid).items():
        if only not in (None, name):
            continue
        for number in particles:
            began = time.perf_counter()
            # A seed of its own for each: with one, an upper half that nothing is known of would be the same for all.
            result = model.complete(files, mask=mask, particles=number, seed=list(range(len(files))))
            seconds = time.perf_counter() - began
            whole = -nats_per_token(judge, result.ids) * judge.spec.n_positions
            record = {"mask": name, "particles": number, "nats": round(whole.mean(), 1)}
            record["standard_error"] = round(whole.std(ddof=1) / len(whole) ** 0.5, 1)
            effective = result.effective_particles
            record["least_effective"] = None if effective is None else round(float(effective.mean()), 2)
            results.append(record | {"seconds_per_picture": round(seconds / len(files), 2)})
            print(json.dumps(results[-1]), file=sys.stderr)
    record = {"benchmark": "particles", "model": "nano", "pictures": len(files), "precision": precision}
    print(json.dumps(record | {"nats_of_the_pictures_themselves": round(own.mean(), 1), "completions": results}))


if __name__ == "__main__":
    cyclopts.run(main)
