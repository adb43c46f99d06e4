"""From normal pictures to what a detector knows of them.

Shape suffixes: B pictures, N and H normal pictures, T ids, S statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.anomaly.background import Background, Counter
from imagegpt.anomaly.calibration import check_rate
from imagegpt.anomaly.compressors import Compressor, check_compressor, compressor_version
from imagegpt.anomaly.fitted import Facts, Fitted
from imagegpt.anomaly.splitting import split
from imagegpt.anomaly.statistics import STATISTICS, measure
from imagegpt.codec.pictures import OnError
from imagegpt.data.ids import Ids, read_ids
from imagegpt.data.records import Source
from imagegpt.engine.score import method_of
from imagegpt.errors import InputError
from imagegpt.painting import Progress
from imagegpt.pipeline import ImageGPT
from imagegpt.scoring import Scoring

MUTATION = 0.1  # part of the ids that are drawn anew before the background counts them (Ren et al. 2019)


def fit_to(
    model: ImageGPT,
    normal: Source,
    fpr: float,
    holdout: float,
    seed: int,
    compressor: Compressor,
    on_error: OnError,
    name: str,
    progress: Progress | None,
) -> tuple[Fitted, list[str]]:
    """Fit to normal pictures; see `Detector.fit`.

    Returns:
        What was learnt, and a sentence for each picture that was skipped.
    """
    check_compressor(compressor)
    check_rate(fpr)
    parts = split(normal, holdout, seed)
    check_rate(fpr, len(parts.heldout))  # before any work
    background, counted, skipped = _count(model, parts.background, seed, on_error)
    total, done, measured = len(parts.reference) + len(parts.heldout), 0, []
    backend = model.score_backend(total)
    for part in (parts.reference, parts.heldout):
        tell = progress and (lambda now, _, before=done: progress(before + now, total))
        rows = [np.empty((0, len(STATISTICS)))]  # the pictures' numbers are kept, their ids are not
        for batch, x_BS in measured_batches(model, part, background, compressor, backend, on_error, tell):
            rows.append(x_BS)
            skipped += batch.skipped
        measured.append(np.concatenate(rows))
        done += len(part)
    facts = Facts(
        model=name,
        **belongings(model),
        scored_by=method_of(checkpoint.is_causal(model.path)),
        compressor=compressor,
        compressor_version=compressor_version(compressor),
        mutation=MUTATION,
        holdout=holdout,
        seed=seed,
        fpr=fpr,
        data=normal.path,
        data_fingerprint=normal.fingerprint(),
        records=len(normal),
        background=counted,
        skipped=len(skipped),
    )
    reference_NS, heldout_HS = measured
    return Fitted(background, reference_NS, heldout_HS, facts), skipped


def measured_batches(
    model: ImageGPT,
    source: Source,
    background: Background,
    compressor: str,
    backend: str,
    on_error: OnError,
    progress: Progress | None,
) -> Iterator[tuple[Ids, NDArray[np.float64]]]:
    """Batches of a source with their statistics, (B, S).

    Args:
        model: scores them.
        source: pictures, or their ids.
        background, compressor: see `measure`.
        backend: of the model, as `score_backend` chose it.
        on_error: "raise", or "skip" what can't be read.
        progress: called with (pictures done, pictures in all).
    """
    for batch, scores in Scoring(model, source, on_error=on_error).stream(backend=backend, progress=progress):
        x_BS = np.empty((0, len(STATISTICS)))
        if len(batch):
            x_BS = measure(batch.ids_BT, scores, background, model.codec, compressor)
        yield batch, x_BS


def belongings(model: ImageGPT) -> dict[str, Any]:
    """What a model must have in common with the one that a detector was fitted with, as `Facts` has it."""
    return {
        "fingerprint": checkpoint.fingerprint(model.path),
        "palette": model.codec.fingerprint,
        "framing": asdict(model.framing),
        "colors": len(model.codec),
        "grid": model.grid,
        "precision": model.precision,
    }


def _count(model: ImageGPT, source: Source, seed: int, on_error: OnError) -> tuple[Background, int, list[str]]:
    """The background model of a source, how many pictures it counted, and what was skipped.

    A part of the ids is drawn anew by chance, so that what is common to all pictures stays and what makes these ones
    normal fades; without it a picture of noise would be likelier to the model than to the background.
    """
    counter, rng = Counter(model.grid, len(model.codec)), np.random.default_rng(seed)
    counted, skipped = 0, []
    for batch in read_ids(source, model.codec, model.framing, on_error):
        skipped += batch.skipped
        if not len(batch):
            continue
        drawn_BT = rng.integers(0, len(model.codec), batch.ids_BT.shape)
        counter.add(np.where(rng.random(batch.ids_BT.shape) < MUTATION, drawn_BT, batch.ids_BT))
        counted += len(batch)
    if not counted:
        raise InputError(f"{source.path}: none of the {len(source)} pictures for the background can be read.")
    return counter.background(), counted, skipped
