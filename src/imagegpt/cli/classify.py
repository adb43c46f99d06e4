"""imagegpt classify"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagegpt.checkpoint import fingerprint
from imagegpt.classifier import SURE, Classifier
from imagegpt.cli.options import Json, PredictionOptions, RecordOptions, RunOptions, Whole, open_images
from imagegpt.cli.output import print_record, working
from imagegpt.codec.pictures import OnError
from imagegpt.data.ids import BATCH, Ids, read_ids
from imagegpt.data.records import Source
from imagegpt.errors import InputError, check_count
from imagegpt.painting import Progress
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.probe_file import load_probe


def classify(
    images: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    /,
    *,
    model: str | None = None,
    probe: Path | None = None,
    top: Whole = 3,
    how: PredictionOptions | None = None,
    run: RunOptions | None = None,
    options: RecordOptions | None = None,
    json_: Json = False,
) -> None:
    """Tell what pictures show, by a fine-tuned model or by a probe that `imagegpt probe` has made.

    Args:
        images: picture files, or one DATA: a folder, a table, shards and more; see docs/data.md.
        model: a model folder with a class head, as `imagegpt finetune` writes it, or a Hugging Face Hub id; with
            --probe the model that the probe was fitted to, where it lies elsewhere by now.
        probe: the .safetensors file of a probe.
        top: classes that are told, the likeliest first.
        how: how a model with a class head predicts.
        run: how the model runs.
        options: which records count.
        json_: print it as JSON.
    """
    check_count("--top", top)
    how, run, options = how or PredictionOptions(), run or RunOptions(), options or RecordOptions()
    if probe is None and model is None:
        raise InputError("Give --model DIR, a model with a class head, or --probe FILE.")
    judge = _by_head(str(model), how, run) if probe is None else _by_probe(probe, model, how, run)
    source, skipped, told = open_images(images, options.limit), [], []
    streams = len(source) > BATCH and not json_  # tables then show how far it is
    words = nullcontext() if streams else working("classifying", "pictures", before="loading the model")
    with words as progress:
        for batch, numbers_BC in judge.predict(source, options.on_error, progress):
            skipped += batch.skipped
            entries = [_entry(name, row, judge, top) for name, row in zip(batch.names, numbers_BC, strict=True)]
            if streams:
                _print(entries)
            else:
                told += entries
    if json_:
        print_record({**judge.facts, "problem": judge.problem, "images": told, "skipped": skipped}, True)
        return
    if not streams:
        _print(told)
    for sentence in skipped:
        Console(emoji=False, soft_wrap=True).print(f"skipped: {sentence}", highlight=False, markup=False)


@dataclass(frozen=True)
class _Judge:
    """What tells: a model's own class head, or a probe and the model that it reads."""

    classes: tuple[str, ...]
    problem: str
    facts: dict[str, Any]
    predict: Callable[[Source, OnError, Progress | None], Iterator[tuple[Ids, NDArray[np.float32]]]]


def _by_head(model: str, how: PredictionOptions, run: RunOptions) -> _Judge:
    classifier, asked = Classifier.from_pretrained(model, **run.how()), vars(how)
    classifier.check_votes(how.votes, how.seed)
    facts = {"model": str(classifier.path), **asked}
    return _Judge(
        classifier.classes,
        classifier.problem,
        facts,
        lambda source, on_error, progress: classifier.predict_source(
            source, **asked, on_error=on_error, progress=progress
        ),
    )


def _by_probe(path: Path, model: str | None, how: PredictionOptions, run: RunOptions) -> _Judge:
    if how != PredictionOptions():
        raise InputError("--views, --votes and --seed are for models with a class head: leave them out with --probe.")
    saved = load_probe(path)
    if not saved.layers:
        raise InputError(f"{path} is a baseline's: it reads no layer of a model.")
    opened = ImageGPT.from_pretrained(model or saved.model, **run.how())
    if fingerprint(opened.path) != saved.fingerprint:
        raise InputError(f"{path} was fitted to another model than {opened.path}: name its own with --model.")

    def predict(
        source: Source, on_error: OnError, progress: Progress | None
    ) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        backend, length = opened.feature_backend(saved.layers, len(source)), len(source)
        for batch in read_ids(source, opened.codec, opened.framing, on_error):
            if not len(batch):
                yield batch, np.empty((0, len(saved.classes)), np.float32)
                continue
            tell = progress and (lambda done, _, before=int(batch.numbers[0]): progress(before + done, length))
            found = opened.features_of(batch.ids_BT, saved.layers, backend=backend, progress=tell)
            yield batch, saved.probe.probabilities(np.concatenate(list(found.values()), 1))

    facts = {"probe": str(path), "model": saved.model}
    return _Judge(saved.classes, "single_label_classification", facts, predict)


def _entry(name: str, told_C: NDArray[np.float32], judge: _Judge, top: int) -> dict[str, Any]:
    """What is told of a picture, the likeliest class first; the numbers of a regression in their order."""
    if judge.problem == "regression":
        return {"image": name, "values": dict(zip(judge.classes, told_C.tolist(), strict=True))}
    likeliest = np.argsort(-told_C, kind="stable")[:top]
    entry: dict[str, Any] = {"image": name, "classes": {judge.classes[at]: float(told_C[at]) for at in likeliest}}
    if judge.problem == "multi_label_classification":
        entry["labels"] = [judge.classes[at] for at in np.flatnonzero(told_C >= SURE)]
    return entry


def _print(entries: list[dict[str, Any]]) -> None:
    """A table; the labels that a picture is sure to have are marked."""
    values = any("values" in entry for entry in entries)
    table = Table("picture", "output" if values else "class", "number" if values else "probability")
    for entry in entries:
        for name, number in (entry.get("values") or entry["classes"]).items():
            mark = " *" if name in entry.get("labels", ()) else ""
            table.add_row(escape(entry["image"]), escape(name), f"{number:.3f}{mark}")
    Console(emoji=False).print(table)
