"""How well scores tell anomalies from normal pictures.

Shape suffixes: N normal pictures, A anomalies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegpt.metrics import auroc, fpr_at_tpr

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Judgement:
    """What a method is worth on one kind of anomaly.

    Args:
        method: its name.
        auroc: how often an anomaly has a higher score than a normal picture; a half is chance, and below it anomalies
            seem more normal than normal pictures do.
        fpr95: the part of the anomalies that pass where 95 % of the normal pictures pass. Normal pictures are the
            positives: it is the false-positive rate at a true-positive rate of 95 % of Liang et al. 2018 (ODIN),
            whose baseline is Hendrycks and Gimpel 2017.
        found: the part of the anomalies that are flagged at the detector's own threshold.
        mistaken: the part of the normal pictures that are.
    """

    method: str
    auroc: float
    fpr95: float
    found: float
    mistaken: float


def judge(normal: Scores, anomalous: Scores, thresholds: Mapping[str, float]) -> list[Judgement]:
    """Compare the scores of normal pictures that the detector has not seen, (N,), with those of anomalies, (A,).

    Args:
        normal, anomalous: method -> scores, higher where less normal.
        thresholds: method -> score above which a picture is flagged.

    Raises:
        InputError: no pictures of one kind.
    """
    return [_judge(method, normal[method], anomalous[method], above) for method, above in thresholds.items()]


def _judge(method: str, normal_N: NDArray[np.float64], odd_A: NDArray[np.float64], above: float) -> Judgement:
    both, is_odd = np.concatenate([normal_N, odd_A]), np.repeat([False, True], [len(normal_N), len(odd_A)])
    area, passing = auroc(both, is_odd), fpr_at_tpr(-both, ~is_odd)
    return Judgement(method, area, passing, float((odd_A > above).mean()), float((normal_N > above).mean()))
