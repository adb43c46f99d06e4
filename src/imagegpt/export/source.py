"""What is exported: a model folder, opened and checked, of which no weight is read yet.

Shape suffixes: K colours, D width, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.checkpoint import HEAD, SCORE
from imagegpt.codec.codec import Codec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import load_codec
from imagegpt.errors import InputError
from imagegpt.export.options import Function
from imagegpt.spec import ModelSpec
from imagegpt.tensors import map_tensors, read_header


@dataclass(frozen=True)
class Source:
    """A model folder that is to be exported.

    Args:
        folder: in HF's layout.
        spec: the model's numbers.
        config: all of its config.json.
        codec, framing: pixels to ids, and what becomes of pictures before.
        heads: name of a head's weight -> how many outputs it has.
    """

    folder: Path
    spec: ModelSpec
    config: Mapping[str, Any]
    codec: Codec
    framing: Framing
    heads: Mapping[str, int]

    @property
    def causal(self) -> bool:
        """Whether ids see only those before them; False for a bidirectional (BERT) model."""
        return bool(self.config.get("is_causal", True))

    @property
    def start(self) -> bool:
        """Whether the classifier puts SOS before the ids and leaves the last one out."""
        return bool(self.config.get("classifier_start", False))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classifier's outputs; none without a class head."""
        return checkpoint.read_classes(self.folder) if SCORE in self.heads else ()

    @cached_property
    def fingerprint(self) -> str:
        """What the model is known by; it takes a read of the whole file."""
        return checkpoint.fingerprint(self.folder)

    @property
    def draws(self) -> bool:
        """Whether the model has what predicts the next id."""
        return self.causal and (HEAD in self.heads or self.spec.tie_word_embeddings)

    def choose(self, only: Sequence[Function] | None) -> tuple[Function, ...]:
        """The functions that are exported: those that are asked for, or all that the model has.

        Raises:
            InputError: there is no such function, or the model lacks its head.
        """
        known = get_args(Function)
        for name in only or ():
            if name not in known:
                raise InputError(f"There is no function {name!r} to export; there are {', '.join(known)}.")
        lacks = {"classification": self._no_classes(), "decoder": self._no_decoder()}
        for name in only or ():
            if lacks.get(name):
                raise InputError(str(lacks[name]))
        return tuple(name for name in known if (name in only if only else not lacks.get(name)))

    def _no_classes(self) -> str | None:
        return None if SCORE in self.heads else checkpoint.no_class_head(self.folder)

    def _no_decoder(self) -> str | None:
        if not self.causal:
            return f"{self.folder} is a bidirectional (BERT) model: it can't draw ids one after another, so no decoder."
        return None if self.draws else f"{self.folder} has no head that draws ({HEAD}), so there is no decoder."


def open_source(folder: Path) -> Source:
    """Open a model folder and check that its weights are there, in the right shapes.

    Raises:
        InputError: it can't be used; the message says why.
    """
    spec, config = checkpoint.read_spec(folder), checkpoint.read_config(folder)
    if "quantization_config" in config:
        raise InputError(
            f"{folder} holds quantised weights; export the model that it was made of, with a precision of the export."
        )
    if config.get("add_cross_attention"):
        raise InputError(f"{folder} has cross-attention to an encoder's states; such models can't be exported.")
    codec, framing = load_codec(folder, spec)
    heads = _heads(folder, spec)
    checkpoint.check_weights(folder, spec, heads)
    return Source(folder, spec, config, codec, framing, heads)


def _heads(folder: Path, spec: ModelSpec) -> dict[str, int]:
    """The heads that are stored in a folder, each with its number of outputs."""
    stored = checkpoint.stored_tensors(folder)
    outputs = {HEAD: spec.num_colors, SCORE: len(checkpoint.read_classes(folder))}
    if spec.tie_word_embeddings:
        del outputs[HEAD]  # where it is stored at all, it is the embedding once more
    if stored is None:  # an old .bin file: its names are known when it is read
        return {name: count for name, count in outputs.items() if _is_there(folder, name, count)}
    return {name: count for name, count in outputs.items() if name in stored}


def _is_there(folder: Path, name: str, outputs: int) -> bool:
    return checkpoint.load_head(folder, name, outputs) is not None


class Parameters(Mapping[str, NDArray[np.float32]]):
    """A folder's parameters by the names of a checkpoint, as float32, each read when it is asked for.

    So what is in memory is what is in use, whatever type the file has. The drawing head of a model with tied embeddings
    is here too: the embedding's rows of colours. Only old .bin files are read as a whole.

    Args:
        source: the folder.
    """

    def __init__(self, source: Source) -> None:
        self._shapes = checkpoint.expected_shapes(source.spec, source.heads)
        self._tied = source.spec.num_colors if source.spec.tie_word_embeddings else None
        if self._tied is not None:
            self._shapes[HEAD] = (self._tied, source.spec.n_embd)
        if checkpoint.stored_tensors(source.folder) is None:
            self._read = checkpoint.load_tensors(source.folder, source.heads).__getitem__
        else:
            self._files = {name: path for path in _files(source.folder) for name in read_header(path)}
            self._read = self._map

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if self._tied is not None and name == HEAD:
            return self._read("transformer.wte.weight")[: self._tied]
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape, without reading it."""
        return self._shapes[name]

    def _map(self, name: str) -> NDArray[np.float32]:
        return map_tensors(self._files[name], {name})[name]


def _files(folder: Path) -> list[Path]:
    """The safetensors of a folder, whose index `stored_tensors` has checked."""
    path = checkpoint.weights_file(folder)
    if path.suffix != ".json":
        return [path]
    return [folder / name for name in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())]
