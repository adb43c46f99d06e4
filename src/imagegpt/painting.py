"""Painting: a job of samples drawn batch by batch, and the pictures that come of it.

Shape suffixes: R pictures, T ids, G samples.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.engine.batches import Task
from imagegpt.engine.decode import UNKNOWN, Backend, Decoding, Process
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError

Progress = Callable[[int, int], None]
Decode = Callable[[NDArray[np.int64]], list[Image.Image]]


@dataclass(frozen=True)
class Result:
    """Sampled pictures.

    Args:
        images: one list of PIL images (of the grid's size) for each input picture; grey where nothing is drawn yet.
        ids: int64 `(pictures * samples, T)`; a picture's samples are together; -1 where nothing is drawn yet.
        seed: what to pass to get the same again; a list where each picture has its own.
        known: bool `(pictures, T)`: which ids were the picture's own.
        log_probs: float64 `(pictures * samples, T)`, on request: the log-probability of each drawn id under the model,
            in nats; NaN where an id was given.
        effective_particles: float64 `(pictures * samples,)`, with particles: the least effective number of them on the
            way; near 1 means that more would help.
    """

    images: list[list[Image.Image]]
    ids: NDArray[np.int64]
    seed: int | list[int]
    known: NDArray[np.bool_]
    log_probs: NDArray[np.float64] | None = None
    effective_particles: NDArray[np.float64] | None = None

    @property
    def given(self) -> int:
        """How many first ids of each row were the picture's own."""
        return int(np.logical_and.accumulate(self.known.all(0)).sum())


@dataclass(frozen=True)
class Job:
    """What is to be sampled, and how; `imagegpt.ImageGPT.complete` tells its parts."""

    task: Task
    sampling: Sampling
    seed: int | list[int]
    batch_size: int | None
    progress: Progress | None
    log_probs: bool
    process: Process | None


class Options(TypedDict, total=False):
    """How pictures are drawn, whatever is drawn.

    Args:
        temperature, top_k, top_p, min_p: see `imagegpt.engine.warp.Sampling`.
        seed: one for all pictures, or one for each; default: a new one, told in the result.
        batch_size: rows sampled at once; more are done in turn, and fewer where memory is short. It does not change
            what is drawn.
        log_probs: tell the log-probabilities of the drawn ids.
        logits_processor: transformers' `LogitsProcessor`, or a list of them; with the torch backend.
        progress: called with (ids drawn, ids in all) after each step.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | Sequence[int] | None
    batch_size: int | None
    log_probs: bool
    logits_processor: Any
    progress: Progress | None


def paint(job: Job, backend: Backend, decode: Decode, every: int | None = None) -> Iterator[Result]:
    """Draw a job batch by batch.

    Args:
        job: what is drawn.
        backend: runs the model.
        decode: ids (B, T) to pictures; -1 becomes grey.
        every: tell the result after so many ids too, and not at the end alone.
    """
    task = job.task
    known_GT = task.known_RT.repeat(task.samples, 0)
    ids_GT = np.where(known_GT, task.ids_RT.repeat(task.samples, 0), UNKNOWN)
    log_probs_GT = np.full(ids_GT.shape, np.nan) if job.log_probs else None
    effective_G = np.full(len(ids_GT), float(task.particles)) if task.particles > 1 else None

    def result() -> Result:
        images = decode(ids_GT)
        grouped = [images[start : start + task.samples] for start in range(0, len(images), task.samples)]
        log_probs = None if log_probs_GT is None else np.where(known_GT, np.nan, log_probs_GT)
        effective = None if effective_G is None else effective_G.copy()
        return Result(grouped, ids_GT.copy(), job.seed, task.known_RT, log_probs, effective)

    rows = min(job.batch_size or backend.rows, backend.rows_that_fit(task.prompt))
    parts = task.parts(rows)
    done, total = 0, sum(task.positions(part) for part in parts)
    for part in parts:
        decoding = Decoding(backend, task.batch(part), job.sampling, job.process, job.log_probs)

        def take(part: slice = part, decoding: Decoding = decoding) -> None:
            ids_GT[part] = decoding.ids()
            for mine, theirs in ((log_probs_GT, decoding.log_probs()), (effective_G, decoding.effective())):
                if mine is not None and theirs is not None:
                    mine[part] = theirs

        for position in decoding:
            done += part.stop - part.start
            if job.progress is not None:
                job.progress(done, total)
            if every is not None and (position + 1) % every == 0 and done < total:
                take()
                yield result()
        take()
    yield result()


def last(results: Iterator[Result]) -> Result:
    """The complete one."""
    *_, result = results
    return result


def seeds_for(seed: int | Sequence[int] | None, pictures: int) -> list[int]:
    """A seed for each picture: the one that is given, theirs, or a new one; an InputError says what is wrong."""
    if isinstance(seed, (Sequence, np.ndarray)) and not isinstance(seed, str):
        seeds: list[Any] = list(seed)
    else:
        seeds = [secrets.randbelow(2**32) if seed is None else seed] * pictures
    if len(seeds) != pictures:
        raise InputError(f"There are {pictures} pictures and {len(seeds)} seeds; give one, or one for each.")
    for number in seeds:
        if not isinstance(number, Integral) or number < 0:
            raise InputError(f"seed must be a whole number of at least 0, not {number!r}.")
    return [int(number) for number in seeds]
