"""What a detector has learnt of normal pictures, and what it belongs to: one safetensors file.

It holds what was counted and measured and nothing that follows from it, so thresholds, means and densities can't
disagree with the pictures that they come from:

    events (M,) int64, counts (M,) int32      the background's; see `imagegpt.anomaly.background`
    reference (N, S), heldout (H, S) float64  statistics of normal pictures: to fit to, and to set thresholds by

and, in its metadata, `imagegpt.anomaly`, the `Facts` as JSON, and `imagegpt.anomaly.sha256`, a checksum of all of it.
Reading it runs nothing that is in it (no pickle).

Shape suffixes: M different events, N and H normal pictures, S statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__
from imagegpt.anomaly.background import Background
from imagegpt.anomaly.calibration import check_rate
from imagegpt.anomaly.compressors import Compressor
from imagegpt.anomaly.methods import Methods
from imagegpt.anomaly.statistics import STATISTICS
from imagegpt.engine.backends import Precision
from imagegpt.errors import InputError
from imagegpt.files import write_whole
from imagegpt.tensors import read_metadata, read_tensors, write_tensors

FORMAT = 1
KEY, CHECKSUM = "imagegpt.anomaly", "imagegpt.anomaly.sha256"
FEWEST = 10  # pictures of reference: from fewer no covariance of five statistics can be told
TYPES = {"events": np.int64, "counts": np.int32, "reference": np.float64, "heldout": np.float64}


@dataclass(frozen=True)
class Facts:
    """What a detector belongs to, and how it was fitted.

    Args:
        model: name of the model, as `ImageGPT.from_pretrained` takes it.
        fingerprint: of the model's weights.
        palette: fingerprint of its codec, whichever that is.
        framing: how pictures are brought onto the grid.
        colors: K.
        grid: (height, width).
        precision: in which the model ran; another one has other likelihoods.
        scored_by: "likelihood", or "pseudo-likelihood" of a bidirectional model.
        compressor: "png", "webp" or "zlib".
        compressor_version: which build of it.
        mutation: part of the ids that were replaced by chance before the background counted them.
        holdout: part of the normal pictures that thresholds are set by.
        seed: of the parts and of the mutations.
        fpr: the false-positive rate that was chosen.
        data: the normal pictures, as they were named.
        data_fingerprint: of their content.
        records: how many there were.
        background: how many of them the background has counted.
        skipped: how many could not be read.
        version: of imagegpt.
    """

    model: str
    fingerprint: str
    palette: str
    framing: dict[str, Any]
    colors: int
    grid: tuple[int, int]
    precision: Precision
    scored_by: str
    compressor: Compressor
    compressor_version: str
    mutation: float
    holdout: float
    seed: int
    fpr: float
    data: str
    data_fingerprint: str
    records: int
    background: int
    skipped: int
    version: str = __version__


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was learnt.

    Args:
        background: the small model of ids.
        reference_NS: statistics of normal pictures that the methods are fitted to.
        heldout_HS: statistics of normal pictures that nothing else has seen.
        facts: what it belongs to.

    Raises:
        InputError: too few pictures.
    """

    background: Background
    reference_NS: NDArray[np.float64]
    heldout_HS: NDArray[np.float64]
    facts: Facts

    def __post_init__(self) -> None:
        if len(self.reference_NS) < FEWEST:
            raise InputError(
                f"There are {len(self.reference_NS)} normal pictures to fit to, and it takes {FEWEST} at least: of "
                "those that are not held out a third serves for it."
            )
        check_rate(self.facts.fpr, len(self.heldout_HS))

    @cached_property
    def methods(self) -> Methods:
        """The methods, fitted to the reference."""
        return Methods(self.reference_NS)

    @cached_property
    def heldout(self) -> dict[str, NDArray[np.float64]]:
        """Each method's scores of the held-out normal pictures, (H,)."""
        return self.methods.scores(self.heldout_HS)


def save_fitted(path: Path, fitted: Fitted) -> None:
    """Write it, whole or not at all.

    Raises:
        InputError: the file can't be written.
    """
    background = fitted.background
    arrays = (background.keys_M, background.counts_M, fitted.reference_NS, fitted.heldout_HS)
    tensors = {name: array.astype(TYPES[name]) for name, array in zip(TYPES, arrays, strict=True)}
    entries = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    told = json.dumps({"format": FORMAT, **asdict(fitted.facts)}, ensure_ascii=False)
    metadata = {KEY: told, CHECKSUM: _checksum(told, tensors)}
    write_whole(path, lambda temporary: write_tensors(temporary, entries, lambda name: [tensors[name]], metadata))


def load_fitted(path: Path) -> Fitted:
    """Read it.

    Raises:
        InputError: there is no such file, or it is damaged, or something else, or of another version's format.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a detector is a file that `imagegpt anomaly fit` makes.")
    if not path.is_file():
        raise InputError(f"There is no file {path}; `imagegpt anomaly fit` makes one.")
    metadata = read_metadata(path)
    if KEY not in metadata:
        raise InputError(f"{path} is no anomaly detector: its metadata does not say that it is one.")
    facts, tensors = _facts(path, metadata[KEY]), read_tensors(path)
    if {name: array.dtype for name, array in tensors.items()} != TYPES:
        raise InputError(f"{path} is damaged: it has the tensors {', '.join(sorted(tensors)) or 'none'}.")
    arrays = {name: np.array(tensor) for name, tensor in tensors.items()}
    if metadata.get(CHECKSUM) != _checksum(metadata[KEY], arrays):
        raise InputError(f"{path} is damaged: its content does not have the checksum that it names.")
    for name in ("reference", "heldout"):
        rows = arrays[name]
        if rows.ndim != 2 or rows.shape[1] != len(STATISTICS) or not np.isfinite(rows).all():
            raise InputError(f"{path} is damaged: {name} is not {len(STATISTICS)} finite numbers for each picture.")
    _check_events(path, facts, arrays["events"], arrays["counts"])
    background = Background(facts.grid, facts.colors, arrays["events"], arrays["counts"])
    try:
        return Fitted(background, arrays["reference"], arrays["heldout"], facts)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _checksum(told: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(told.encode())
    for name in TYPES:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _check_events(path: Path, facts: Facts, events_M: NDArray[np.int64], counts_M: NDArray[np.int32]) -> None:
    most = (facts.colors + 1) ** 2 * facts.colors
    if events_M.ndim != 1 or events_M.shape != counts_M.shape or not len(events_M):
        raise InputError(f"{path} is damaged: its events and counts do not belong together.")
    ascending = (np.diff(events_M) > 0).all() and events_M[0] >= 0 and events_M[-1] < most
    if not ascending or counts_M.min() < 1:
        raise InputError(f"{path} is damaged: its counts are none of {facts.colors} colours.")


def _facts(path: Path, text: str) -> Facts:
    """The facts, each of its values of the type that it must have."""
    try:
        told = json.loads(text)
        told = dict(told) if isinstance(told, dict) else {}
    except ValueError:
        told = {}
    if told.get("format") != FORMAT:
        raise InputError(f"{path} is an anomaly detector of another format than imagegpt {__version__} knows.")
    for name, known in _KNOWN.items():
        if name not in told or not known(told[name]):
            raise InputError(f"{path} is damaged: its {name} is {told.get(name)!r}.")
    return Facts(**{**{name: told[name] for name in _KNOWN}, "grid": tuple(told["grid"])})


def _is(*kinds: type) -> Any:
    return lambda value: type(value) in kinds


def _within(low: float, high: float) -> Any:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_count(side) and side for side in value)


_KNOWN = {
    **dict.fromkeys(("model", "fingerprint", "palette", "scored_by"), _is(str)),
    "precision": lambda value: value in get_args(Precision),
    "framing": _is(dict),
    "colors": lambda value: _count(value) and 0 < value < 1 << 20,
    "grid": _sides,
    "compressor": lambda value: value in get_args(Compressor),
    "compressor_version": _is(str),
    **dict.fromkeys(("mutation", "holdout", "fpr"), _within(0, 1)),
    **dict.fromkeys(("seed", "records", "background", "skipped"), _count),
    **dict.fromkeys(("data", "data_fingerprint", "version"), _is(str)),
}
