"""preprocessor_config.json: where a folder keeps its codec and its framing, in HF's layout."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegpt.checkpoint import EMBEDDED, find_model
from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Crop, Framing
from imagegpt.codec.stored import folders_of, holds_vqmodel, read_codec, read_vqmodel
from imagegpt.errors import InputError
from imagegpt.files import write_text
from imagegpt.spec import ModelSpec

NAME = "preprocessor_config.json"
SIDE = 32  # the paper's grid, where nothing names one


def load_preprocessor(folder: Path) -> tuple[Codec, Framing]:
    """Read a folder's codec and framing.

    Args:
        folder: of a model or a codec, with a preprocessor_config.json: `clusters` (K, 3) or the entry of another codec,
            `size` in pixels as an int or a dict, and optionally `crop` and `resample`. A folder of diffusers' VQModel
            does without.

    Raises:
        InputError: no such file, no JSON, or no codec in it; the message names the file.
    """
    path = folder / NAME
    if not path.exists() and holds_vqmodel(folder):
        return read_vqmodel(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        framing = framing_from(config)
        codec = read_codec(config, folder)
        grid_of(codec, framing)
        return codec, framing
    except FileNotFoundError:
        raise InputError(f"{folder} has no {NAME}, so its palette is unknown.") from None
    except KeyError as key:
        raise InputError(f"{path} has no entry {key}.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} can't be used: {error}") from None


def codec_folders(folder: Path) -> list[str]:
    """Names of the folders in a model folder in which its codec lies; a palette needs none."""
    try:
        entries = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return [name for name in folders_of(entries) if name != "."]
    except (OSError, ValueError, AttributeError):  # who opens the model is told what is wrong
        return []


def framing_from(config: dict[str, Any]) -> Framing:
    """The framing that a preprocessor's dictionary describes; `size` is a side or {"height", "width"}."""
    size = config["size"]
    if isinstance(size, (list, tuple)):
        raise InputError(f'size must be a side or {{"height", "width"}}; in {size} it is not said which is which.')
    if isinstance(size, dict) and size.keys() != {"height", "width"}:
        raise InputError(f'size must be a side or {{"height", "width"}}, not {size}.')
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    return Framing(height, width, config.get("crop", "none"), config.get("resample", Framing.resample))


def find_codec(source: str) -> Codec:
    """The codec that a name means.

    Args:
        source: a palette's .npy file such as OpenAI's kmeans_centers.npy, the folder of a VQ-VAE or of diffusers'
            VQModel, a model folder, "nano" or a Hugging Face Hub id.

    Raises:
        InputError: nothing of that name, or no codec in it.
    """
    return find_framed(source)[0]


def find_framed(source: str, grid: tuple[int, int] | None = None, crop: Crop | None = None) -> tuple[Codec, Framing]:
    """The codec that a name means, and a framing for it.

    Args:
        source: see `find_codec`.
        grid: (height, width) of ids; default: that of the codec's folder, or 32 x 32 of an .npy file.
        crop: default: that of the codec's folder.
    """
    if source.endswith(".npy"):
        codec, framing = PaletteCodec.load(source), Framing(SIDE, SIDE)
    else:
        codec, framing = load_preprocessor(find_model(source))
    if grid is not None:
        framing = replace(framing, height=grid[0] * codec.factor, width=grid[1] * codec.factor)
    return codec, framing if crop is None else replace(framing, crop=crop)


def load_codec(folder: Path, spec: ModelSpec) -> tuple[Codec, Framing]:
    """A model folder's codec and framing; where it has none, the embedded model's, with a warning.

    transformers' `model.save_pretrained` writes no palette, so such folders are common; their pictures keep their
    shapes, but the colours are a guess.

    Raises:
        InputError: the folder's file is damaged or does not fit the model, or it has none and the embedded palette does
            not fit.
    """
    if (folder / NAME).exists():
        codec, framing = load_preprocessor(folder)
        _check_fit(folder, codec, framing, spec)
        return codec, framing
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


def _check_fit(folder: Path, codec: Codec, framing: Framing, spec: ModelSpec) -> None:
    if len(codec) != spec.num_colors:
        raise InputError(f"{folder}: its codec is a {codec.name}, and the model has {spec.num_colors} colours.")
    height, width = grid_of(codec, framing)
    if height * width != spec.n_positions:
        raise InputError(
            f"{folder}: a grid of {height} x {width} does not have the model's {spec.n_positions} positions."
        )


def save_preprocessor(folder: Path, codec: Codec, framing: Framing) -> None:
    """Keep a codec and a framing in a folder; transformers reads them too if the codec is a palette."""
    write_preprocessor(folder, codec.store(folder), framing)


def write_preprocessor(folder: Path, entries: dict[str, Any], framing: Framing) -> None:
    """Write a preprocessor_config.json.

    Args:
        folder: where the codec is kept already.
        entries: what `Codec.store` gave.
        framing: how pictures come to the codec.
    """
    config = {
        "image_processor_type": "ImageGPTImageProcessor",
        "do_resize": True,
        "do_normalize": True,
        "do_color_quantize": True,
        "size": {"height": framing.height, "width": framing.width},
        "resample": int(framing.resample),
        "crop": framing.crop,
        **entries,
    }
    write_text(folder / NAME, json.dumps(config) + "\n")
