"""Scores of many pictures: as a stream, or into one file (`imagegpt.score_file`) in parts (`imagegpt.parts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imagegpt import __version__, checkpoint, score_file
from imagegpt.codec.pictures import OnError
from imagegpt.data.ids import Ids, read_ids
from imagegpt.data.records import Source
from imagegpt.engine.score import Method, Scores, method_of, read_passes
from imagegpt.errors import check_count
from imagegpt.painting import Progress
from imagegpt.parts import NoResultError, Parts, recorded, refuse_existing
from imagegpt.pipeline import ImageGPT

PART, GPU_PART = 256, 4096  # pictures: what a kill may cost, against the number of files
BATCH = 64  # pictures of a stream that are told together: as many as a GPU runs at once
Watch = Callable[[Ids, Scores], None]


@dataclass(frozen=True)
class Scoring:
    """A run that tells how likely the pictures of a source are.

    Args:
        model: tells.
        source: the pictures, or their ids.
        passes, steps: see `ImageGPT.score`.
        maps: keep the surprise and the entropy of each id, in float16, and not their sums alone.
        on_error: what is done about a picture that can't be read: "raise", or "skip", which lists it.
        batch_size: pictures that are run together; default: what is fastest.

    Raises:
        InputError: passes that can't be.
    """

    model: ImageGPT
    source: Source
    passes: int | None = None
    steps: bool = False
    maps: bool = False
    on_error: OnError = "raise"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        read_passes(self.passes, checkpoint.is_causal(self.model.path), self.model.spec.n_positions)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    @property
    def method(self) -> Method:
        """What is told: "likelihood", or "pseudo-likelihood" of a bidirectional model."""
        return method_of(checkpoint.is_causal(self.model.path))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the scores, but for the backend; the data is read once for its fingerprint."""
        model, causal = self.model, checkpoint.is_causal(self.model.path)
        return {
            "model": checkpoint.fingerprint(model.path),
            "palette": model.codec.fingerprint,
            "codec": model.codec.name,
            "framing": asdict(model.framing),
            "method": self.method,
            "passes": read_passes(self.passes, causal, model.spec.n_positions),
            "steps": self.steps,
            "maps": self.maps,
            "precision": model.precision,
            "data": self.source.fingerprint(),
            "records": len(self.source),
            "on_error": self.on_error,
        }

    def stream(
        self,
        start: int = 0,
        stop: int | None = None,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Ids, Scores]]:
        """Score the records from `start` to `stop` batch by batch, in memory that does not grow with their number.

        Args:
            start, stop: numbers of the first record and of the one after the last; default: all.
            backend: see `ImageGPT.score_ids`; default: what is fastest for all of them.
            progress: called with (pictures done, pictures in all), of these.

        Yields:
            Batches in the order of the records, those with no row left included.
        """
        model, stop = self.model, len(self.source) if stop is None else stop
        backend = backend or model.score_backend(stop - start)
        batches = read_ids(self.source, model.codec, model.framing, self.on_error, start, stop, batch=BATCH)
        done = 0
        for batch in batches:
            before = done
            done += len(batch) + len(batch.skipped)
            tell = progress and (lambda scored, _, before=before: progress(before + scored, stop - start))
            how = {
                "passes": self.passes,
                "steps": self.steps,
                "batch_size": self.batch_size,
                "backend": backend,
                "progress": tell,
            }
            yield batch, model.score_ids(batch.ids_BT, **how)

    def run(
        self,
        out: Path,
        rank: int = 0,
        processes: int = 1,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> int:
        """Score this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            out: the file; its parts lie in `out`.parts until it is made.
            rank, processes: which of how many processes this is; all run the same.
            progress: called with (pictures there, pictures in all), of all processes.
            watch: called with each batch and its scores, before its part is written.

        Returns:
            How many pictures this process ran.

        Raises:
            InputError: `out` is there already, its parts are of another run, or a picture can't be read, or none of
                them.
        """
        score_file.check_format(out, self.maps)
        if rank == 0:
            refuse_existing(out)  # before all data is read for its fingerprint
        # One for all parts: the one that was named, or that an interrupted run has used, or else the faster one.
        backend = self.model.named_backend or recorded(out, "backend") or self.model.score_backend(len(self.source))
        made_by = {**self.facts, "backend": backend}
        suffix = score_file.TABLE if out.suffix == score_file.TABLE else ".safetensors"
        parts = Parts(out, len(self.source), made_by, "scores", "part", suffix, rank, processes)
        told = {**made_by, "classes": list(self.source.classes), "source": self.source.path, "imagegpt": __version__}

        def make(first: int, count: int, path: Path, tell: Callable[[int], None]) -> None:
            batches = []
            for batch, scores in self.stream(first, first + count, backend, lambda done, _: tell(done)):
                if watch is not None:
                    watch(batch, scores)
                batches.append((batch, scores))
            score_file.write_part(path, batches, self.maps)

        def join(path: Path, files: list[Path]) -> None:
            if why := score_file.nothing_read(files):
                count = len(self.source)
                raise NoResultError(f"{self.source.path}: none of its {count} pictures can be read: {why}")
            score_file.join_parts(path, out, files, told)

        size = PART if self.model.device in (None, "cpu") else GPU_PART
        return parts.run(size, make, join, lambda: score_file.read_scores(out)[2], progress)
