"""What a run trains and is validated on: sources as ids, and the codec that they share."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.codec import Codec, framing_for, moves_ids
from imagegpt.codec.fit import PixelSample, cluster_colors
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.data.ids import check_colours, check_tokens, codec_of
from imagegpt.data.records import Source, read_records
from imagegpt.data.sources import open_source
from imagegpt.data.tokens import META, verify
from imagegpt.errors import InputError
from imagegpt.files import make_folder
from imagegpt.painting import Progress
from imagegpt.tokenization import Tokenization
from imagegpt.train.batches import Batch, Batches
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.labels import Labels
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Data, Recipe

PALETTE = "palette.npy"
ROWS = 65536  # of ids that are looked at together
Working = Callable[[str, int, int], None]  # words, done, in all


@dataclass(frozen=True)
class Dataset:
    """The pictures of a run.

    Args:
        codec: makes ids of pixels.
        framing: the grid, and how a picture comes onto it.
        augmentation: how training pictures are shown.
        train: ids, or pictures where the augmentation needs them.
        validation: ids; `None` where none was given.
        skipped: how many pictures could not be read while ids were made of them; meta.json lists them.
        labels: what the pictures are labelled with, where that is learnt.
        more: what is learnt of a batch besides its ids: arrays by the names that the objective knows, or nothing.
    """

    codec: Codec
    framing: Framing
    augmentation: Augmentation
    train: Source
    validation: Source | None
    skipped: int = 0
    labels: Labels | None = None
    more: Callable[[Batch], dict[str, np.ndarray]] = lambda batch: {}

    def batches(self, recipe: FlatRecipe, group: Processes, skipped: Callable[[str], None] | None = None) -> Batches:
        """This process's share of the training batches; `skipped` is told of pictures that can't be read."""
        options = recipe.optimization
        views = self.train, self.codec, self.framing, self.augmentation
        return Batches(*views, options.batch, options.seed, group.rank, group.count, skipped)


def open_sources(data: Data) -> tuple[Source, Source | None]:
    """The training and the validation pictures as they are named.

    Raises:
        InputError: no data, or nothing in it that can be read.
    """
    if data.train is None:
        raise InputError("There is nothing to train on: give --train DATA.")
    train = open_source(data.train, data.label_column, data.limit)
    return train, open_source(data.validation, data.label_column, data.validation_limit) if data.validation else None


def open_dataset(recipe: Recipe, out: Path, group: Processes, working: Working | None = None) -> Dataset:
    """Open the data of a pretraining recipe; see `make_ids`."""
    sources = open_sources(recipe.data)
    codec = _codec(recipe, sources[0], out, group, working)
    return make_ids(sources, recipe, codec, out, group, working)


def make_ids(
    sources: tuple[Source, Source | None],
    recipe: FlatRecipe,
    codec: Codec,
    out: Path,
    group: Processes,
    working: Working | None = None,
) -> Dataset:
    """Turn pictures into ids in `out`/data, once, unless each time shows another part of them.

    Args:
        sources: for training and for validation.
        recipe: grid and augmentation.
        codec: makes ids of pixels.
        out: folder of the run.
        group: the processes, which share the work.
        working: told of what takes time.

    Raises:
        InputError: ids that don't fit the codec or the grid.
    """
    train, validation = sources
    if group.first:
        warn_of_empty_classes(train.path)
    framing = framing_for(codec, recipe.grid, recipe.data.crop)
    augmentation = Augmentation.parse(recipe.data.augment)
    for source in sources:
        if source is not None and source.tokens:
            check_tokens(source, codec, framing)
    make = _Ids(codec, framing, out / "data", group, working)
    if moves_ids(codec, augmentation) or train.tokens:
        train = make(train, "train")
    if validation is not None:
        validation = make(validation, "validation")
    return Dataset(codec, framing, augmentation, train, validation, make.skipped)


def warn_of_empty_classes(data: str) -> None:
    """Warn of folders beside those of other classes in which there is no file."""
    if not os.path.isdir(data):
        return
    folders = [entry.path for entry in os.scandir(data) if entry.is_dir()]
    empty = [folder for folder in folders if not any(files for _, _, files in os.walk(folder))]
    if empty and len(empty) < len(folders):
        names = ", ".join(sorted(os.path.basename(folder) for folder in empty))
        warnings.warn(f"{data}: no picture is in the folder {names}; training goes on without it.", stacklevel=2)


@dataclass
class _Ids:
    """Makes ids of sources of pictures, in folders of the run; checks those that are ids already."""

    codec: Codec
    framing: Framing
    folder: Path
    group: Processes
    working: Working | None
    skipped: int = 0

    def __call__(self, source: Source, split: str) -> Source:
        if source.tokens:
            self.group.once(lambda: self._check(source))
            return source
        folder = self.folder / split
        if not self.group.once(lambda: self._is_there(folder, source)):
            self._make(source, folder, split)
        self.skipped += len(json.loads((folder / META).read_text(encoding="utf-8"))["skipped"])
        return open_source(folder)

    def _check(self, source: Source) -> None:
        """Look at all ids; a validation would stop a run at the first that is no colour, hours later."""
        if os.path.isdir(source.path):
            verify(source.path)
        assert source.ids_NT is not None
        for start in range(0, len(source), ROWS):
            rows_BT = source.ids_NT[start : min(start + ROWS, len(source))]
            check_colours(rows_BT, self.codec, lambda row, start=start: next(source.part(start + row)).name)

    def _is_there(self, folder: Path, source: Source) -> bool:
        """Whether the ids were made by an earlier start of this run."""
        if not (folder / META).exists():
            return False
        ours = (self.codec.fingerprint, asdict(self.framing), len(source), source.path)
        there = self._made_of(folder / META) == ours
        if not there:  # of other data or of another codec
            shutil.rmtree(folder)
        return there

    def _made_of(self, path: Path) -> tuple[Any, ...] | None:
        """What decided the ids of a folder, as far as it can be told without reading the pictures again."""
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            return meta["codec"], meta["framing"], meta["records"], meta["source"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _make(self, source: Source, folder: Path, split: str) -> None:
        make_folder(self.folder)
        job = Tokenization(source, self.codec, self.framing, on_error="skip")
        job.run(folder, self.group.rank, self.group.count, _telling(self.working, f"ids of the {split} pictures"))
        _wait(folder / META, self.group)


def _codec(recipe: Recipe, train: Source, out: Path, group: Processes, working: Working | None) -> Codec:
    """The codec that a recipe asks for; a palette that is fitted is kept in the run's folder."""
    name = recipe.shape.codec
    if name == "fit":
        path = out / PALETTE
        if group.first and not (path.exists() and len(PaletteCodec.load(path)) == recipe.shape.colors):
            _fit(recipe, train, working).save(path)
        _wait(path, group)
        return PaletteCodec.load(path)
    return codec_of(train, name)


def _wait(path: Path, group: Processes) -> None:
    """Wait for a file of the first process, which may take longer to make than a process may be silent."""
    while not path.exists():
        time.sleep(0.2)
    group.wait()


def _fit(recipe: Recipe, train: Source, working: Working | None) -> PaletteCodec:
    sample = PixelSample(seed=recipe.optimization.seed)
    told = _telling(working, "colours of the training pictures")
    for number, (_, picture) in enumerate(read_records(train, "skip"), 1):
        if isinstance(picture, Image.Image):
            sample.add(np.asarray(picture))
        told(number, len(train))
    if not len(sample.pixels):
        raise InputError(f"--codec fit needs pictures, and {train.path} holds none that can be read.")
    return PaletteCodec(cluster_colors(sample.pixels, recipe.shape.colors, recipe.optimization.seed))


def _telling(working: Working | None, words: str) -> Progress:
    def tell(done: int, total: int) -> None:
        if working is not None:
            working(words, done, total)

    return tell
