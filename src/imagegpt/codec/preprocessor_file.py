"""preprocessor_config.json: where a model folder keeps its palette and its framing, in HF's layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegpt.checkpoint import EMBEDDED, find_model
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError
from imagegpt.files import write_text
from imagegpt.spec import ModelSpec

NAME = "preprocessor_config.json"


def load_preprocessor(folder: Path) -> tuple[PaletteCodec, Framing]:
    """Read a folder's palette and framing.

    Args:
        folder: a model folder with a preprocessor_config.json: `clusters` (K, 3), `size` as an int or a dict, and
            optionally `crop` and `resample`.

    Raises:
        InputError: no such file, no JSON, or no palette in it; the message names the file.
    """
    path = folder / NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        codec = PaletteCodec(config["clusters"])
        return codec, framing_from(config)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {NAME}, so its palette is unknown.") from None
    except KeyError as key:
        raise InputError(f"{path} has no entry {key}.") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} can't be used: {error}") from None


def framing_from(config: dict[str, Any]) -> Framing:
    """The framing that a preprocessor's dictionary describes; `size` is a side or {"height", "width"}."""
    size = config["size"]
    if isinstance(size, (list, tuple)):
        raise InputError(f'size must be a side or {{"height", "width"}}; in {size} it is not said which is which.')
    if isinstance(size, dict) and size.keys() != {"height", "width"}:
        raise InputError(f'size must be a side or {{"height", "width"}}, not {size}.')
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    return Framing(height, width, config.get("crop", "none"), config.get("resample", Framing.resample))


def find_palette(source: str) -> PaletteCodec:
    """The palette that a name means.

    Args:
        source: an .npy file such as OpenAI's kmeans_centers.npy, a model folder, "nano" or a Hugging Face Hub id.

    Raises:
        InputError: nothing of that name, or no palette in it.
    """
    return PaletteCodec.load(source) if source.endswith(".npy") else load_preprocessor(find_model(source))[0]


def load_palette(folder: Path, spec: ModelSpec) -> tuple[PaletteCodec, Framing]:
    """A model folder's palette and framing; where it has none, the embedded model's, with a warning.

    transformers' `model.save_pretrained` writes no palette, so such folders are common; their pictures keep their
    shapes, but the colours are a guess.

    Raises:
        InputError: the folder's file is damaged, or it has none and the embedded palette does not fit.
    """
    if (folder / NAME).exists():
        return load_preprocessor(folder)
    codec, framing = load_preprocessor(EMBEDDED["nano"])
    if len(codec) != spec.num_colors:
        raise InputError(f"{folder} has no {NAME}, so the palette of its {spec.num_colors} colours is unknown.")
    try:
        height, width = spec.square_grid
    except ValueError as error:
        raise InputError(f"{folder} has no {NAME}: {error}") from None
    warnings.warn(
        f"{folder} has no {NAME}: using the embedded palette of {len(codec)} colours, which this model may "
        "not have been trained with. Save its image processor into the folder.",
        stacklevel=2,
    )
    return codec, replace(framing, height=height, width=width)


def save_preprocessor(folder: Path, codec: PaletteCodec, framing: Framing) -> None:
    """Write a preprocessor_config.json that this package and transformers both read."""
    config = {
        "image_processor_type": "ImageGPTImageProcessor",
        "do_resize": True,
        "do_normalize": True,
        "do_color_quantize": True,
        "size": {"height": framing.height, "width": framing.width},
        "resample": int(framing.resample),
        "crop": framing.crop,
        "clusters": codec.clusters.astype(float).tolist(),
    }
    write_text(folder / NAME, json.dumps(config) + "\n")
