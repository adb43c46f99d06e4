"""The decode loop, written once against a small protocol.

Arrays with a backend are its own: numpy arrays, or tensors on a device, so that a GPU draws its ids itself.
Shape suffixes: R pictures, B rows, P ids of the prompts with SOS, T ids of a picture, K colours, G samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from imagegpt.engine.cost import PROMPT_IDS
from imagegpt.engine.particles import Particles
from imagegpt.engine.warp import Array, Sampling, log_probs
from imagegpt.errors import InputError
from imagegpt.sequence import known_later, with_sos
from imagegpt.spec import ModelSpec

UNKNOWN = -1  # in the place of an id that has not been drawn yet
Process = Callable[[Array, Array], Array]


class Rows(Protocol):
    """Sequences on their way; the layout of the cache behind them is the backend's own business."""

    logits_BK: Array

    def step(self, ids_B: Array) -> None:
        """Append one id to each row; `logits_BK` are then those of the next."""
        ...

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], since: NDArray[np.int64]) -> None:
        """Rows `targets` take over the state of rows `sources`; up to ids `since` of each pair they are alike."""
        ...


class Backend(Protocol):
    """What a backend offers. What it holds is shared: several decodings may go on at once."""

    spec: ModelSpec
    rows: int  # that are sampled together where nobody says how many

    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> Rows:
        """Begin: run R prompts (SOS first), and make row b a continuation of prompt `rows_B[b]`."""
        ...

    def array(self, values: NDArray[Any]) -> Array:
        """An array of the backend's with these values; it may share their memory."""
        ...

    def numpy(self, values: Array) -> NDArray[Any]:
        """An array of the backend's as the host has it; it may share the memory."""
        ...

    def rows_that_fit(self, prompt: int) -> int:
        """How many rows with a prompt of so many ids the free memory has room for, at least one."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows that are sampled together.

    Args:
        ids_RT: pictures' ids; those that are not known may be anything.
        known_RT: which ids are given.
        rows_B: the picture of each row. The particles of a sample are rows beside one another.
        uniforms_BT: random numbers in [0, 1), one for each row and position.
        particles: rows of a sample; see `imagegpt.engine.particles`.
        resampling_GT: random numbers of each sample, which choose among its particles; needed where there are several.
    """

    ids_RT: NDArray[np.int64]
    known_RT: NDArray[np.bool_]
    rows_B: NDArray[np.int64]
    uniforms_BT: NDArray[np.float64]
    particles: int = 1
    resampling_GT: NDArray[np.float64] | None = None

    @property
    def span(self) -> range:
        """The positions that are run."""
        return span(self.known_RT, self.particles)


def span(known_RT: NDArray[np.bool_], particles: int = 1) -> range:
    """The positions that must be run one by one: from the first that is unknown in a picture to the last.

    What comes before is known in all pictures: their prompts. Particles are weighed by the known ids that follow, so
    with several of them it is to the end of the picture.
    """
    known_T = np.all(known_RT, axis=0)
    start = int(np.logical_and.accumulate(known_T).sum())
    last = max(start, len(known_T) - int(np.logical_and.accumulate(known_T[::-1]).sum()))
    return range(start, len(known_T) if particles > 1 and start < last else last)


def prompt_groups(inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Prompts in groups whose run takes a bounded memory, each with the rows that continue one of them."""
    size = max(1, PROMPT_IDS // inputs_RP.shape[1])
    for start in range(0, len(inputs_RP), size):
        group = slice(start, min(start + size, len(inputs_RP)))
        yield group, np.flatnonzero((rows_B >= group.start) & (rows_B < group.stop))


class Decoding:
    """One batch on its way. Iterating draws position after position; it may be left between any two.

    Args:
        backend: runs the model.
        batch: what is given, and the random numbers.
        sampling: temperature and filters.
        process: changes the logits before sampling: called with the ids so far (B, position) and the logits (B, K),
            both of the backend's kind.
        with_log_probs: keep the log-probability of each id that is drawn or passed.
    """

    def __init__(
        self,
        backend: Backend,
        batch: Batch,
        sampling: Sampling,
        process: Process | None = None,
        with_log_probs: bool = False,
    ) -> None:
        self._backend, self._batch, self._sampling, self._process = backend, batch, sampling, process
        known_BT = batch.known_RT[batch.rows_B]
        self._ids_BT = backend.array(np.where(known_BT, batch.ids_RT[batch.rows_B], UNKNOWN))
        self._known_BT = backend.array(known_BT)
        self._uniforms_BT = backend.array(batch.uniforms_BT)
        self._log_probs_BT = backend.array(np.full(known_BT.shape, np.nan)) if with_log_probs else None
        self._sound: Array | None = None  # whether all logits so far were numbers
        self._particles = None
        if batch.particles > 1:
            assert batch.resampling_GT is not None
            self._particles = Particles(batch.particles, batch.resampling_GT)
            self._later_GT = known_later(known_BT[:: batch.particles])

    def __iter__(self) -> Iterator[int]:
        """Draw; each position is told after it was drawn."""
        batch, positions = self._batch, self._batch.span
        if not positions:
            return
        prompts, of_picture = np.unique(batch.ids_RT[:, : positions.start], axis=0, return_inverse=True)
        inputs_RP = with_sos(prompts, self._backend.spec.sos)
        rows = self._backend.prefill(inputs_RP, of_picture.reshape(-1)[batch.rows_B])
        for position in positions:
            self._draw(rows, position)
            if position + 1 < positions.stop:
                rows.step(self._ids_BT[:, position])
            yield position

    def _draw(self, rows: Rows, position: int) -> None:
        known = self._batch.known_RT[:, position]
        if not known.all():
            logits_BK = rows.logits_BK
            if self._process is not None:
                logits_BK = self._process(self._ids_BT[:, :position], logits_BK)
                _check_shape(logits_BK, rows.logits_BK)
            self._listen(logits_BK)
            drawn = self._sampling.choose(logits_BK, self._uniforms_BT[:, position])
            if known.any():
                where = array_namespace(drawn).where
                drawn = where(self._known_BT[:, position], self._ids_BT[:, position], drawn)
            self._ids_BT[:, position] = drawn
        if self._log_probs_BT is not None:
            self._log_probs_BT[:, position] = log_probs(rows.logits_BK, self._ids_BT[:, position])
        if self._particles is not None and self._later_GT[:, position].any():
            self._weigh(rows, position)

    def _listen(self, logits_BK: Array) -> None:
        """Note whether each row has a likeliest id; a GPU is asked for that only when its ids are."""
        xp = array_namespace(logits_BK)
        sound = xp.all(xp.isfinite(xp.max(logits_BK, axis=1)))
        self._sound = sound if self._sound is None else self._sound & sound

    def _weigh(self, rows: Rows, position: int) -> None:
        """Weigh the particles by the id that is known here; where few are left that count, double those."""
        batch, particles = self._batch, self._particles
        assert particles is not None
        weights_B = self._backend.numpy(log_probs(rows.logits_BK, self._ids_BT[:, position]))
        particles.weigh(weights_B, self._later_GT[:, position])
        known_GT = batch.known_RT[batch.rows_B[:: batch.particles]]
        to_come_G = np.any(~known_GT[:, position + 1 :], axis=1)  # else resampling decides nothing
        sources, targets = particles.resample(position, to_come_G)
        if len(targets):
            ids_BT = self._backend.numpy(self._ids_BT)
            # Particles have ancestors in common: their states differ from the first id on that differs.
            parted = (ids_BT[sources, :position] != ids_BT[targets, :position]).argmax(1)
            rows.copy(sources, targets, parted)
            self._ids_BT[targets] = self._ids_BT[sources]
            if self._log_probs_BT is not None:
                self._log_probs_BT[targets] = self._log_probs_BT[sources]

    def _chosen(self) -> NDArray[np.int64]:
        """The row that stands for each sample."""
        if self._particles is None:
            return np.arange(len(self._batch.rows_B))
        return self._particles.pick()

    def ids(self) -> NDArray[np.int64]:
        """(G, T) ids of the samples as they are now; `UNKNOWN` where nothing is drawn yet.

        Raises:
            InputError: the model, or who changes its logits, gave some that are no numbers.
        """
        if self._sound is not None and not bool(self._sound):
            raise InputError(
                "An id can't be drawn from scores that are no numbers: try precision fp32, and look at the model's "
                "weights and at the logits processor, if there is one."
            )
        return self._backend.numpy(self._ids_BT)[self._chosen()]

    def log_probs(self) -> NDArray[np.float64] | None:
        """(G, T) log-probabilities in nats, NaN in the prompt and where nothing is drawn."""
        return None if self._log_probs_BT is None else self._backend.numpy(self._log_probs_BT)[self._chosen()]

    def effective(self) -> NDArray[np.float64] | None:
        """(G,) the least effective number of particles on the way; `None` without particles."""
        return None if self._particles is None else self._particles.least_effective


def _check_shape(logits_BK: Array, wanted_BK: Array) -> None:
    if tuple(logits_BK.shape) != tuple(wanted_BK.shape):
        found, wanted = tuple(logits_BK.shape), tuple(wanted_BK.shape)
        raise InputError(f"A logits processor must give scores of the shape {wanted}, not {found}.")
