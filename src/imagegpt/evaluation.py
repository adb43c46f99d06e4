"""How good a classifier is on DATA with labels.

Shape suffixes: B pictures of a batch, N all pictures, T ids, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint, metrics
from imagegpt.classifier import SURE, Classifier, Problem, hidden_ids
from imagegpt.codec.augment import Views, check_views
from imagegpt.codec.pictures import OnError
from imagegpt.data.records import Source
from imagegpt.data.targets import read_targets
from imagegpt.engine.score import Scorer, score_ids
from imagegpt.errors import InputError
from imagegpt.metrics import Reliability
from imagegpt.painting import Progress

MASKS = 5  # of each picture, where a bidirectional network is asked for hidden ids (Chen et al. 2020, section 3.3)


@dataclass(frozen=True, eq=False)
class Report:
    """What an evaluation has found.

    Args:
        count: pictures.
        measures: name -> number, over all pictures.
        per_class: name of what is measured, and a number for each class; NaN where there is nothing to measure.
        confusion_CC: pictures by true class (rows) and predicted class (columns), of one class a picture.
        reliability: of one class a picture.
        classes: names of the classifier's outputs.
        skipped: a sentence for each record that could not be read.
    """

    count: int
    measures: dict[str, float]
    per_class: tuple[str, NDArray[np.float64]] | None = None
    confusion_CC: NDArray[np.int64] | None = None
    reliability: Reliability | None = None
    classes: tuple[str, ...] = ()
    skipped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it: what is NaN is `None`."""
        told: dict[str, Any] = {"pictures": self.count, "classes": list(self.classes)}
        told |= {name: _number(value) for name, value in self.measures.items()}
        if self.per_class is not None:
            name, values_C = self.per_class
            told[f"{name}_per_class"] = [_number(value) for value in values_C]
        if self.confusion_CC is not None:
            told["confusion"] = self.confusion_CC.tolist()
        if self.reliability is not None:
            bins = vars(self.reliability)
            told["reliability"] = {name[:-2]: [_number(value) for value in values] for name, values in bins.items()}
        return {**told, "skipped": self.skipped}


@dataclass(frozen=True)
class Evaluation:
    """A measurement of a classifier.

    Args:
        classifier: is judged.
        source: pictures with labels, or the ids of such.
        views, votes, seed: how it predicts; see `Classifier.predict`.
        on_error: stop at a picture that can't be read, or skip it.
        nats: measure the likelihood of the pictures' ids too, where the folder has kept the head that draws. It takes
            torch, and one more forward (of a bidirectional network five).

    Raises:
        InputError: no such views, or votes of a model that has none.
    """

    classifier: Classifier
    source: Source
    views: Views = "none"
    votes: int = 0
    seed: int = 0
    on_error: OnError = "raise"
    nats: bool = True

    def __post_init__(self) -> None:
        check_views(self.views)
        self.classifier.check_votes(self.votes, self.seed)

    def run(self, progress: Progress | None = None) -> Report:
        """Predict all pictures and measure.

        Args:
            progress: called with (pictures done, pictures in all).

        Raises:
            InputError: no labels, labels that the classifier can't be judged by, or a picture that can't be read.
        """
        targets = read_targets(self.source, self.classifier.classes, self.classifier.problem)
        nats_of = self._likelihood()
        told, numbers, skipped, nats = [], [], [], 0.0
        options: dict[str, Any] = {"views": self.views, "votes": self.votes, "seed": self.seed}
        batches = self.classifier.predict_source(self.source, **options, on_error=self.on_error, progress=progress)
        for batch, predicted_BC in batches:
            told.append(predicted_BC)
            numbers.append(batch.numbers)
            skipped += batch.skipped
            if nats_of is not None and len(batch):
                nats += float(nats_of(batch.ids_BT, batch.numbers).sum())
        predicted_NC, targets = np.concatenate(told), targets[np.concatenate(numbers)]
        if not len(targets):
            raise InputError(f"{self.source.path}: none of its {len(skipped)} pictures can be read: {skipped[0]}")
        report = _MEASURE[self.classifier.problem](predicted_NC, targets)
        if nats_of is not None:
            report.measures["nats_per_token"] = nats / len(targets)
        return replace(report, classes=self.classifier.classes, skipped=skipped)

    def _likelihood(self) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]] | None:
        """nats/token of pictures, by their ids and numbers; `None` where it is not asked for, or can't be told."""
        judged = self.classifier
        spec, causal = judged.spec, checkpoint.is_causal(judged.path)
        head_KD = checkpoint.load_head(judged.path, checkpoint.HEAD, spec.num_colors) if self.nats else None
        if head_KD is None or not (causal or judged.may_hide):
            return None
        from imagegpt.engine.torch_score import TorchScorer

        scorer = TorchScorer(judged.model, head_KD)

        def nats_of(ids_BT: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float64]:
            if causal:
                return score_ids(scorer, ids_BT, spec.sos, None)[0].mean(1, dtype=np.float64)
            masks = [hidden_ids(0, numbers, copy, spec.n_positions) for copy in range(MASKS)]
            return np.mean([_nats_of_hidden(scorer, ids_BT, mask_BT, spec.sos) for mask_BT in masks], 0)

        return nats_of


def _nats_of_hidden(
    scorer: Scorer, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.bool_], sos: int
) -> NDArray[np.float64]:
    """The mean surprise at the ids that are hidden, (B,); a picture of which none is has 0."""
    inputs_BT, total_B = np.where(mask_BT, sos, ids_BT), np.zeros(len(ids_BT))
    for start in range(0, len(ids_BT), scorer.rows):
        part = slice(start, start + scorer.rows)
        surprise_BT, _ = scorer(inputs_BT[part], ids_BT[part])
        total_B[part] = surprise_BT.sum(1, where=mask_BT[part], dtype=np.float64)
    return total_B / np.maximum(mask_BT.sum(1), 1)


def _measure_single(predicted_NC: NDArray[Any], y_N: NDArray[np.int64]) -> Report:
    found, reliability = (
        metrics.evaluate(predicted_NC, y_N, predicted_NC.shape[1]),
        metrics.reliability(predicted_NC, y_N),
    )
    measures = {"top1": found.top1} | ({} if found.top5 is None else {"top5": found.top5})
    measures |= {
        "calibration_error": reliability.error,
        "nll": metrics.negative_log_likelihood(predicted_NC, y_N),
        "brier": metrics.brier_score(predicted_NC, y_N),
    }
    return Report(len(y_N), measures, ("accuracy", found.per_class_C), found.confusion_CC, reliability)


def _measure_multi(predicted_NC: NDArray[Any], truth_NC: NDArray[np.bool_]) -> Report:
    sure_NC, precision_C = predicted_NC >= SURE, metrics.average_precision(predicted_NC, truth_NC)
    measures = {
        "mean_average_precision": float(precision_C[truth_NC.any(0)].mean()) if truth_NC.any() else math.nan,
        "f1": metrics.f1(sure_NC, truth_NC),
        "exact_match": float((sure_NC == truth_NC).all(1).mean()),
    }
    return Report(len(truth_NC), measures, ("average_precision", precision_C))


def _measure_regression(predicted_NC: NDArray[Any], target_NC: NDArray[np.float64]) -> Report:
    return Report(len(target_NC), metrics.errors(predicted_NC, target_NC))


_MEASURE: dict[Problem, Callable[[NDArray[Any], NDArray[Any]], Report]] = {
    "single_label_classification": _measure_single,
    "multi_label_classification": _measure_multi,
    "regression": _measure_regression,
}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
