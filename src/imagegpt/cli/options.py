"""What the verbs share on the command line: kinds of arguments, and options that several have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from imagegpt import sequence
from imagegpt.arguments import Whole
from imagegpt.codec.augment import Views
from imagegpt.engine.backends import Precision
from imagegpt.engine.features import Layer
from imagegpt.errors import InputError, check_count
from imagegpt.pipeline import ImageGPT

if TYPE_CHECKING:
    from imagegpt.data.records import Source


Json = Annotated[bool, Parameter("--json", negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """How a model runs.

    Args:
        device: cpu, cuda or mps; default: the best one here.
        precision: fp32; int8 on a CPU, which is faster; bf16 or fp16 with the torch backend.
        backend: onnx or torch; default: the faster one.
    """

    device: str | None = None
    precision: Precision = "fp32"
    backend: Literal["onnx", "torch"] | None = None

    def how(self) -> dict[str, Any]:
        """The same as arguments of `from_pretrained`."""
        return {"device": self.device, "precision": self.precision, "backend": self.backend}


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions(RunOptions):
    """Which model, and how it runs.

    Args:
        model: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
    """

    model: str = "nano"

    def open(self) -> ImageGPT:
        """The model."""
        return ImageGPT.from_pretrained(self.model, **self.how())


@Parameter(name="*")
@dataclass(frozen=True)
class PaintOptions(ModelOptions):
    """How to paint.

    Args:
        temperature: below 1 is safer, above 1 is wilder, 0 always takes the likeliest colour.
        top_k: draw from the k likeliest colours only.
        top_p: draw from the likeliest colours that together have this probability.
        min_p: draw from colours at least this times as likely as the likeliest only.
        seed: the same seed and command give the same pictures.
        batch_size: samples that are drawn at once; default: what is fast and fits into memory.
        json: print what was made as JSON.
    """

    temperature: float = 1.0
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Whole = 0
    batch_size: Whole | None = None
    json: Json = False

    def facts(self) -> dict[str, Any]:
        """What a picture's file says of how it was made."""
        return {"model": self.model, "precision": self.precision, **self.sampling()}

    def sampling(self) -> dict[str, Any]:
        """What decides which pictures come out; arguments of `ImageGPT.complete` and `.sample`."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}


@Parameter(name="*")
@dataclass(frozen=True)
class PredictionOptions:
    """How a classifier predicts.

    Args:
        views: average over the picture alone (none), it and its mirror image (flip), or five cuts and theirs (ten).
        votes: of a bidirectional (BERT) model: so many random masks, and the class with the most votes.
        seed: of the masks.
    """

    views: Views = "none"
    votes: Whole = 0
    seed: Whole = 0


@Parameter(name="*")
@dataclass(frozen=True)
class RecordOptions:
    """Which records of DATA count.

    Args:
        limit: the first so many records only.
        on_error: stop at a picture that can't be read, or skip it and list it.
    """

    limit: Whole | None = None
    on_error: Literal["raise", "skip"] = "raise"


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions(RecordOptions):
    """Which records of DATA count, and where their labels are.

    Args:
        label_column: where a table keeps the labels; default: the column of that name or kind.
    """

    label_column: str | None = None

    def open(self, data: str) -> Source:
        """What DATA is."""
        from imagegpt.data.sources import open_source  # only some verbs read any

        return open_source(data, self.label_column, self.limit)


def open_images(images: list[str], limit: int | None) -> Source:
    """Picture files as they are named, or DATA, which is one argument.

    Raises:
        InputError: there is no such DATA, or a folder among several pictures.
    """
    from imagegpt.data.folders import open_files
    from imagegpt.data.sources import open_source

    if len(images) == 1:
        return open_source(images[0], limit=limit)
    for image in images:
        if os.path.isdir(image):
            raise InputError(f"{image} is a folder: give picture files, or one folder alone.")
    if limit is not None:
        check_count("--limit", limit)
    return open_files([Path(image) for image in images[:limit]], "the pictures")


def parse_layers(text: str | None) -> Layer:
    """Layers as they are typed: "12", "4,8,12" or "all"; `None` stays."""
    if text is None or text == "all":
        return text
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"Layers are a number, several with commas between them, or all, not {text!r}.") from None


def parse_grid(text: str) -> tuple[int, int]:
    """The value of --grid."""
    return sequence.parse_grid(text, "--grid is")


def place_among_processes() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun tells them."""
    rank, processes = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or processes is None:
        return 0, 1
    try:
        if 0 <= int(rank) < int(processes):
            return int(rank), int(processes)
    except ValueError:
        pass
    raise InputError(f"RANK={rank} and WORLD_SIZE={processes} in the environment name no process of a group.")
