"""What an exported file says of its model, in its metadata: enough to go from pictures to ids and back.

A palette is in it; a codec that is a network lies in a folder beside the file, and is loaded when it is asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt import __version__
from imagegpt.codec.codec import Codec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.stored import entries_of, read_codec
from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec

PREFIX = "imagegpt."


@dataclass(frozen=True)
class Metadata:
    """What is known of an exported model.

    Args:
        spec: its numbers.
        grid: (height, width) of ids.
        framing: what becomes of pictures before they are ids.
        entries: its codec's, as `Codec.store` gave them for `folder`.
        folder: of the file.
        codec_fingerprint: its codec's; the first files of imagegpt had none.
        fingerprint: of the folder that was exported, as `imagegpt.checkpoint.fingerprint` tells it.
        precision: fp32, fp16 or int8.
        classes: names of a classifier's outputs.
        version: of imagegpt, that exported it.
    """

    spec: ModelSpec
    grid: tuple[int, int]
    framing: Framing
    entries: Mapping[str, Any]
    folder: Path
    codec_fingerprint: str | None
    fingerprint: str
    precision: str
    classes: tuple[str, ...] = ()
    version: str = __version__

    @cached_property
    def codec(self) -> Codec:
        """Pixels to ids and back.

        Raises:
            InputError: it is not there, damaged, or another one than the model's.
        """
        try:
            codec = read_codec(self.entries, self.folder)
        except (ValueError, TypeError) as error:
            raise InputError(f"The codec of the model in {self.folder} can't be used: {error}") from None
        if self.codec_fingerprint not in (None, codec.fingerprint):
            raise InputError(
                f"The codec in {self.folder} is {codec.fingerprint}, and the model beside it was exported with "
                f"{self.codec_fingerprint}: export it again."
            )
        return codec

    def texts(self) -> dict[str, str]:
        """As the texts that an ONNX file holds; numbers and lists as JSON."""
        framing = self.framing
        values = {
            "spec": {name: value for name, value in dataclasses.asdict(self.spec).items() if value is not None},
            "grid": self.grid,
            "size": [framing.height, framing.width],
            "crop": framing.crop,
            "resample": int(framing.resample),
            **{name: _shortest(value) for name, value in self.entries.items()},
            "classes": list(self.classes),
        }
        plain = {"version": self.version, "fingerprint": self.fingerprint, "precision": self.precision}
        if self.codec_fingerprint is not None:
            plain["codec"] = self.codec_fingerprint
        texts = {**plain, **{name: json.dumps(value) for name, value in values.items()}}
        return {f"{PREFIX}{name}": text for name, text in texts.items()}


def read_metadata(texts: Mapping[str, str], path: Path) -> Metadata:
    """The other way round.

    Args:
        texts: of a file.
        path: of that file.

    Raises:
        InputError: the texts are not of a file that imagegpt exported.
    """
    ours = {name.removeprefix(PREFIX): text for name, text in texts.items() if name.startswith(PREFIX)}
    try:
        values = {name: json.loads(ours[name]) for name in ("spec", "grid", "crop", "resample", "classes")}
        entries = {name: json.loads(text) for name, text in entries_of(ours).items()}
        if not entries:
            raise ValueError("it has no codec")
        grid_height, grid_width = values["grid"]
        height, width = json.loads(ours.get("size", ours["grid"]))  # in the first files each pixel had its id
        return Metadata(
            ModelSpec.from_config(values["spec"]),
            (grid_height, grid_width),
            Framing(height, width, values["crop"], values["resample"]),
            entries,
            path.parent,
            ours.get("codec"),
            classes=tuple(values["classes"]),
            **{name: ours[name] for name in ("version", "fingerprint", "precision")},
        )
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"{path} does not say which codec and grid it has: `imagegpt export` did not make it."
        ) from None


def _shortest(value: Any) -> Any:
    """Lists of numbers as the shortest ones that are the same in float32; anything else as it is."""
    if isinstance(value, list):
        return [_shortest(entry) for entry in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value
