"""Models out: ONNX files and torch's exported programs, each compared with the network before it is written."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegpt.export.exported import Exported
    from imagegpt.export.to_onnx import export_onnx
    from imagegpt.export.to_torch import export_torch

_HOMES = {"Exported": "exported", "export_onnx": "to_onnx", "export_torch": "to_torch"}
__all__ = ["Exported", "export_onnx", "export_torch"]


def __getattr__(name: str) -> Any:
    """The public names, each loaded when it is first used: one needs onnx, another torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'imagegpt.export' has no attribute {name!r}")
    return getattr(import_module(f"imagegpt.export.{_HOMES[name]}"), name)
