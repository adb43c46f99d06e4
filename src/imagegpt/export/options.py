"""What can be asked of an export, without torch and without onnx: the command reads it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from imagegpt.errors import InputError

Function = Literal["model", "classification", "decoder"]
OnnxPrecision = Literal["fp32", "fp16", "int8"]
TorchPrecision = Literal["fp32", "bf16", "fp16"]
# What a function is called on disk, without the file's ending.
FILES: dict[Function, str] = {
    "model": "model",
    "classification": "model_classification",
    "decoder": "decoder",
}


def check_hidden(hidden: Sequence[int], layers: int, functions: Sequence[Function]) -> None:
    """Refuse hidden states that are not there, are named twice, or of which no exported function is.

    Args:
        hidden: numbers of hidden states, as transformers counts them.
        layers: L, of the model.
        functions: that are exported.
    """
    for layer in hidden:
        if not 0 <= layer <= layers:
            raise InputError(f"There are hidden states 0 to {layers}, not {layer}.")
    if len(set(hidden)) < len(hidden):
        raise InputError(f"Hidden states are named once each, not {', '.join(map(str, hidden))}.")
    if hidden and "model" not in functions:
        raise InputError("Hidden states are outputs of the function model, which is not among those to export.")


def parse_hidden(text: str, layers: int) -> list[int]:
    """Numbers of hidden states from "4,8" or "all"."""
    if text == "all":
        return list(range(layers + 1))
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f'--hidden takes numbers such as 4,8, or all, not "{text}".') from None
