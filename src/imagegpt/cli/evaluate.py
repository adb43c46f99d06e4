"""imagegpt evaluate"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagegpt import __version__
from imagegpt.checkpoint import fingerprint
from imagegpt.classifier import Classifier
from imagegpt.cli.options import DataOptions, Json, PredictionOptions, RunOptions
from imagegpt.cli.output import print_record, working
from imagegpt.errors import MissingExtra
from imagegpt.evaluation import Evaluation, Report
from imagegpt.files import check_folder, make_folder, write_text
from imagegpt.probe.plot import plot_confusion, plot_reliability

WORST = 20  # classes that are shown to people


def evaluate(
    model: str,
    /,
    *,
    data: str,
    out: Path = Path("evaluation"),
    nats: bool = True,
    how: PredictionOptions | None = None,
    run: RunOptions | None = None,
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Find out how good a classifier is on pictures that it has not seen.

    Of one class a picture: top-1 and top-5 accuracy, accuracy by class, confusions, and calibration (the expected
    calibration error with 15 bins, the negative log-likelihood, the Brier score). Of several labels: mean average
    precision, F1 (micro) and exact matches at a probability of a half. Of a regression: MSE, MAE and R2.

    Writes evaluation.json and, of one class a picture, confusion.png and reliability.png.

    Args:
        model: a model folder with a class head, as `imagegpt finetune` writes it, or a Hugging Face Hub id.
        data: pictures with labels, or the ids of such; see docs/data.md. Classes are matched by their names where the
            data has names, else by their numbers.
        out: folder for the results.
        nats: measure nats/token too, where the model has kept the head that draws: one more forward.
        how: how it predicts.
        run: how the model runs.
        options: which records count.
        json_: print it as JSON.
    """
    began = time.perf_counter()
    how, options = how or PredictionOptions(), options or DataOptions()
    check_folder(out)
    classifier = Classifier.from_pretrained(model, **(run or RunOptions()).how())
    source = options.open(data)
    evaluation = Evaluation(classifier, source, **vars(how), on_error=options.on_error, nats=nats)
    with working("evaluating", "pictures", before="reading labels, loading the model") as progress:
        report = evaluation.run(progress)
    facts = {"model": model, "fingerprint": fingerprint(classifier.path), "problem": classifier.problem, "data": data}
    facts |= {**vars(how), "precision": classifier.precision, "imagegpt": __version__}
    make_folder(out)
    write_text(out / "evaluation.json", json.dumps({**facts, **report.as_dict()}, indent=2) + "\n")
    written = [str(out / name) for name in ("evaluation.json", *_draw(out, report))]
    record = {**facts, **report.as_dict(), "written": written, "seconds": round(time.perf_counter() - began, 3)}
    if json_:
        print_record(record, True)
    else:
        _print(report)
        told = ("pictures", *report.measures, "skipped", "written", "seconds")
        print_record({name: record[name] for name in told}, False)


def _draw(out: Path, report: Report) -> list[str]:
    """Write the pictures that there are; their names."""
    if report.confusion_CC is None or report.reliability is None:
        return []
    try:
        plot_confusion(out / "confusion.png", report.confusion_CC, report.classes)
        plot_reliability(out / "reliability.png", report.reliability)
    except MissingExtra as missing:  # the numbers are worth keeping without
        warnings.warn(f"No pictures were drawn. {missing}", stacklevel=2)
        return []
    return ["confusion.png", "reliability.png"]


def _print(report: Report) -> None:
    """The classes that are known worst, of many."""
    if report.per_class is None:
        return
    name, values_C = report.per_class
    order = [at for at in np.argsort(values_C, kind="stable") if not np.isnan(values_C[at])]
    shown = order[:WORST] if len(order) > WORST else sorted(order)
    rest = f"the worst {WORST} of {len(order)} classes" if len(order) > WORST else "class"
    table = Table(rest, f"{name.replace('_', ' ')} %")
    for at in shown:
        table.add_row(escape(report.classes[at]), f"{100 * values_C[at]:.2f}")
    Console(emoji=False).print(table)
