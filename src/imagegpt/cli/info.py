"""imagegpt info"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagegpt import checkpoint
from imagegpt.cli.options import Json
from imagegpt.cli.output import print_record
from imagegpt.codec.preprocessor_file import NAME as PREPROCESSOR
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.spec import ModelSpec


def info(model: str = "nano", /, *, json_: Json = False) -> None:
    """Show what a model is: its shape, its files, its palette.

    Args:
        model: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
        json_: print it as JSON.
    """
    folder = checkpoint.find_model(model)
    spec = checkpoint.read_spec(folder)
    stored = checkpoint.stored_tensors(folder)
    heads, classes = _heads(folder, spec, stored)
    checkpoint.check_weights(folder, spec, heads)
    weights = checkpoint.weights_file(folder)
    files = weights.parent.glob(f"{weights.name.split('.')[0]}*")
    record = {
        "path": str(folder),
        "weights": weights.name,
        "bytes": sum(file.stat().st_size for file in files),
        "dtypes": sorted({dtype for dtype, _ in stored.values()}) if stored else None,
        "parameters": sum(math.prod(shape) for shape in checkpoint.expected_shapes(spec, heads).values()),
        **dataclasses.asdict(spec),
        "palette": None,
    }
    if classes:
        record["classes"] = list(classes)
    if (folder / PREPROCESSOR).exists():
        codec, framing = load_preprocessor(folder)
        record["palette"] = {"colors": len(codec), "fingerprint": codec.fingerprint}
        record["grid"] = [framing.height, framing.width]
        record["crop"] = framing.crop
    print_record(record, json_)


def _heads(
    folder: Path, spec: ModelSpec, stored: Mapping[str, Any] | None
) -> tuple[checkpoint.Heads | None, tuple[str, ...]]:
    """The heads that a folder's weights must have, and the classes that it tells."""
    if stored is None or checkpoint.SCORE not in stored:
        return None, ()
    classes = checkpoint.read_classes(folder)
    draws = {checkpoint.HEAD: spec.num_colors} if checkpoint.HEAD in stored else {}
    return {**draws, checkpoint.SCORE: len(classes)}, classes
