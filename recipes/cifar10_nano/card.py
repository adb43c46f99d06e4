"""Measure the nano model on the validation pictures, and write its card and sample sheet.

    python recipes/cifar10_nano/card.py --model runs/nano/model --data DIR

prints the figures as JSON; with --write they also go into the model's folder as evaluation.json, with README.md (the
card, from card.md and the figures) and samples.png (seeds stated, not selected).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from string import Template
from typing import Any

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from imagegpt import ImageGPT, __version__
from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.files import write_text, write_whole
from imagegpt.sheet import sample_sheet

SAMPLE_SEED = 0
SAMPLES = 36


def card(*, data: Path, model: str = "nano", limit: int | None = None, batch: int = 20, write: bool = False) -> None:
    """Print nats/token on the validation pictures, beside two counting models'.

    Args:
        data: folder with train.parquet and validation.parquet.
        model: "nano" or a model folder.
        limit: look at the first so many validation pictures only.
        batch: pictures a forward.
        write: also write the card, the figures and a sheet of samples into the model's folder.
    """
    pipeline = ImageGPT.from_pretrained(model)
    pictures = read_pictures(data, "validation")[:limit]
    ids_BT = pipeline.codec.encode(pictures).reshape(len(pictures), -1)
    scores = nats_per_picture(pipeline, ids_BT, batch)
    train_BT = pipeline.codec.encode(read_pictures(data, "train")).reshape(-1, ids_BT.shape[1])
    mean = scores.mean()
    figures: dict[str, Any] = {
        "pictures": len(scores),
        "nats_per_token": round(float(mean), 4),
        "standard_error": round(float(scores.std(ddof=1) / math.sqrt(len(scores))), 4),
        "bits_per_dim_of_palette_ids": round(float(mean / math.log(2) / 3), 4),
        **counting_models(train_BT, ids_BT, len(pipeline.codec)),
        "palette_rmse_0_255": round(rmse(pipeline, pictures), 2),
        "precision": "float32",
        "imagegpt": __version__,
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=2))
    if write:
        write_card(pipeline, figures)


def read_pictures(data: Path, split: str) -> NDArray[np.uint8]:
    """All pictures of a split, which must have one size: (n, height, width, 3)."""
    records = read_records(open_source(f"{data}:{split}"))
    return np.stack([np.asarray(picture) for _, picture in records])


@torch.inference_mode()
def nats_per_picture(pipeline: ImageGPT, ids_BT: NDArray[np.int64], batch: int) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each picture's T ids, SOS first: (B,) in nats per token."""
    starts = range(0, len(ids_BT), batch)
    scores = [_losses(pipeline, torch.from_numpy(ids_BT[i : i + batch])) for i in track(starts, "scoring")]
    return torch.cat(scores).numpy()


def _losses(pipeline: ImageGPT, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(pipeline.model.device)
    sos = ids.new_full((len(ids), 1), pipeline.spec.sos)
    logits = pipeline.model(torch.cat([sos, ids[:, :-1]], 1), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")
    return losses.double().mean(1).cpu()


def counting_models(train_BT: NDArray[np.int64], ids_BT: NDArray[np.int64], colors: int) -> dict[str, float]:
    """nats/token of two models that only count: each colour alone, and given its left neighbour.

    The second falls back on the first with a weight of 100 counts; a row's first id has its colour alone.
    """
    unigram_K = (np.bincount(train_BT.ravel(), minlength=colors) + 1.0) / (train_BT.size + colors)
    side = math.isqrt(ids_BT.shape[1])
    left, here = _neighbours(train_BT, side)
    pairs_KK = np.bincount(left * colors + here, minlength=colors**2).reshape(colors, colors)
    bigram_KK = (pairs_KK + 100 * unigram_K) / (pairs_KK.sum(1, keepdims=True) + 100)
    left, here = _neighbours(ids_BT, side)
    total = -np.log(unigram_K[ids_BT.reshape(-1, side)[:, 0]]).sum() - np.log(bigram_KK[left, here]).sum()
    return {
        "unigram_nats_per_token": round(float(-np.log(unigram_K[ids_BT]).mean()), 4),
        "left_neighbour_nats_per_token": round(float(total / ids_BT.size), 4),
    }


def _neighbours(ids_BT: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = ids_BT.reshape(-1, side)
    return rows[:, :-1].ravel(), rows[:, 1:].ravel()


def rmse(pipeline: ImageGPT, pictures: NDArray[np.uint8]) -> float:
    """What the palette loses: root mean square error of its colours, in 0..255."""
    back = pipeline.codec.decode(pipeline.codec.encode(pictures))
    return float(np.sqrt(np.mean((back.astype(np.float64) - pictures) ** 2)))


def write_card(pipeline: ImageGPT, figures: dict[str, Any]) -> None:
    """Write evaluation.json, samples.png and README.md into the model's folder."""
    folder = pipeline.path
    write_text(folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    sheet = sample_sheet(pipeline.sample(SAMPLES, seed=SAMPLE_SEED).images[0])
    write_whole(folder / "samples.png", sheet.save)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    facts = training["recipe"] | training | figures | {"sample_seed": SAMPLE_SEED, "samples": SAMPLES}
    facts["minutes"] = round(training["seconds"] / 60)
    facts["pictures_seen"] = facts["steps"] * facts["batch"]
    facts["parameters"] = f"{pipeline.spec.num_parameters:,}"
    template = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    write_text(folder / "README.md", template.substitute(facts))


if __name__ == "__main__":
    cyclopts.run(card)
