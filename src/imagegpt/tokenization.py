"""Tokenised data sets: pictures as a codec's ids, made once (`imagegpt.data.tokens`), in parts
(`imagegpt.parts`).

The folder becomes a data set with its last file, `meta.json`; until then the parts lie in it.

Shape suffixes: N views of pictures, T ids of a view.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt import __version__
from imagegpt.array_file import write_part
from imagegpt.codec.augment import Augmentation
from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.pictures import MOST_PIXELS, Framing, OnError
from imagegpt.data.ids import Ids, View, read_ids
from imagegpt.data.records import Source, label_array
from imagegpt.data.tokens import IDS, LABELS, META
from imagegpt.errors import InputError, check_count
from imagegpt.files import check_writable, write_whole
from imagegpt.painting import Progress
from imagegpt.parts import NoResultError, Parts, folder_of
from imagegpt.tensors import read_metadata, read_tensors

PART = 2048  # views: what a kill may cost, against the number of files
PART_BYTES = 1 << 26  # of ids
MOST_COLORS = 1 << 16  # that 16 bits tell apart
PLAIN = Augmentation()


@dataclass(frozen=True)
class Tokenization:
    """A run that writes a tokenised data set.

    Args:
        source: the pictures.
        codec: makes ids of pixels; 65,536 of them at most.
        framing: brings a picture onto the grid.
        augmentation: what is drawn for each view.
        copies: augmented views of each picture, in the place of the plain one: all pictures' first views, then all
            pictures' second ones, and so on. 0 is each picture once, as the framing shows it.
        seed: view `copy` of record `number` is drawn by `np.random.default_rng([seed, copy, number])`.
        on_error: what is done about a picture that can't be read: "raise", or "skip", which lists it.

    Raises:
        InputError: the source holds ids; too many colours; a framing that draws for itself; copies without
            augmentation, or augmentation without copies; a seed or copies below 0.
    """

    source: Source
    codec: Codec
    framing: Framing
    augmentation: Augmentation = PLAIN
    copies: int = 0
    seed: int = 0
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.source.tokens:
            raise InputError(f"{self.source.path} holds ids already; give the pictures that they were made from.")
        if len(self.codec) > MOST_COLORS:
            raise InputError(f"Ids are kept in 16 bits: {MOST_COLORS:,} colours at most, not {len(self.codec):,}.")
        height, width = self.grid
        if self.framing.height * self.framing.width > MOST_PIXELS:
            raise InputError(f"The grid has {height} x {width} ids; that is too many.")
        if self.framing.crop == "random":
            raise InputError('A random crop differs from run to run; crop "none" or "center", and augment with "crop".')
        check_count("copies", self.copies, 0)
        check_count("seed", self.seed, 0)
        self._check_copies()

    def _check_copies(self) -> None:
        if self.copies and self.augmentation == PLAIN:
            raise InputError("Copies without augmentation would all be the same: say which one, such as cifar.")
        if not self.copies and self.augmentation != PLAIN:
            raise InputError(f"Say how many copies of each picture the augmentation {self.augmentation} should make.")

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of ids."""
        return grid_of(self.codec, self.framing)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the data set; the data is read once for its fingerprint."""
        return {
            "codec": self.codec.fingerprint,
            "grid": list(self.grid),
            "framing": asdict(self.framing),
            "augmentation": str(self.augmentation),
            "copies": self.copies,
            "seed": self.seed,
            "data": self.source.fingerprint(),
            "records": len(self.source),
            "on_error": self.on_error,
        }

    def run(self, out: Path, rank: int = 0, processes: int = 1, progress: Progress | None = None) -> int:
        """Make this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            out: the folder, new or empty; its parts lie in `out`/meta.json.parts until `out`/meta.json is written.
            rank, processes: which of how many processes this is; all run the same.
            progress: called with (views there, views in all), of all processes.

        Returns:
            How many views this process made, of pictures that can't be read too.

        Raises:
            InputError: `out` holds something else, a data set or parts of another run; it can't be written; or a
                picture can't be read.
        """
        check_folder(out, rank)
        total = len(self.source) * max(1, self.copies)
        parts = Parts(out / META, total, self.facts, "ids", "part", ".safetensors", rank, processes)
        is_new = not out.exists()
        try:
            out.mkdir(exist_ok=True)  # and none above it: that would be a misspelt path
        except OSError as error:
            raise InputError(f"The folder {out} can't be made: {error.strerror}.") from None
        size = max(1, min(PART, PART_BYTES // (2 * math.prod(self.grid))))
        try:
            return parts.run(
                size, self._make, self._join, lambda: json.loads((out / META).read_text("utf-8")), progress
            )
        except InputError:
            if is_new and rank == 0:
                with suppress(OSError):  # it holds parts, which are kept
                    out.rmdir()
            raise

    def _make(self, first: int, count: int, path: Path, tell: Callable[[int], None]) -> None:
        """The ids of the views from number `first` on."""
        ids, labels, numbers, skipped = [], [], [], []
        for batch in self._batches(first, first + count):
            ids.append(batch.ids_BT.astype(np.uint16))
            labels += batch.labels or []
            numbers += batch.numbers.tolist()
            skipped += batch.skipped
            tell(len(numbers) + len(skipped))
        arrays: dict[str, NDArray[Any]] = {"ids": np.concatenate(ids)}
        if self.source.labelled:
            arrays["labels"] = label_array(labels, numbers)
        write_part(path, arrays, skipped)

    def _batches(self, first: int, stop: int) -> Iterator[Ids]:
        for copy, start, end in self._spans(first, stop):
            view = self._view(copy) if self.copies else None
            yield from read_ids(self.source, self.codec, self.framing, self.on_error, start, end, view=view)

    def _spans(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The records that views are of: for each copy among them the first record, and the one after the last."""
        while first < stop:
            copy, start = divmod(first, len(self.source))
            end = min(len(self.source), start + stop - first)
            yield copy, start, end
            first += end - start

    def _view(self, copy: int) -> View:
        def view(image: Image.Image, number: int) -> NDArray[np.uint8]:
            return self.augmentation.apply(image, self.framing, np.random.default_rng([self.seed, copy, number]))

        return view

    def _join(self, path: Path, files: list[Path]) -> None:
        """Put the arrays together in the folder of the parts, move them out, and describe them."""
        skipped = list(dict.fromkeys(sentence for file in files for sentence in _skipped(file)))  # of all copies, once
        count = sum(len(read_tensors(file)["ids"]) for file in files)
        if not count:
            raise NoResultError(f"{self.source.path} holds no picture that can be read; the first: {skipped[0]}")
        names = {IDS: "ids", LABELS: "labels"} if self.source.labelled else {IDS: "ids"}
        meta = {
            **self.facts,
            "count": count,
            "classes": list(self.source.classes),
            "checksums": {file: _join_arrays(path.with_name(file), files, name) for file, name in names.items()},
            "skipped": skipped,
            "source": self.source.path,
            "imagegpt": __version__,
            **self._keep_codec(files[0].with_name("codec"), path.parent),
        }
        for left in path.parent.glob(".meta-*.json"):  # by a run that was killed at this very place
            left.unlink(missing_ok=True)
        path.write_text(json.dumps(meta) + "\n", encoding="utf-8")

    def _keep_codec(self, temporary: Path, out: Path) -> dict[str, Any]:
        """Put the codec into the folder; the entries that say where."""
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        entries = self.codec.store(temporary)
        for made in temporary.iterdir():
            shutil.rmtree(out / made.name, ignore_errors=True)  # of a run that was killed at this very place
            made.replace(out / made.name)
        return entries


def check_folder(out: Path, rank: int = 0) -> None:
    """Refuse a folder in which no data set can be made: it can't be written, or holds something else.

    Args:
        out: the folder, which may be missing; parts of an interrupted run may lie in it.
        rank: of the process; those but the first may come when the data set is there.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a new folder for the data set.")
    check_writable(out / META if out.is_dir() else out)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if META in there and rank == 0:
        raise InputError(f"{out} holds a tokenised data set already; remove it, or choose another --out.")
    if there and not there & {META, folder_of(out / META).name}:
        raise InputError(f"{out} is a folder with other files; choose a new or an empty one for the data set.")


def _skipped(file: Path) -> list[str]:
    return json.loads(read_metadata(file)["skipped"])


def _join_arrays(path: Path, files: list[Path], name: str) -> str:
    """Join an array of all parts into an .npy file, whole or not at all; the SHA-256 digest of its bytes.

    It is made in the folder of the parts: what a kill leaves there goes with them.
    """
    kinds = [(array.shape, array.dtype) for array in _arrays(files, name)]
    if len({shape[1:] for shape, _ in kinds}) > 1:
        raise InputError(f"The {name} do not all have as many numbers; give all records as many.")
    dtype = np.result_type(*(dtype for _, dtype in kinds))
    shape = (sum(shape[0] for shape, _ in kinds), *kinds[0][0][1:])
    contents = (np.ascontiguousarray(array, dtype).data for array in _arrays(files, name))
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for content in chain([_header(dtype, shape)], contents):
                digest.update(content)
                file.write(content)

    made = files[0].with_name(path.name)
    write_whole(made, write)
    made.replace(path)
    return digest.hexdigest()


def _arrays(files: Iterable[Path], name: str) -> Iterator[NDArray[Any]]:
    """An array of each part, one at a time; of parts without rows none: these have seen no label."""
    return (arrays[name] for arrays in map(read_tensors, files) if len(arrays[name]))


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()
