"""imagegpt anomaly"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, TextIO

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imagegpt.anomaly.compressors import Compressor
from imagegpt.anomaly.detector import FPR, HOLDOUT, Detector
from imagegpt.anomaly.judging import Judgement, judge
from imagegpt.anomaly.methods import DEFAULT, METHODS, Method
from imagegpt.anomaly.survey import COLUMNS, Row, Survey
from imagegpt.cli.options import Json, ModelOptions, RecordOptions, Whole
from imagegpt.cli.output import print_record, working
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.files import check_writable, write_whole
from imagegpt.painting import Progress

anomaly = App(name="anomaly", help="Find pictures that are unlike normal ones.")
TABLE = 256  # pictures in a table for people; of more several are printed, as they come
Write = Callable[[list[Row]], None]


@anomaly.command
def fit(
    *,
    normal: str,
    out: Path,
    fpr: float = FPR,
    holdout: float = HOLDOUT,
    seed: Whole = 0,
    compressor: Compressor = "png",
    model: ModelOptions | None = None,
    options: RecordOptions | None = None,
    json_: Json = False,
) -> None:
    """Learn what normal pictures are like, and set thresholds.

    Chance splits the normal pictures: half are counted by a small model of neighbouring ids, which needs no network; a
    quarter has its numbers taken as reference; a quarter is held out and sets the thresholds.

    Args:
        normal: DATA that holds nothing but normal pictures; see docs/data.md.
        out: a .safetensors file.
        fpr: the part of normal pictures that may be flagged by mistake.
        holdout: the part that sets the thresholds; of the rest two thirds are counted, a third is the reference.
        seed: of the split.
        compressor: what measures complexity: png, webp or zlib.
        model: which model, and how it runs.
        options: which records count.
        json_: print what was made as JSON.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: give a file that ends in .safetensors.")
    check_writable(out)
    began = time.perf_counter()
    model, options = model or ModelOptions(), options or RecordOptions()
    source = open_source(normal, limit=options.limit)
    opened = model.open()
    how = {"fpr": fpr, "holdout": holdout, "seed": seed, "compressor": compressor, "name": model.model}
    with working("scoring normal pictures", "pictures", before="counting neighbours, loading the model") as progress:
        detector = Detector.fit(opened, source, on_error=options.on_error, progress=progress, **how)
    detector.save(out)
    heldout, limits = detector.heldout, detector.thresholds()
    methods = {name: {"threshold": limits[name], "mean": float(heldout[name].mean())} for name in METHODS}
    counts = {
        "background": detector.facts.background,
        "reference": len(detector.fitted.reference_NS),
        "held out": len(detector.fitted.heldout_HS),
    }
    record = {"written": str(out), "model": model.model, "normal": normal, "pictures": counts, "fpr": fpr, "seed": seed}
    record |= {"skipped": detector.skipped, "seconds": round(time.perf_counter() - began, 3)}
    if json_:
        print_record({**record, "methods": methods}, True)
        return
    table = Table("method", "threshold", "mean of normal pictures")
    for name, numbers in methods.items():
        table.add_row(name, f"{numbers['threshold']:.3f}", f"{numbers['mean']:.3f}")
    Console(emoji=False).print(table)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print_record({**record, "pictures": told}, False)


@anomaly.command
def score(
    file: Path,
    data: str,
    /,
    *,
    against: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    method: Method = DEFAULT,
    fpr: float | None = None,
    out: Path | None = None,
    model: str | None = None,
    device: str | None = None,
    backend: Literal["onnx", "torch"] | None = None,
    options: RecordOptions | None = None,
    csv_: Annotated[bool, Parameter("--csv", negative="")] = False,
    json_: Json = False,
) -> None:
    """Say of each picture how unlike the normal ones it is and how odd that is (the p-value); flag what is too odd.

    With --against, DATA are other normal pictures and those are anomalies: for each of them and each method the AUROC,
    the part of the anomalies that pass where 95 % of the normal pictures pass, and what is flagged.

    Args:
        file: written by `imagegpt anomaly fit`.
        data: pictures; see docs/data.md.
        against: anomalies: DATA, one or several.
        method: likelihood, typicality, ratio, complexity or density; what flags and gives the p-value.
        fpr: the part of normal pictures that may be flagged by mistake; default: the one of the file.
        out: write every picture with the scores of all methods into this .csv file, in the place of tables.
        model: where the model lies, if not where it lay when it was fitted.
        device: cpu, cuda or mps; default: the best one here.
        backend: onnx or torch; default: the faster one.
        options: which records count.
        csv_: print every picture as CSV.
        json_: print it as JSON, which is one text: of millions of pictures make CSV.
    """
    began, options, against = time.perf_counter(), options or RecordOptions(), against or []
    _check_outputs(out, csv_, json_)
    sources = [open_source(name, limit=options.limit) for name in (data, *against)]
    detector = Detector.load(file, model, device=device, backend=backend)
    limits = detector.thresholds(fpr)
    surveys = [Survey(detector, source, method, fpr, options.on_error, bool(against)) for source in sources]
    rows: list[Row] = []
    show: Write | None = None
    if csv_:
        show = _csv_writer(sys.stdout)
    elif json_ or len(sources[0]) <= TABLE:
        show = rows.extend
    elif out is None:
        show = _show
    if against and not csv_:
        show = None
    # Tables show by themselves how far it is.
    words = nullcontext() if show is _show else working("scoring", "pictures", before="loading the model")
    with words as progress:
        _go(surveys, show, out, progress)
    told: Row = {"detector": str(file), "model": detector.facts.model, "data": data, "method": method}
    told |= {"fpr": detector.facts.fpr if fpr is None else fpr, "threshold": limits[method]}
    told |= {"pictures": surveys[0].pictures, "flagged": surveys[0].flagged}
    told |= {"skipped": [sentence for survey in surveys for sentence in survey.skipped]}
    told |= {"written": str(out)} if out else {}
    told |= {"seconds": round(time.perf_counter() - began, 3)}
    if csv_:
        _tell_skipped(told["skipped"])
    elif against:
        _tell_judgements(told, surveys, limits, json_)
    elif json_:
        print_record({**told, "images": rows}, True)
    else:
        if rows and out is None:
            _show(rows)
        print_record(told, False)


def _tell_judgements(told: Row, surveys: list[Survey], limits: dict[str, float], json_: bool) -> None:
    """What the methods are worth on each kind of anomaly, which are all surveys but the first."""
    usual = surveys[0].scores()
    judged = [(survey.source.path, judge(usual, survey.scores(), limits)) for survey in surveys[1:]]
    if json_:
        told["against"] = [{"data": name, "methods": [asdict(one) for one in found]} for name, found in judged]
    else:
        _show_judgements(judged)
    print_record(told, json_)


def _tell_skipped(sentences: list[str]) -> None:
    for sentence in sentences:
        Console(emoji=False, stderr=True, soft_wrap=True).print(f"skipped: {sentence}", highlight=False, markup=False)


def _check_outputs(out: Path | None, csv_: bool, json_: bool) -> None:
    if csv_ and json_:
        raise InputError("Give --csv or --json, not both.")
    if out is not None:
        if out.suffix != ".csv":
            raise InputError(f"--out {out}: give a file that ends in .csv.")
        check_writable(out)


def _go(surveys: list[Survey], show: Write | None, out: Path | None, progress: Progress | None) -> None:
    """Score all pictures; the rows are shown, and written into a file, as they come."""
    if out is None:
        return _survey(surveys, [show], progress)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as text:
            _survey(surveys, [show, _csv_writer(text)], progress)

    return write_whole(out, write)


def _survey(surveys: list[Survey], sinks: Sequence[Write | None], progress: Progress | None) -> None:
    before, total = 0, sum(len(survey.source) for survey in surveys)
    for survey in surveys:
        tell = progress and (lambda done, _, before=before: progress(before + done, total))
        for rows in survey.rows(tell):
            for sink in sinks:
                if sink is not None:
                    sink(rows)
        before += len(survey.source)


def _csv_writer(file: TextIO) -> Write:
    """Writes the names of the columns now, and rows when it is called."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    return writer.writerows


def _show(rows: list[Row]) -> None:
    table = Table("picture", "score", "p-value", "")
    for row in rows:
        marked = "anomaly" if row["anomaly"] else ""
        table.add_row(escape(row["image"]), f"{row['score']:.3f}", f"{row['p_value']:.4f}", marked)
    Console(emoji=False).print(table)


def _show_judgements(judged: list[tuple[str, list[Judgement]]]) -> None:
    for name, methods in judged:
        table = Table("method", "AUROC", "FPR at 95 % TPR", "flagged", "normal flagged", title=escape(name))
        for found in methods:
            rates = [f"{100 * rate:.1f} %" for rate in (found.fpr95, found.found, found.mistaken)]
            table.add_row(found.method, f"{found.auroc:.3f}", *rates)
        Console(emoji=False).print(table)
