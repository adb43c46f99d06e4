"""imagegpt score"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from imagegpt.cli.options import DataOptions, Json, ModelOptions, Whole, place_among_processes
from imagegpt.cli.output import keeping, print_record, working
from imagegpt.cli.score_output import CsvPrinter, JsonPrinter, Printer, TablePrinter
from imagegpt.codec.codec import dims_of
from imagegpt.engine.score import bits_per_dim
from imagegpt.errors import InputError
from imagegpt.files import check_folder, check_writable
from imagegpt.parts import folder_of
from imagegpt.score_file import check_format, entries, read_scores
from imagegpt.score_pictures import ScorePictures
from imagegpt.scoring import Scoring, Watch


def score(
    data: str,
    /,
    *,
    out: Path | None = None,
    heatmap: Path | None = None,
    maps: Annotated[bool, Parameter(negative="")] = False,
    passes: Whole | None = None,
    steps: Annotated[bool, Parameter(negative="")] = False,
    batch_size: Whole | None = None,
    model: ModelOptions | None = None,
    options: DataOptions | None = None,
    json_: Json = False,
    csv_: Annotated[bool, Parameter("--csv", negative="")] = False,
) -> None:
    """Tell how likely pictures are: log-likelihood in nats, nats/token, and bits/dim of the codec's ids.

    With --out, stopped runs continue with the same command, and several processes share the work after
    `torchrun --nproc-per-node 2 --no-python --`.

    Args:
        data: pictures: a picture, a folder, a table, shards, a data set and more, perhaps DATA:split; see docs/data.md.
        out: a file for the scores: .csv, or .safetensors, .npz, .parquet; default: they are printed.
        heatmap: a folder for a PNG of each picture with its surprise and its entropy, and sheets of the likeliest and
            the least likely ones.
        maps: keep surprise and entropy of each id in --out (.safetensors, .npz, .parquet), in float16.
        passes: of a bidirectional (BERT) model, whose pseudo-likelihood is told: each id is hidden in one of so many.
        steps: run the very steps that would draw the pictures, as int8 always does; slow.
        batch_size: pictures that are run together; default: what is fastest.
        model: which model, and how it runs.
        options: which records count.
        json_: print it as JSON.
        csv_: print a line for each picture, as a table for programs.
    """
    model, options = model or ModelOptions(), options or DataOptions()
    if json_ and csv_:
        raise InputError("--json and --csv print the same in two ways: give one of them.")
    if maps and out is None:
        raise InputError("--maps are kept in a file: give --out FILE too, or see --heatmap DIR.")
    if csv_ and out is not None:
        raise InputError("--csv prints the scores: leave it out with --out, which writes them.")
    if heatmap is not None:
        check_folder(heatmap)
    if out is not None:
        check_format(out, maps)
        check_writable(out)
    source = options.open(data)
    run = Scoring(model.open(), source, passes, steps, maps, options.on_error, batch_size)
    pictures = None if heatmap is None else ScorePictures(heatmap, run)
    if out is None:
        _print(run, pictures, JsonPrinter() if json_ else CsvPrinter() if csv_ else TablePrinter())
    else:
        _write(run, out, pictures, json_)


def _write(run: Scoring, out: Path, pictures: ScorePictures | None, as_json: bool) -> None:
    began = time.perf_counter()
    rank, processes = place_among_processes()
    watch: Watch | None = None if pictures is None else pictures.draw
    with keeping(folder_of(out)), working("scoring", "pictures", before="loading the model") as progress:
        made = run.run(out, rank, processes, progress if rank == 0 else None, watch)
    if rank:
        return
    seconds = time.perf_counter() - began
    numbers, log_likelihoods, facts = read_scores(out)
    written = [str(out), *([] if pictures is None else pictures.draw_sheets(numbers, log_likelihoods))]
    summary = _summary(log_likelihoods, run)
    record = {"written": written, "made": made, **summary, "backend": facts["backend"]}
    record |= {"seconds": round(seconds, 3), "pictures_per_s": round(made / seconds, 2)}
    print_record(record, as_json)


def _print(run: Scoring, pictures: ScorePictures | None, printer: Printer) -> None:
    """Print the scores as they come: of each picture but two numbers stay in memory."""
    numbers, log_likelihoods, skipped = [], [], []
    with working("scoring", "pictures", before="loading the model") as progress:
        for batch, scores in run.stream(progress=progress):
            if pictures is not None:
                pictures.draw(batch, scores)
            printer.tell(entries(batch, scores))
            numbers.append(batch.numbers)
            log_likelihoods.append(scores.log_likelihood)
            skipped += batch.skipped
    told = np.concatenate(numbers), np.concatenate(log_likelihoods)
    if not len(told[0]):
        raise InputError(f"{run.source.path}: none of its {len(skipped)} pictures can be read: {skipped[0]}")
    if pictures is not None:
        pictures.draw_sheets(*told)
    printer.end({"model": str(run.model.path), **_summary(told[1], run), "skipped": skipped})


def _summary(log_likelihoods: NDArray[np.float64], run: Scoring) -> dict[str, Any]:
    """What is told of all pictures together."""
    nats = -log_likelihoods / run.model.spec.n_positions
    mean = float(nats.mean())
    told: dict[str, Any] = {"pictures": len(nats), "method": run.method, "nats_per_token": mean}
    if len(nats) > 1:
        told["standard_error"] = float(nats.std(ddof=1) / len(nats) ** 0.5)
    return told | {"bits_per_dim": bits_per_dim(mean, dims_of(run.model.codec)), "codec": run.model.codec.name}
