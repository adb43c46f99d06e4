"""imagegpt classify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from imagegpt.checkpoint import fingerprint
from imagegpt.cli.options import Json, Whole
from imagegpt.cli.output import print_record, working
from imagegpt.engine.backends import Precision
from imagegpt.errors import InputError, check_count
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.probe_file import load_probe


def classify(
    images: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    /,
    *,
    probe: Path,
    top: Whole = 3,
    model: str | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
    backend: Literal["onnx", "torch"] | None = None,
    json_: Json = False,
) -> None:
    """Tell what pictures show, by a probe that `imagegpt probe` has made.

    Args:
        images: picture files.
        probe: the .safetensors file.
        top: classes that are told, the likeliest first.
        model: the model that the probe was fitted to, where it lies elsewhere by now.
        device: cpu, cuda or mps; default: the best one here.
        precision: fp32; int8 on a CPU; bf16 or fp16 with the torch backend.
        backend: onnx or torch; default: the faster one.
        json_: print it as JSON.
    """
    check_count("--top", top)
    saved = load_probe(probe)
    if not saved.layers:
        raise InputError(f"{probe} is a baseline's: it reads no layer of a model.")
    opened = ImageGPT.from_pretrained(model or saved.model, device=device, precision=precision, backend=backend)
    if fingerprint(opened.path) != saved.fingerprint:
        raise InputError(f"{probe} was fitted to another model than {opened.path}: name its own with --model.")
    with working("classifying", "pictures", before="loading the model") as progress:
        found: Any = opened.features(images, list(saved.layers), progress=progress)
    probabilities = saved.probe.probabilities(np.concatenate([found[layer] for layer in saved.layers], 1))
    told = []
    for image, row in zip(images, probabilities, strict=True):
        likeliest = np.argsort(-row, kind="stable")[:top]
        told.append({"image": image, "classes": {saved.classes[label]: float(row[label]) for label in likeliest}})
    if json_:
        print_record({"probe": str(probe), "model": saved.model, "images": told}, True)
        return
    table = Table("picture", "class", "probability")
    for entry in told:
        for name, probability in entry["classes"].items():
            table.add_row(entry["image"], name, f"{probability:.3f}")
    Console().print(table)
