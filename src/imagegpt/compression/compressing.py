"""Pictures into one file, in parts (`imagegpt.parts`): what is interrupted continues.

Shape suffixes: B pictures, T ids of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from imagegpt import __version__, checkpoint
from imagegpt.codec.pictures import Picture
from imagegpt.compression.batches import Coding, encode_batch
from imagegpt.compression.coder import Encoder
from imagegpt.compression.container import MOST_ROWS, MOST_TOLD, Header, read_file, write_file
from imagegpt.compression.ids import Tell, check_colors
from imagegpt.compression.reading import read_batches
from imagegpt.data.ids import check_tokens
from imagegpt.data.records import Source, source_of
from imagegpt.data.sources import open_source
from imagegpt.engine.backends import choose_backend
from imagegpt.errors import InputError, check_count
from imagegpt.painting import Progress
from imagegpt.parts import Parts, folder_of, refuse_existing
from imagegpt.pipeline import ImageGPT

WHAT = "batches"


@dataclass(frozen=True)
class Report:
    """What was compressed.

    Args:
        pictures: in the file.
        bytes: of the file.
        made: pictures that this run coded; others were there from an interrupted one, or are other processes'.
        nats: the model's own negative log-likelihood of their ids, in all.
        id_bytes, pixel_bytes: of their range-coded messages.
    """

    pictures: int
    bytes: int
    made: int
    nats: float
    id_bytes: int
    pixel_bytes: int


@dataclass
class _Tally:
    """Sums over the batches of this run."""

    nats: float = 0.0
    id_bytes: int = 0
    pixel_bytes: int = 0


@dataclass(frozen=True)
class Compression:
    """A run that compresses a source.

    Args:
        model: gives the probabilities. Only what runs the same model on the same kind of machine can decode the file.
        source: pictures, or ids of the model's codec and grid.
        lossless: keep the pictures' own pixels, not only their ids.
        batch_size: pictures that are coded together; default: what the backend runs best.

    Raises:
        InputError: a bidirectional (BERT) model, ids where pixels are to be kept, or a size out of its range.
        MissingExtra: constriction is missing (extra "compress").
    """

    model: ImageGPT
    source: Source
    lossless: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_model(self.model)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
            if self.batch_size > MOST_ROWS:
                raise InputError(f"batch_size must be at most {MOST_ROWS:,}, not {self.batch_size:,}.")
        if self.source.tokens:
            if self.lossless:
                raise InputError(f"{self.source.path} holds ids, and their pictures' own pixels are not in it.")
            check_tokens(self.source, self.model.codec, self.model.framing)
        Encoder()  # fail now if constriction is missing

    def run(self, out: str | Path, rank: int = 0, processes: int = 1, progress: Progress | None = None) -> Report:
        """Code this process's batches that are missing; the first process then waits for the others' and joins all.

        Args:
            out: the file; its parts lie in the folder `out`.parts until it is made.
            rank, processes: which of how many processes this is; all run the same.
            progress: called with (pictures there, pictures in all), of all processes.

        Raises:
            InputError: `out` is there already, its parts are of another run, a picture can't be read, or, where
                pixels are kept, a picture holds more than 8-bit RGB or grey.
        """
        out = Path(out)
        if rank == 0:
            refuse_existing(out)  # before all data is read for its fingerprint
        header = self._header
        told = {name: value for name, value in vars(header).items() if name not in ("count", "rows")}
        told["grid"], tally = list(header.grid), _Tally()
        parts = Parts(out, len(self.source), told, WHAT, "batch", ".bin", rank, processes)
        made = parts.run(
            header.rows,
            partial(self._make, tally),
            lambda path, files: write_file(path, replace(header, rows=_part_size(out)), files),
            lambda: {**vars(read_file(out).header), "grid": list(header.grid)},
            progress,
        )
        size = out.stat().st_size if out.exists() else 0
        return Report(len(self.source), size, made, **vars(tally))

    @cached_property
    def _header(self) -> Header:
        model, backend = self.model, backend_of(self.model)
        return Header(
            model=checkpoint.fingerprint(model.path),
            name=_name_of(model.path),
            palette=model.codec.fingerprint,
            grid=model.grid,
            crop=model.framing.crop,
            count=len(self.source),
            rows=min(self.batch_size or model.backend.rows, model.backend.rows_that_fit(1), MOST_ROWS),
            backend=backend,
            precision=model.precision,
            device=device_of(model),
            lossless=self.lossless,
            data=self.source.fingerprint(),
            versions=versions(backend),
        )

    def _make(self, tally: _Tally, first: int, count: int, path: Path, tell: Callable[[int], None]) -> None:
        """Code some records into a file of one batch, or of several where the pictures are large."""
        model, done = self.model, 0
        coding = Coding(model.backend, model.codec, model.framing, self.lossless)
        with path.open("wb") as file:
            for batch in read_batches(self.source, coding, first, first + count):
                so_far = partial(tell_pictures, tell, done, len(batch), model.spec.n_positions)
                encoded = encode_batch(coding, batch, so_far)
                file.write(encoded.content)
                tally.nats += encoded.nats
                tally.id_bytes += encoded.id_bytes
                tally.pixel_bytes += encoded.pixel_bytes
                done += len(batch)


def compress(
    model: ImageGPT,
    pictures: str | Path | Source | Iterable[Picture],
    out: str | Path,
    lossless: bool = False,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compress pictures into one file, by the model's own probabilities of their ids.

    Args:
        model: gives the probabilities.
        pictures: DATA (a picture's file, a folder, a table ...; see docs/data.md), a source that is open, or pictures.
        out: a new file.
        lossless: keep the pictures' own pixels, not only their ids.
        batch_size: pictures that are coded together; default: what the backend runs best.
        progress: called with (pictures there, pictures in all).

    Raises:
        InputError: see `Compression`.
        MissingExtra: constriction is missing (extra "compress").
    """
    if isinstance(pictures, (str, Path)):
        source = open_source(pictures)
    else:
        source = pictures if isinstance(pictures, Source) else source_of(list(pictures))
    return Compression(model, source, lossless, batch_size).run(out, progress=progress)


def check_model(model: ImageGPT) -> None:
    """Refuse a model that gives no probability of the next id, or of too few or too many colours."""
    if not checkpoint.is_causal(model.path):
        raise InputError(
            f"{model.path} is a bidirectional (BERT) model: it gives no probability of the next id, so it can't "
            "compress; take one that paints."
        )
    check_colors(len(model.codec))


def backend_of(model: ImageGPT) -> str:
    """ "onnx" or "torch": what runs the model."""
    return model.named_backend or choose_backend(model.path, model.spec, model.device, model.precision)


def device_of(model: ImageGPT) -> str:
    """The kind of device that the model runs on."""
    return str(getattr(getattr(model.backend, "device", None), "type", "cpu"))


def versions(backend: str) -> dict[str, str]:
    """What makes the probabilities and the code, with versions."""
    package = "onnxruntime" if backend == "onnx" else "torch"
    return {"imagegpt": __version__, package: version(package), "numpy": np.__version__}


def tell_pictures(tell: Tell, done: int, rows: int, length: int, positions: int) -> None:
    """Tell of a batch on its way as of so many pictures.

    Args:
        tell: is told.
        done: pictures before the batch.
        rows: pictures in it.
        length: positions of a picture.
        positions: of these, how many are done.
    """
    tell(done + rows * positions // length)


def _part_size(out: Path) -> int:
    """How many pictures the batches have: an interrupted run's, where one is continued."""
    return json.loads((folder_of(out) / "run.json").read_text(encoding="utf-8"))["part"]


def _name_of(folder: Path) -> str:
    embedded = [name for name, path in checkpoint.EMBEDDED.items() if path == folder]
    name = embedded[0] if embedded else folder.resolve().name
    return name[:MOST_TOLD] if name.isprintable() else "?"
