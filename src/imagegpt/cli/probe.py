"""imagegpt probe"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from imagegpt.cli.options import DataOptions, Json, ModelOptions, Whole, parse_layers
from imagegpt.cli.output import print_record, working
from imagegpt.data.ids import read_ids
from imagegpt.data.records import Source
from imagegpt.data.targets import check_labelled
from imagegpt.engine.features import layers_of
from imagegpt.errors import InputError, Interrupted, check_count
from imagegpt.feature_file import Features, read_features
from imagegpt.files import cache_folder
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.cache import cached_features
from imagegpt.probe.study import Study
from imagegpt.probe.sweep import Curve
from imagegpt.sequence import unflatten

FILE = ".safetensors"


def probe(
    *,
    train: str,
    test: str,
    layers: str = "all",
    solver: Literal["auto", "lbfgs", "sgd", "sklearn"] = "auto",
    concatenate: list[str] | None = None,
    labels_per_class: str | None = None,
    folds: Whole = 5,
    pixels: bool = True,
    knn: bool = True,
    ridge: bool = True,
    seed: Whole = 0,
    out: Path = Path("probe"),
    model: ModelOptions | None = None,
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Find out which layer knows the classes best: a linear probe on each, the accuracy on other pictures.

    Writes curve.json, curve.png, confusion.png and probe.safetensors, the best layer's probe for `imagegpt classify`.
    Features are kept in the cache folder by the content of model and data, so a second run only fits; a stopped run
    continues with the same command.

    Args:
        train: pictures with labels to fit to; see docs/data.md. Or a .safetensors file of `imagegpt features`.
        test: pictures with labels to judge by; the same.
        layers: 12, or 4,8,12, or all.
        solver: lbfgs, sgd for more features than memory, sklearn for comparison; auto chooses between the first two.
        concatenate: layers, among --layers, to probe side by side, such as 3,4,5; may be given several times.
        labels_per_class: the low-data protocol with so many labels a class, such as 4,25,400, at the best layer.
        folds: random subsets for each of these.
        pixels: probe the pixels too, as the baseline.
        knn: measure nearest neighbours too.
        ridge: measure ridge regression too.
        seed: of what is held out, and of subsets.
        out: folder for the results.
        model: which model, and how it runs.
        options: which records count.
        json_: print the whole curve as JSON.
    """
    began = time.perf_counter()
    model, options = model or ModelOptions(), options or DataOptions()
    check_count("--folds", folds)
    few = [] if labels_per_class is None else _numbers(labels_per_class, "--labels-per-class")
    joined = [_numbers(text, "--concatenate") for text in concatenate or []]
    try:
        found, raw = _features(train, test, layers, pixels, model, options, out)
        settings = {"solver": solver, "knn": knn, "ridge": ridge, "seed": seed, "device": model.device}
        study = Study(*found, out, model.model, raw, joined, settings)
        with working("fitting", "layers") as progress:
            curve = study.curve(progress)
        low = []
        if few:
            with working("few labels", "fits") as progress:
                low = study.few_labels(curve.best.layers, few, folds, progress)
    except KeyboardInterrupt:
        raise Interrupted("Interrupted; what is done is kept: the same command continues.") from None
    written = [str(path) for path in sorted(out.iterdir()) if path.suffix in (".json", ".png", FILE)]
    record = {"written": written, "best": curve.best.name, "top1": curve.best.metrics.top1}
    record |= {"skipped": [sentence for side in found for sentence in side.facts.get("skipped", [])]}
    record |= {"seconds": round(time.perf_counter() - began, 3)}
    if json_:
        print_record({**record, **curve.as_dict(), "low_data": low}, True)
    else:
        _print(curve, low)
        print_record(record, False)


def _features(
    train: str,
    test: str,
    layers: str,
    pixels: bool,
    model: ModelOptions,
    options: DataOptions,
    out: Path,
) -> tuple[tuple[Features, Features], tuple[NDArray[Any], NDArray[Any]] | None]:
    """Features of both sides, from files or through the cache, and their pixels."""
    files = [data.endswith(FILE) for data in (train, test)]
    if all(files):
        first, second = (_only(read_features(data), layers) for data in (train, test))
        return (first, second), None
    if any(files):
        raise InputError("Give files of features for both --train and --test, or pictures for both.")
    sources = [options.open(data) for data in (train, test)]
    for source in sources:
        check_labelled(source)
    opened = model.open()
    wanted = layers_of(parse_layers(layers), opened.spec.n_layer)
    folder = cache_folder() or out
    sides = []
    for words, source in zip(("training pictures", "test pictures"), sources, strict=True):
        with working(words, "pictures", before="loading the model") as progress:
            sides.append(cached_features(opened, source, wanted, folder, options.on_error, progress))
    raw = tuple(_pixels(opened, source, options) for source in sources) if pixels else None
    return (sides[0], sides[1]), raw  # pyright: ignore[reportReturnType]


def _only(features: Features, layers: str) -> Features:
    """The layers that are asked for, of those that a file has."""
    there = sorted(features.layers)
    wanted = there if layers == "all" else layers_of(parse_layers(layers), max(there))
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise InputError(f"The file of features has the layers {', '.join(map(str, there))}, not {missing[0]}.")
    kept = {layer: features.layers[layer] for layer in wanted}
    return Features(kept, features.numbers, features.labels, features.facts)


def _pixels(model: ImageGPT, source: Source, options: DataOptions) -> NDArray[np.float32]:
    """The pictures' pixels as the model sees them, (N, H * W * 3) in [0, 1]."""
    batches = read_ids(source, model.codec, model.framing, options.on_error)
    pixels = [model.codec.decode(unflatten(batch.ids_BT, model.grid)).reshape(len(batch), -1) for batch in batches]
    return np.divide(np.concatenate(pixels), 255, dtype=np.float32)


def _numbers(text: str, name: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: give numbers with commas between them, not {text!r}.") from None
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"{name}: give different numbers of at least 0, not {text!r}.")
    return numbers


def _print(curve: Curve, low: list[dict[str, Any]]) -> None:
    table = Table("layer", "top-1 %", "top-5 %", "neighbours %", "ridge %", "strength")
    for row in curve.rows:
        numbers = (row.metrics.top1, row.metrics.top5, row.knn, row.ridge)
        cells = ["" if number is None else f"{100 * number:.2f}" for number in numbers]
        table.add_row(row.name, *cells, f"{row.strength:.1e}", style="bold" if row is curve.best else "")
    Console(emoji=False).print(table)
    if low:
        table = Table("labels a class", "top-1 %", "deviation", "subsets")
        for row in low:
            deviation = "" if row["deviation"] is None else f"{100 * row['deviation']:.2f}"
            cells = (row["labels_per_class"], f"{100 * row['mean']:.2f}", deviation, len(row["accuracies"]))
            table.add_row(*map(str, cells))
        Console(emoji=False).print(table)
