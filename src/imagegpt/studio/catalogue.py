"""The models that clients may choose, and the few that are open."""

from __future__ import annotations

import re
import reprlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt import checkpoint
from imagegpt.codec.codec import grid_of
from imagegpt.codec.preprocessor_file import load_codec
from imagegpt.engine.backends import Precision
from imagegpt.engine.cost import decode_memory, weight_memory
from imagegpt.engine.machine import free_memory
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.studio.limits import Limits


@dataclass(frozen=True)
class Description:
    """What a model is, told before its weights are read.

    Args:
        facts: words -> what is told of it.
        memory: bytes that it takes to open it and to draw as many pictures as one request may ask for.
        free: bytes of memory that are free.
    """

    facts: dict[str, str]
    memory: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is enough memory."""
        return self.memory <= self.free


class Catalogue:
    """The models on offer. A client's name for one is looked up here and nowhere else.

    Args:
        names: models that are always offered: "nano", folders, Hub ids; the first is shown first.
        roots: folders within which clients may name model folders.
        hub: whether clients may name ids on the Hugging Face Hub, which are then fetched.
        limits: how many are open, and how many pictures are drawn.
        device, precision, backend: how they run; see `ImageGPT`.

    Raises:
        InputError: one of the names is no model, or a root is no folder.
    """

    def __init__(
        self,
        names: Sequence[str],
        roots: Sequence[Path] = (),
        hub: bool = False,
        limits: Limits | None = None,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
    ) -> None:
        self._named = {name: checkpoint.find_model(name) for name in names}
        for name, folder in self._named.items():
            checkpoint.read_spec(folder)
            if not checkpoint.is_causal(folder):
                raise InputError(f"{name} is a bidirectional (BERT) model, which draws nothing.")
        for root in roots:
            if not root.is_dir():
                raise InputError(f"There is no folder {root}.")
        self._roots = [root.resolve() for root in roots]
        self.hub, self._limits = hub, limits or Limits()
        self._how: dict[str, Any] = {"device": device, "precision": precision, "backend": backend}
        self._fetched: dict[str, Path] = {}  # ids on the Hub, which is asked once
        self._open: OrderedDict[Path, ImageGPT] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """What is offered: the models that were named, and those in the roots."""
        folders = [config.parent for root in self._roots for config in sorted(root.glob(f"*/{checkpoint.CONFIG}"))]
        found = [str(folder) for folder in folders if self._is_within(folder.resolve())]
        return [*self._named, *(name for name in found if name not in self._named)]

    @property
    def first(self) -> str:
        """The one that is shown first."""
        return next(iter(self._named))

    def describe(self, name: str) -> Description:
        """What a model is, from its small files; of one on the Hub these alone are fetched.

        Raises:
            InputError: there is no such model, or a client may not name it.
        """
        folder = self._folder(name, small=True)
        spec = checkpoint.read_spec(folder)
        codec, framing = load_codec(folder, spec)
        if not checkpoint.is_causal(folder):
            raise InputError(f"{name} is a bidirectional (BERT) model: it draws nothing.")
        height, width = grid_of(codec, framing)
        number = 1 if self._how["precision"] == "int8" else 4
        drawing = decode_memory(spec, self._limits.samples, 1, spec.n_positions // 2, number)
        weights, free = weight_memory(spec, number), free_memory()
        facts = {
            "parameters": f"{spec.num_parameters:,}",
            "network": f"{spec.n_layer} layers of width {spec.n_embd} with {spec.n_head} heads",
            "picture": f"{framing.height} x {framing.width} pixels, {height} x {width} ids",
            "codec": f"{codec.name}, {len(codec)} ids",
            "memory to open it": _size(weights),
            f"and to draw {self._limits.samples} pictures": _size(drawing),
            "free memory": _size(free),
        }
        return Description(facts, weights + drawing, free)

    def open(self, name: str) -> ImageGPT:
        """A model, opened now or before; the one that was not used for longest goes.

        Raises:
            InputError: there is no such model, a client may not name it, or there is too little memory.
        """
        folder = self._folder(name)
        if folder not in self._open:
            needed = self.describe(name).memory
            while len(self._open) >= self._limits.models:
                self._open.popitem(last=False)
            if needed > (free := free_memory()):
                raise InputError(f"{name} needs {_size(needed)} of memory and {_size(free)} are free: choose another.")
            self._open[folder] = ImageGPT(folder, **self._how)
        self._open.move_to_end(folder)
        return self._open[folder]

    def _folder(self, name: str, small: bool = False) -> Path:
        """Where a model lies that a client has named; one on the Hub is fetched, if `small` without its weights."""
        if not self._is_hub_id(name):
            return self._find(name)
        if name in self._fetched:
            return self._fetched[name]
        folder = checkpoint.fetch_model(name, small=small)
        if not small:
            self._fetched[name] = folder
        return folder

    def _is_hub_id(self, name: str) -> bool:
        asked = self.hub and isinstance(name, str) and name not in self._named
        return asked and re.fullmatch(checkpoint.HUB_ID, name) is not None

    def _is_within(self, folder: Path) -> bool:
        return any(folder.is_relative_to(root) for root in self._roots)

    def _find(self, name: str) -> Path:
        """The folder of a name that is not on the Hub.

        What lies outside of the roots is answered as what is not there, so that nobody learns what there is.
        """
        if not isinstance(name, str):  # a client may say anything
            raise InputError(f"A model has a name, which {reprlib.repr(name)} is not.")
        if name in self._named:
            return self._named[name]
        with suppress(OSError, RuntimeError, ValueError):  # no name of a folder at all
            folder = Path(name).resolve()  # after links, so that none leads out of a root
            if self._is_within(folder) and folder.is_dir():
                return folder
        within = f" in {', '.join(map(str, self._roots))}" if self._roots else ""
        told = f"choose one of {', '.join(self.names)}" + (", or an id on the Hub" if self.hub else "")
        raise InputError(f"There is no model {name!r}{within}: {told}.")


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
