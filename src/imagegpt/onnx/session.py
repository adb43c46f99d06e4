"""An onnxruntime session that knows its model's codec and grid."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from imagegpt.codec.codec import Codec
from imagegpt.errors import InputError, reason
from imagegpt.onnx.metadata import Metadata, read_metadata
from imagegpt.spec import ModelSpec

if TYPE_CHECKING:
    from imagegpt.codec.processor import ImageGPTImageProcessor

MODEL = "model.onnx"
REMOTE = "AzureExecutionProvider"  # calls a service


class InferenceSession(onnxruntime.InferenceSession):
    """onnxruntime's `InferenceSession`, of a file or a folder that `imagegpt export` made.

    All of onnxruntime's methods are there: `run(output_names, input_feed)`, `get_inputs()`, `get_outputs()`,
    `io_binding()` and the others.

    Args:
        path: an .onnx file; or a folder: its model.onnx, or the only .onnx file in it.
        sess_options: onnxruntime's `SessionOptions`.
        providers: names of onnxruntime's execution providers; default: all of this onnxruntime's that run on this
            machine, the fastest first.
        kwargs: further arguments of onnxruntime's class.

    Raises:
        InputError: there is no such file, onnxruntime can't read it, or it was not exported by imagegpt.

    Example:
        >>> session = InferenceSession("model")  # doctest: +SKIP
        >>> inputs = session.processor("photo.png", return_tensors="np")  # doctest: +SKIP
        >>> [states] = session.run(["last_hidden_state"], dict(inputs))  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Any = None,
        **kwargs: Any,
    ) -> None:
        self.path = find_file(path)
        if providers is None:
            providers = [name for name in onnxruntime.get_available_providers() if name != REMOTE]
        try:
            super().__init__(str(self.path), sess_options, providers, **kwargs)
        except Exception as error:  # onnxruntime's errors have no class of their own
            raise InputError(f"{self.path} can't be loaded: {reason(error)}") from None
        self.metadata: Metadata = read_metadata(self.get_modelmeta().custom_metadata_map, self.path)

    @property
    def spec(self) -> ModelSpec:
        """The model's numbers."""
        return self.metadata.spec

    @property
    def codec(self) -> Codec:
        """The model's codec, pixels to ids and back; one that is a network is loaded now, with torch."""
        return self.metadata.codec

    @property
    def grid(self) -> tuple[int, int]:
        """`(height, width)` of ids."""
        return self.metadata.grid

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8."""
        return self.metadata.precision

    @property
    def fingerprint(self) -> str:
        """Of the model folder that was exported."""
        return self.metadata.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of a classifier's outputs."""
        return self.metadata.classes

    @cached_property
    def processor(self) -> ImageGPTImageProcessor:
        """Pictures to `input_ids`, and ids to pictures; loads transformers."""
        from imagegpt.codec.processor import ImageGPTImageProcessor

        return ImageGPTImageProcessor.from_codec(self.codec, self.metadata.framing)


def find_file(path: str | os.PathLike[str], name: str = MODEL) -> Path:
    """The .onnx file that a path means: itself, or in a folder the one of that name, or the only one.

    Raises:
        InputError: there is none, or there are several.
    """
    found = Path(os.path.expanduser(path))
    if os.path.isfile(found):
        return found
    if not os.path.isdir(found):
        raise InputError(f"There is no file or folder {path}.")
    if (found / name).is_file():
        return found / name
    files = sorted(file.name for file in found.glob("*.onnx"))
    if len(files) != 1:
        several = f"it has {', '.join(files)}: name one" if files else "it has no .onnx file at all"
        raise InputError(f"{found} has no {name}; {several}.")
    return found / files[0]
