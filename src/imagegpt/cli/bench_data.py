"""imagegpt bench data"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any, Literal

from imagegpt import checkpoint
from imagegpt.cli.options import DataOptions, Json, Whole, parse_grid
from imagegpt.cli.output import print_record
from imagegpt.codec.augment import Augmentation
from imagegpt.codec.codec import framing_for
from imagegpt.data.ids import codec_of
from imagegpt.data.records import Source
from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec
from imagegpt.train.batches import Batches

GRID = "32x32"
MOST_IDS = 1 << 16  # of the product that is timed


def data(
    data: str,
    /,
    *,
    batch: Whole = 128,
    augment: str = "none",
    grid: str | None = None,
    codec: str | None = None,
    crop: Literal["none", "center"] = "center",
    seed: Whole = 0,
    seconds: float = 5.0,
    model: str | None = None,
    device: str | None = None,
    limit: Whole | None = None,
    json_: Json = False,
) -> None:
    """Time the batches that training reads, with the model left out, perhaps beside what a model could use.

    Args:
        data: pictures, or ids from `imagegpt tokenize`; see docs/data.md.
        batch: pictures of a batch.
        augment: cifar, imagenet, or some of crop, pad and flip with commas between them.
        grid: of ids, HEIGHTxWIDTH; default: that of tokenised data, else 32x32.
        codec: a palette's .npy file, a codec's or model's folder, "nano" or a Hub id; default: that of tokenised data,
            else nano.
        crop: cut the largest centred part of the grid's shape, or squash the whole picture.
        seed: of the order and of the augmentation.
        seconds: how long batches are counted, after the first.
        model: tell how many pictures a second this model could train on at most, by the rate of its products here.
        device: of the model: cpu, cuda or mps; default: the best one here.
        limit: the first so many records only.
        json_: print it as JSON.
    """
    if not 0 < seconds <= 3600:
        raise InputError(f"--seconds must be above 0 and at most 3600, not {seconds}.")
    spec = None if model is None else checkpoint.read_spec(checkpoint.find_model(model))
    augmentation = Augmentation.parse(augment)
    source = DataOptions(limit).open(data)
    used, ids = codec_of(source, codec), _grid(grid, source)
    framing = framing_for(used, ids, crop)
    skipped: list[str] = []
    batches = Batches(source, used, framing, augmentation, batch, seed, skipped=skipped.append)
    record: dict[str, Any] = {"data": data, "records": len(source), "holds": "ids" if source.tokens else "pictures"}
    record |= {"grid": list(ids), "codec": used.name, "batch": batch, "augment": str(augmentation)}
    record |= measure(batches, seconds) | {"skipped": skipped}
    if model is not None and spec is not None:
        record |= {"model": model, "training_limit_pictures_per_s": round(_training_limit(spec, batch, device), 1)}
    print_record(record, json_)


def measure(batches: Batches, seconds: float) -> dict[str, float]:
    """Take batches for so long.

    Returns:
        Seconds until the first batch; how many came after it; pictures and ids a second.
    """
    began = time.perf_counter()
    with closing(batches.stream(0)) as stream:
        length = next(stream).ids_BT.shape[1]
        first = time.perf_counter()
        taken = pictures = 0
        while taken == 0 or time.perf_counter() - first < seconds:
            pictures += len(next(stream))
            taken += 1
        lasted = time.perf_counter() - first
    rate = pictures / lasted
    return {
        "first_batch_s": round(first - began, 3),
        "batches": taken,
        "pictures_per_s": round(rate, 1),
        "ids_per_s": round(rate * length),
    }


def _grid(typed: str | None, source: Source) -> tuple[int, int]:
    if typed is None and source.tokens:
        return source.tokens.grid
    return parse_grid(typed or GRID)


def _training_limit(spec: ModelSpec, batch: int, device: str | None) -> float:
    from imagegpt.engine.backends import torch_device
    from imagegpt.engine.cost import training_flops
    from imagegpt.engine.machine import matmul_rate

    place = torch_device(device)
    rows = min(batch * spec.n_positions, MOST_IDS)
    rate = matmul_rate(rows, spec.n_embd, "bfloat16" if place.type == "cuda" else "float32", place, repeats=5)
    return rate / training_flops(spec, rows=1)
