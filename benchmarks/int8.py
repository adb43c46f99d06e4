"""What int8 costs: nats/token of pictures under the embedded model, in float32 and in int8.

    python benchmarks/int8.py --data ../shared/data/cifar10/validation.parquet --pictures 256

Every id is scored step by step, through the cache, as it is when sampling. Prints one JSON line last.
"""

from __future__ import annotations

import json

import cyclopts
import numpy as np
from numpy.typing import NDArray

from imagegpt.data.sources import open_source
from imagegpt.engine.warp import log_probs
from imagegpt.pipeline import ImageGPT


def nats_per_token(model: ImageGPT, ids_RT: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) mean negative log-likelihoods of all T ids, SOS first."""
    backend, length = model.backend, ids_RT.shape[1]
    nats = np.zeros(len(ids_RT))
    for start in range(0, len(ids_RT), backend.rows):
        part = slice(start, start + backend.rows)
        ids_BT = ids_RT[part]
        rows = backend.prefill(np.full((1, 1), model.spec.sos), np.zeros(len(ids_BT), np.int64))
        for position in range(length):
            nats[part] -= log_probs(rows.logits_BK, ids_BT[:, position]) / length
            if position + 1 < length:
                rows.step(ids_BT[:, position])
    return nats


def main(*, data: str, pictures: int = 256, model: str = "nano") -> None:
    """Score the same pictures twice.

    Args:
        data: DATA, as the command has it.
        pictures: the first so many.
        model: as the command has it.
    """
    exact, quantized = (ImageGPT.from_pretrained(model, precision=precision) for precision in ("fp32", "int8"))
    ids_RT = exact.encode([record.picture for record in open_source(data, limit=pictures)])
    fp32, int8 = (nats_per_token(each, ids_RT) for each in (exact, quantized))
    record = {
        "benchmark": "int8",
        "model": model,
        "pictures": len(ids_RT),
        "nats_per_token": {"fp32": round(fp32.mean(), 5), "int8": round(int8.mean(), 5)},
        "difference_percent": round(100 * (int8.mean() / fp32.mean() - 1), 4),
        "largest_difference_of_a_picture_percent": round(100 * np.abs(int8 / fp32 - 1).max(), 3),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    cyclopts.run(main)
