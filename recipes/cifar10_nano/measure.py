"""Measure everything that the embedded model's card says, and write the card.

    python recipes/cifar10_nano/measure.py --data DIR --write

DIR has train.parquet and validation.parquet. Each figure is a stage, whose result is a JSON file in results/: a stage
whose file is there for this model is not run again, and one that was interrupted goes on. On two CPU cores all of them
take two to four hours, most of which are the features of all pictures and the fine-tuning; --stage NAME runs some.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from card import SAMPLE_SEED, SAMPLES, write_card
from counting import Counting
from imagegpt import ImageGPT, __version__, checkpoint
from imagegpt.cli.output import working
from imagegpt.codec.quality import Quality
from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.engine.score import bits_per_dim
from imagegpt.files import cache_folder, make_folder, write_text, write_whole
from imagegpt.probe.cache import cached_features
from imagegpt.probe.neighbours import nearest
from imagegpt.sheet import comparison_sheet

RESULTS = Path(__file__).parent / "results"
LEFT_NEIGHBOUR = Path(__file__).parents[2] / "docs" / "completions-left-neighbour.png"
INT8_PICTURES = 1000  # a score in int8 takes the steps of sampling
LABELS = "4,25,400"  # a class: the paper's
CELL = 64
SHOWN, SEED = 10, 0  # completions on the sheets: the first so many validation pictures


@dataclass(frozen=True)
class Measured:
    """The model, the data, and where things lie.

    Args:
        model: "nano" or a model folder.
        data: folder with train.parquet and validation.parquet.
        work: folder for what is large.
    """

    model: str
    data: Path
    work: Path

    @cached_property
    def pipeline(self) -> ImageGPT:
        """The model, in float32."""
        return ImageGPT.from_pretrained(self.model)

    def pixels(self, split: str) -> NDArray[np.uint8]:
        """All pictures of a split, (n, height, width, 3)."""
        records = read_records(open_source(f"{self.data}:{split}"))
        return np.stack([np.asarray(picture) for _, picture in records])

    def ids(self, split: str) -> NDArray[np.int64]:
        """Their ids, (n, T)."""
        return self.pipeline.codec.encode(self.pixels(split)).reshape(-1, self.pipeline.spec.n_positions)

    @cached_property
    def train_ids(self) -> NDArray[np.int64]:
        """The training pictures'."""
        return self.ids("train")

    @cached_property
    def validation_ids(self) -> NDArray[np.int64]:
        """The validation pictures'."""
        return self.ids("validation")

    @cached_property
    def counting(self) -> Counting:
        """What counting has learnt of the training pictures."""
        return Counting(self.train_ids, self.pipeline.grid[1], len(self.pipeline.codec))

    def command(self, *arguments: str) -> None:
        """Run a verb of the package."""
        subprocess.run([sys.executable, "-m", "imagegpt", *arguments], check=True)


def likelihood(of: Measured) -> dict[str, Any]:
    """nats/token on the validation pictures, with what counting models and the palette lose."""
    nats_B = _scores(of.pipeline, of.validation_ids)
    mean, error = float(nats_B.mean()), float(nats_B.std(ddof=1) / len(nats_B) ** 0.5)
    loss = Quality(of.pipeline.codec)
    loss.add(of.pixels("validation"))
    return {
        "pictures": len(nats_B),
        "nats_per_token": round(mean, 4),
        "standard_error": round(error, 4),
        "confidence_95": [round(mean - 1.96 * error, 4), round(mean + 1.96 * error, 4)],
        "bits_per_dim_of_palette_ids": round(bits_per_dim(mean, 3), 4),
        **of.counting.nats_per_token(of.validation_ids),
        "palette_rmse_0_255": round(loss.result()["rmse"], 2),
        "precision": "float32",
    }


def int8(of: Measured) -> dict[str, Any]:
    """What eight bits cost, on the first validation pictures."""
    ids_BT = of.validation_ids[:INT8_PICTURES]
    small = ImageGPT.from_pretrained(of.model, precision="int8")
    exact, eight = _scores(of.pipeline, ids_BT).mean(), _scores(small, ids_BT).mean()
    return {
        "pictures": len(ids_BT),
        "fp32_nats_per_token": round(float(exact), 4),
        "int8_nats_per_token": round(float(eight), 4),
        "difference_percent": round(float(100 * (eight / exact - 1)), 3),
    }


def probe(of: Measured) -> dict[str, Any]:
    """The linear probes of all layers and of pixels, and few labels at the best layer."""
    out = of.work / "probe"
    splits = ["--train", f"{of.data}:train", "--test", f"{of.data}:validation"]
    of.command("probe", *splits, "--model", of.model, "--labels-per-class", LABELS, "--out", str(out))
    curve, few = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("curve.json", "low_data.json"))
    rows = [
        {"name": row["name"], "top1": round(row["metrics"]["top1"], 4), "top5": round(row["metrics"]["top5"], 4)}
        for row in curve["rows"]
    ]
    kept = ("labels_per_class", "mean", "deviation")
    few_labels = [{name: row[name] for name in kept} for row in few["rows"]]
    return {"rows": rows, "few_labels": few_labels, "few_labels_layers": few["layers"], "folds": few["folds"]}


def finetuned(of: Measured) -> dict[str, Any]:
    """The accuracy after fine-tuning by the package's recipe."""
    run, out = of.work / "finetuned", of.work / "evaluation"
    splits = ["--train", f"{of.data}:train", "--validation", f"{of.data}:validation"]
    of.command("finetune", "--recipe", "cifar10-nano", *splits, "--model", of.model, "--out", str(run))
    how = ["--precision", "bf16", "--backend", "torch"]
    of.command("evaluate", str(run / "model"), "--data", f"{of.data}:validation", "--out", str(out), *how)
    return told_of_classifier(json.loads((out / "evaluation.json").read_text(encoding="utf-8")))


def told_of_classifier(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an `imagegpt evaluate`."""
    names = {"accuracy": "top1", "top5": "top5", "calibration_error": "calibration_error"}
    return {name: round(evaluation[measure], 4) for name, measure in names.items()}


def memorisation(of: Measured) -> dict[str, Any]:
    """How near the card's samples, and as many validation pictures, are to their nearest training pictures.

    By pixels: root mean square difference of colours, in 0..255, the training picture as it is or mirrored.
    By features: the cosine at the middle layer.
    """
    pipeline = of.pipeline
    sampled = pipeline.sample(SAMPLES, seed=SAMPLE_SEED).ids
    sides = {"samples": sampled, "validation": of.validation_ids[:SAMPLES]}
    train_NP = _flat(pipeline, of.train_ids)
    layer = pipeline.spec.n_layer // 2
    train_ND = _features(of, layer)
    told: dict[str, Any] = {"layer": layer, "pictures": SAMPLES}
    for side, ids_BT in sides.items():
        distance_B, index_B = nearest_pixels(_flat(pipeline, ids_BT), train_NP, pipeline.grid)
        cosine_BK, like_BK = nearest(pipeline.features_of(ids_BT, [layer])[layer], train_ND, 1)
        told[side] = {
            "pixel_rmse": [round(float(value), 2) for value in np.sort(distance_B)],
            "feature_cosine": [round(float(value), 4) for value in np.sort(cosine_BK[:, 0])],
            "copies": int((distance_B == 0).sum()),
        }
        if side == "samples":
            parts = {"sample": ids_BT, "by pixels": of.train_ids[index_B], "by features": of.train_ids[like_BK[:, 0]]}
            write_whole(of.work / "neighbours.png", _sheet(pipeline, parts).save)
    return told


STAGES: dict[str, Callable[[Measured], dict[str, Any]]] = {
    "likelihood": likelihood,
    "int8": int8,
    "probe": probe,
    "finetuned": finetuned,
    "memorisation": memorisation,
}


def completions(of: Measured) -> dict[str, Image.Image]:
    """The first validation pictures' completions by the model and by the counting one, one sheet each."""
    ids_BT, given = of.validation_ids[:SHOWN], of.pipeline.spec.n_positions // 2
    pictures = [Image.fromarray(pixels) for pixels in of.pixels("validation")[:SHOWN]]
    by_model = of.pipeline.complete(pictures, num_samples=1, seed=SEED).ids
    by_counting = of.counting.complete(ids_BT, given, np.random.default_rng(SEED))
    half_BT = np.where(np.arange(ids_BT.shape[1]) < given, ids_BT, -1)
    painted = {"model": by_model, "counting": by_counting}
    return {name: _sheet(of.pipeline, {"seen": half_BT, "painted": ids}) for name, ids in painted.items()}


def _sheet(pipeline: ImageGPT, rows: Mapping[str, NDArray[np.int64]]) -> Image.Image:
    """The first pictures of each row of ids, under its words."""
    pictures = {
        words: np.stack([np.asarray(image) for image in pipeline.decode(ids[:SHOWN])]) for words, ids in rows.items()
    }
    return comparison_sheet(pictures, CELL)


def _scores(pipeline: ImageGPT, ids_BT: NDArray[np.int64]) -> NDArray[np.float64]:
    """nats/token of each picture."""
    with working(f"scoring in {pipeline.precision}", "pictures") as progress:
        return pipeline.score_ids(ids_BT, progress=progress).nats_per_token


def _flat(pipeline: ImageGPT, ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
    """Colours (pictures, numbers), as the model sees them."""
    pixels = pipeline.codec.decode(ids_BT.reshape(-1, *pipeline.grid))
    return pixels.reshape(len(ids_BT), -1).astype(np.float32)


def nearest_pixels(
    x_BP: NDArray[np.float32], train_NP: NDArray[np.float32], grid: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The least difference of each picture to a training picture or its mirror image, and that one's number."""
    mirrored_BP = x_BP.reshape(-1, *grid, 3)[:, :, ::-1].reshape(x_BP.shape)
    best_B, index_B = np.full(len(x_BP), np.inf), np.zeros(len(x_BP), np.int64)
    for start in track(range(0, len(train_NP), 1000), "comparing pixels"):
        part_MP = train_NP[start : start + 1000]
        for each_BP in (x_BP, mirrored_BP):
            squares_BM = ((each_BP[:, None] - part_MP[None]) ** 2).mean(2)
            nearest_B = squares_BM.argmin(1)
            values_B = squares_BM[np.arange(len(x_BP)), nearest_B]
            index_B = np.where(values_B < best_B, start + nearest_B, index_B)
            best_B = np.minimum(best_B, values_B)
    return np.sqrt(best_B), index_B


def _features(of: Measured, layer: int) -> NDArray[np.float32]:
    """The training pictures' features: the probe's, or made here."""
    source = open_source(f"{of.data}:train")
    with working("training pictures", "pictures") as progress:
        found = cached_features(of.pipeline, source, [layer], cache_folder() or of.work / "probe", progress=progress)
    return np.asarray(found.layers[layer])


def measure(
    *,
    data: Path,
    model: str = "nano",
    stage: list[str] | None = None,
    work: Path = Path("runs/nano-card"),
    write: bool = False,
) -> None:
    """Run the stages whose results are missing.

    Args:
        data: folder with train.parquet and validation.parquet.
        model: "nano" or a model folder.
        stage: of which stages; default: all.
        work: folder for features and runs.
        write: then write the card, its pictures, and the counting model's completions beside docs/nano.md.
    """
    of = Measured(model, data.resolve(), work)
    make_folder(work)
    make_folder(RESULTS)
    fingerprint = checkpoint.fingerprint(of.pipeline.path)
    for name in stage or STAGES:
        path = RESULTS / f"{name}.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
            print(f"{name}: known")
            continue
        found = {"fingerprint": fingerprint, "imagegpt": __version__, "torch": torch.__version__, **STAGES[name](of)}
        write_text(path, json.dumps(found, indent=2) + "\n")
        print(f"{name}: measured")
    if write:
        sheets = completions(of)
        write_whole(LEFT_NEIGHBOUR, sheets["counting"].save)
        write_card(of.pipeline, RESULTS, sheets["model"])


if __name__ == "__main__":
    cyclopts.run(measure)
