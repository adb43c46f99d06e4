"""Features kept by the content of what made them, so that a second probe only fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from imagegpt.codec.pictures import OnError
from imagegpt.data.records import Source
from imagegpt.extraction import Extraction
from imagegpt.feature_file import Features, read_features
from imagegpt.files import make_folder
from imagegpt.painting import Progress
from imagegpt.pipeline import ImageGPT

FREE = ("layers", "pool", "dtype")  # facts that are the same for all features here, or make no difference


def cached_features(
    model: ImageGPT,
    source: Source,
    layers: Sequence[int],
    folder: Path,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> Features:
    """The pooled features of a source: those in the cache, and the missing layers in one pass.

    An interrupted pass is continued by the next call.

    Args:
        model: makes them.
        source: the pictures or ids.
        layers: layers, from 0 to L.
        folder: of the cache.
        on_error: what is done about a picture that can't be read.
        progress: called with (pictures done, pictures in all) while features are made.

    Returns:
        Features of the layers, mapped from the cache's files.

    Raises:
        InputError: a picture that can't be read, a damaged file of the cache, or a folder that can't be written.
    """
    run = Extraction(model, source, layers, on_error=on_error)
    facts = {name: value for name, value in run.facts.items() if name not in FREE}
    place = folder / "features" / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    make_folder(place)
    there = _read(place)
    missing = [layer for layer in layers if layer not in there]
    if missing:
        run = Extraction(model, source, missing, on_error=on_error)
        run.run(place / f"layers-{'-'.join(map(str, missing))}.safetensors", progress=progress)
        there = _read(place)
    first = there[layers[0]]
    found = {layer: there[layer].layers[layer] for layer in layers}
    return Features(found, first.numbers, first.labels, {**first.facts, "layers": list(layers), "folder": str(place)})


def _read(place: Path) -> dict[int, Features]:
    """Each layer's file."""
    files = [read_features(path) for path in sorted(place.glob("*.safetensors"))]
    return {layer: file for file in files for layer in file.layers}
