"""What an exported file says of its model, in its metadata: enough to go from pictures to ids and back by it alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from imagegpt import __version__
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec

PREFIX = "imagegpt."


@dataclass(frozen=True)
class Metadata:
    """What is known of an exported model.

    Args:
        spec: its numbers.
        codec: its palette.
        framing: how pictures come to its grid.
        fingerprint: of the folder that was exported, as `imagegpt.checkpoint.fingerprint` tells it.
        precision: fp32, fp16 or int8.
        classes: names of a classifier's outputs.
        version: of imagegpt, that exported it.
    """

    spec: ModelSpec
    codec: PaletteCodec
    framing: Framing
    fingerprint: str
    precision: str
    classes: tuple[str, ...] = ()
    version: str = __version__

    def texts(self) -> dict[str, str]:
        """As the texts that an ONNX file holds; numbers and lists as JSON."""
        framing = self.framing
        values = {
            "spec": {name: value for name, value in dataclasses.asdict(self.spec).items() if value is not None},
            "grid": [framing.height, framing.width],
            "crop": framing.crop,
            "resample": int(framing.resample),
            # The shortest numbers that are the same float32.
            "clusters": [[float(str(value)) for value in color] for color in self.codec.clusters.astype(np.float32)],
            "classes": list(self.classes),
        }
        plain = {"version": self.version, "fingerprint": self.fingerprint, "precision": self.precision}
        texts = {**plain, **{name: json.dumps(value) for name, value in values.items()}}
        return {f"{PREFIX}{name}": text for name, text in texts.items()}


def read_metadata(texts: Mapping[str, str], path: object) -> Metadata:
    """The other way round.

    Raises:
        InputError: the texts are not of a file that imagegpt exported.
    """
    try:
        found = {name: texts[f"{PREFIX}{name}"] for name in ("version", "fingerprint", "precision")}
        names = ("spec", "grid", "crop", "resample", "clusters", "classes")
        values = {name: json.loads(texts[f"{PREFIX}{name}"]) for name in names}
        height, width = values["grid"]
        return Metadata(
            ModelSpec.from_config(values["spec"]),
            PaletteCodec(np.asarray(values["clusters"], np.float32)),
            Framing(height, width, values["crop"], values["resample"]),
            classes=tuple(values["classes"]),
            **found,
        )
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"{path} does not say which palette and grid it has: `imagegpt export` did not make it."
        ) from None
