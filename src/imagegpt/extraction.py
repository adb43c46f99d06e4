"""Features of many pictures into one file (`imagegpt.feature_file`), in parts (`imagegpt.parts`).

Shape suffixes: N pictures, T ids, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__, checkpoint
from imagegpt.array_file import check_format, join_parts, nothing_read, write_part
from imagegpt.codec.pictures import OnError
from imagegpt.data.ids import read_ids
from imagegpt.data.records import Source, label_array
from imagegpt.engine.features import Pool, check_pool
from imagegpt.errors import check_count
from imagegpt.feature_file import name_of, read_features
from imagegpt.painting import Progress
from imagegpt.parts import NoResultError, Parts, recorded, refuse_existing
from imagegpt.pipeline import ImageGPT

PART, GPU_PART = 256, 4096  # pictures: what a kill may cost, against the number of files
PART_BYTES = 1 << 28  # of unpooled features
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Extraction:
    """A run that writes the features of a source.

    Args:
        model: makes them.
        source: the pictures, or their ids.
        layers: layers, from 0 to L.
        pool: "mean" or "none".
        dtype: of the file.
        on_error: what is done about a picture that can't be read: "raise", or "skip", which lists it in the facts.
        batch_size: pictures that are run together; default: what is fastest.

    Raises:
        InputError: no such layer or pooling.
    """

    model: ImageGPT
    source: Source
    layers: Sequence[int]
    pool: Pool = "mean"
    dtype: Dtype = "float32"
    on_error: OnError = "raise"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_pool(self.pool)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the features, but for the backend; the data is read once for its fingerprint."""
        model = self.model
        return {
            "model": checkpoint.fingerprint(model.path),
            "palette": model.codec.fingerprint,
            "framing": asdict(model.framing),
            "layers": list(self.layers),
            "pool": self.pool,
            "precision": model.precision,
            "dtype": self.dtype,
            "data": self.source.fingerprint(),
            "records": len(self.source),
            "on_error": self.on_error,
        }

    def run(self, out: Path, rank: int = 0, processes: int = 1, progress: Progress | None = None) -> int:
        """Make this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            out: the file, which ends in .safetensors, .npz or .parquet; its parts lie in `out`.parts until it is made.
            rank, processes: which of how many processes this is; all run the same.
            progress: called with (pictures there, pictures in all), of all processes.

        Returns:
            How many pictures this process ran.

        Raises:
            InputError: `out` is there already, its parts are of another run, the model can't run here, or a picture
                can't be read, or none of them.
        """
        check_format(out)
        if rank == 0:
            refuse_existing(out)  # before all data is read for its fingerprint
        # One for all parts: the one that was named, or that an interrupted run has used, or else the faster one.
        chosen = self.model.named_backend or recorded(out, "backend")
        backend = chosen or self.model.feature_backend(self.layers, len(self.source))
        self.model.extractor(self.layers, self.pool, backend)  # fail now, before anything is written
        made_by = {**self.facts, "backend": backend}
        parts = Parts(out, len(self.source), made_by, "features", "part", ".safetensors", rank, processes)
        told = {**made_by, "classes": list(self.source.classes), "source": self.source.path, "imagegpt": __version__}

        def make(first: int, count: int, path: Path, tell: Callable[[int], None]) -> None:
            self._make(backend, range(first, first + count), path, tell)

        def join(path: Path, files: list[Path]) -> None:
            if why := nothing_read(files):
                raise NoResultError(f"{self.source.path} holds no picture that can be read; the first: {why}")
            join_parts(path, files, told)

        return parts.run(self._part_size(), make, join, lambda: read_features(out).facts, progress)

    def _part_size(self) -> int:
        """Pictures of a part, whose features are in memory together."""
        if self.pool == "none":
            states = 4 * self.model.spec.n_positions * self.model.spec.n_embd * len(self.layers)
            return max(1, min(PART, PART_BYTES // states))
        return PART if self.model.device in (None, "cpu") else GPU_PART

    def _make(self, backend: str, records: range, path: Path, tell: Callable[[int], None]) -> None:
        model = self.model
        found = read_ids(self.source, model.codec, model.framing, self.on_error, records.start, records.stop)
        batches = list(found)
        numbers = np.concatenate([batch.numbers for batch in batches])
        features = model.features_of(
            np.concatenate([batch.ids_BT for batch in batches]),
            self.layers,
            self.pool,
            batch_size=self.batch_size,
            backend=backend,
            progress=lambda done, _: tell(done),
        )
        arrays: dict[str, NDArray[Any]] = {
            name_of(layer): values.astype(self.dtype, copy=False) for layer, values in features.items()
        }
        arrays["numbers"] = numbers
        if self.source.labelled:
            arrays["labels"] = label_array([label for batch in batches for label in batch.labels or ()], numbers)
        write_part(path, arrays, [sentence for batch in batches for sentence in batch.skipped])
