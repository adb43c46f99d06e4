"""Detector: fitted to normal pictures, it says of others how little they are like these.

Shape suffixes: B pictures, S statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagegpt.anomaly.calibration import p_values, threshold
from imagegpt.anomaly.compressors import Compressor, compressor_version
from imagegpt.anomaly.fitted import Facts, Fitted, load_fitted, save_fitted
from imagegpt.anomaly.fitting import belongings, fit_to, measured_batches
from imagegpt.anomaly.methods import DEFAULT, METHODS, check_method
from imagegpt.anomaly.statistics import STATISTICS, measure
from imagegpt.codec.pictures import OnError, Picture
from imagegpt.data.ids import Ids
from imagegpt.data.records import Source, source_of
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.painting import Progress
from imagegpt.pipeline import ImageGPT

FPR, HOLDOUT = 0.05, 0.25
Normal = Source | str | Path | Iterable[Picture]


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a detector says of pictures.

    Args:
        scores: method -> (B,) float64, higher where less normal, in nats; see `imagegpt.anomaly.methods`.
        p_values: method -> (B,): how many of the held-out normal pictures have a score as high, as a part of all, the
            picture counted too.
        thresholds: method -> score above which a picture is flagged.
        statistics: name -> (B,): what the scores are made of; see `imagegpt.anomaly.statistics`.
    """

    scores: dict[str, NDArray[np.float64]]
    p_values: dict[str, NDArray[np.float64]]
    thresholds: dict[str, float]
    statistics: dict[str, NDArray[np.float64]]

    def flagged(self, method: str = DEFAULT) -> NDArray[np.bool_]:
        """Which pictures a method calls anomalous at the chosen false-positive rate, (B,)."""
        check_method(method)
        return self.scores[method] > self.thresholds[method]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.scores[DEFAULT])


class Detector:
    """A model and what was fitted to its numbers on normal pictures. Use `fit` or `load`.

    Args:
        model: the model that it was fitted with.
        fitted: what was learnt.
        skipped: a sentence for each normal picture that could not be read; known only after `fit`.

    Raises:
        InputError: it was fitted with another model, codec or precision.

    Example:
        >>> from imagegpt import ImageGPT
        >>> from imagegpt.anomaly import Detector
        >>> rng = np.random.default_rng(0)
        >>> normal = [rng.integers(100, 255, 3, np.uint8) + np.zeros((8, 8, 1), np.uint8) for _ in range(44)]
        >>> detector = Detector.fit(ImageGPT.from_pretrained("nano"), normal[:-1], fpr=0.1)
        >>> noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        >>> detector.score([normal[-1], noise]).flagged()
        array([False,  True])
    """

    def __init__(self, model: ImageGPT, fitted: Fitted, skipped: list[str] | None = None) -> None:
        self.model, self.fitted, self.skipped = model, fitted, skipped or []
        _check_fits(model, fitted.facts)

    @property
    def facts(self) -> Facts:
        """What it was fitted to, and how."""
        return self.fitted.facts

    @property
    def heldout(self) -> dict[str, NDArray[np.float64]]:
        """Each method's scores of the held-out normal pictures."""
        return self.fitted.heldout

    @classmethod
    def fit(
        cls,
        model: ImageGPT,
        normal: Normal,
        *,
        fpr: float = FPR,
        holdout: float = HOLDOUT,
        seed: int = 0,
        compressor: Compressor = "png",
        on_error: OnError = "raise",
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Detector:
        """Learn what is normal.

        Args:
            model: a model that draws, or a bidirectional (BERT) one.
            normal: normal pictures: DATA (docs/data.md) by its name or opened, or pictures. Chance splits them into
                three parts: half of them the background model counts, a quarter is what the methods are fitted to, a
                quarter is held out.
            fpr: the part of normal pictures that may be flagged by mistake; the held-out part sets the thresholds.
            holdout: how large that part is; two thirds of the rest are the background's.
            seed: decides the parts.
            compressor: "png", "webp" or "zlib", which measures how complex a picture is.
            on_error: what is done about a picture that can't be read: "raise", or "skip".
            name: of the model, as it is to be opened with a file; default: its folder.
            progress: called with (pictures run, pictures to run).

        Raises:
            InputError: numbers out of their ranges, too few pictures, or one that can't be read.
        """
        how = fpr, holdout, seed, compressor, on_error, name or str(model.path), progress
        return cls(model, *fit_to(model, _source(normal), *how))

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: ImageGPT | str | Path | None = None,
        *,
        device: str | None = None,
        backend: str | None = None,
    ) -> Detector:
        """Read a detector.

        Args:
            path: written by `save` or `imagegpt anomaly fit`.
            model: the model that it was fitted with, or where it lies; default: where it lay then.
            device, backend: see `ImageGPT`; for a model that is not open yet, which is opened in the same precision.

        Raises:
            InputError: no such file, a damaged or a foreign one, or another model.
        """
        fitted = load_fitted(Path(path))
        if not isinstance(model, ImageGPT):
            how = {"device": device, "backend": backend, "precision": fitted.facts.precision}
            model = ImageGPT.from_pretrained(model or fitted.facts.model, **how)
        return cls(model, fitted)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all; the same detector makes the same bytes."""
        save_fitted(Path(path), self.fitted)

    def score(self, images: Picture | Iterable[Picture], *, fpr: float | None = None) -> Verdicts:
        """Say how little pictures are like the normal ones.

        Args:
            images: a picture or several; see `ImageGPT.complete`.
            fpr: the false-positive rate; default: the one of `fit`.

        Raises:
            InputError: a picture that can't be read, or a rate that the held-out pictures are too few for.
        """
        thresholds, ids_BT = self.thresholds(fpr), self.model.encode(images)
        scores = self.model.score_ids(ids_BT)
        x_BS = measure(ids_BT, scores, self.fitted.background, self.model.codec, self.facts.compressor)
        return self._verdicts(x_BS, thresholds)

    def score_source(
        self,
        source: Source,
        *,
        fpr: float | None = None,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> Iterator[tuple[Ids, Verdicts]]:
        """The same of DATA, batch by batch, so that no more than a batch is in memory.

        Args:
            source: the pictures, or their ids.
            fpr: see `score`.
            on_error: what is done about a picture that can't be read: "raise", or "skip", which lists it in the batch.
            progress: called with (pictures done, pictures in all).

        Returns:
            Each batch and its verdicts; of no picture, where all of a batch were skipped.

        Raises:
            InputError: as `score`, or ids of another codec.
        """
        thresholds, backend = self.thresholds(fpr), self.model.score_backend(len(source))
        how = self.fitted.background, self.facts.compressor, backend, on_error, progress
        found = measured_batches(self.model, source, *how)
        return ((batch, self._verdicts(x_BS, thresholds)) for batch, x_BS in found)

    def thresholds(self, fpr: float | None = None) -> dict[str, float]:
        """The score above which each method flags a picture; see `imagegpt.anomaly.calibration.threshold`."""
        rate = self.facts.fpr if fpr is None else fpr
        return {method: threshold(scores_N, rate) for method, scores_N in self.heldout.items()}

    def _verdicts(self, x_BS: NDArray[np.float64], thresholds: dict[str, float]) -> Verdicts:
        scores = self.fitted.methods.scores(x_BS)
        odds = {method: p_values(self.heldout[method], scores[method]) for method in METHODS}
        return Verdicts(scores, odds, thresholds, dict(zip(STATISTICS, x_BS.T, strict=True)))


def _source(normal: Normal) -> Source:
    """DATA by its name, or pictures as DATA."""
    if isinstance(normal, Source):
        return normal
    if isinstance(normal, (str, Path)):
        return open_source(normal)
    return source_of(list(normal))


def _check_fits(model: ImageGPT, facts: Facts) -> None:
    for name, value in belongings(model).items():
        fitted = getattr(facts, name)
        if value == fitted:
            continue
        if name == "precision":
            raise InputError(f"The detector was fitted in {fitted}, and {model.path} is opened in {value}.")
        what = "model" if name == "fingerprint" else "codec or grid"
        raise InputError(f"The detector was fitted to another {what} than that of {model.path}: name its own model.")
    here = compressor_version(facts.compressor)
    if here != facts.compressor_version:
        warnings.warn(
            f"The detector was fitted with {facts.compressor_version}, and here is {here}, whose files may have other "
            "lengths: better fit it here again.",
            stacklevel=4,
        )
