"""imagegpt info"""

from __future__ import annotations

import dataclasses
import math

from imagegpt import checkpoint
from imagegpt.cli.options import Json
from imagegpt.cli.output import print_record
from imagegpt.codec.codec import grid_of
from imagegpt.codec.preprocessor_file import NAME as PREPROCESSOR
from imagegpt.codec.preprocessor_file import load_codec


def info(model: str = "nano", /, *, json_: Json = False) -> None:
    """Show what a model is: its shape, its files, its codec.

    Args:
        model: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
        json_: print it as JSON.
    """
    folder = checkpoint.find_model(model)
    spec = checkpoint.read_spec(folder)
    stored = checkpoint.stored_tensors(folder)
    heads, classes = checkpoint.stored_heads(folder, spec, stored)
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
        "codec": None,
    }
    if classes:
        record["classes"] = list(classes)
    if (folder / PREPROCESSOR).exists():
        codec, framing = load_codec(folder, spec)
        record["codec"] = {
            "name": codec.name,
            "ids": len(codec),
            "factor": codec.factor,
            "fingerprint": codec.fingerprint,
        }
        record["grid"] = list(grid_of(codec, framing))
        record["crop"] = framing.crop
    print_record(record, json_)
