"""Codecs in folders: the entries of a JSON file that say which there is, and where.

What a network needs (torch, transformers, diffusers) is imported when one is opened: a palette does without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagegpt.codec.codec import Codec
from imagegpt.codec.palette import CLUSTERS, PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError

CONFIG = "config.json"
NETWORK, PUBLISHED = "vqvae", "vqmodel"  # entries that name the folder of one: ours, and diffusers' VQModel


def read_codec(entries: Mapping[str, Any], folder: Path) -> Codec:
    """The codec that entries describe.

    Args:
        entries: what `Codec.store` gave, perhaps among others.
        folder: where it stored the codec.

    Raises:
        KeyError: the entries name no codec.
        ValueError: what they name is none, or lies outside of the folder.
        InputError: its files are missing or damaged.
    """
    if entries.get(NETWORK) is not None:
        from imagegpt.codec.vqvae.model import VQVAE

        return VQVAE.load(_beside(folder, NETWORK, entries[NETWORK]))
    if entries.get(PUBLISHED) is not None:
        from imagegpt.codec.diffusers_vq import DiffusersVQ

        return DiffusersVQ.load(_beside(folder, PUBLISHED, entries[PUBLISHED]))
    return PaletteCodec(entries[CLUSTERS])


def entries_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a JSON file's entries that describe a codec; none if there is none."""
    return {name: values[name] for name in (CLUSTERS, NETWORK, PUBLISHED) if values.get(name) is not None}


def folders_of(values: Mapping[str, Any]) -> list[str]:
    """Names of the folders in which the codecs of a JSON file's entries lie; a palette has none."""
    return [name for entry, name in entries_of(values).items() if entry != CLUSTERS and isinstance(name, str)]


def holds_vqmodel(folder: Path) -> bool:
    """Whether a folder is a VQModel's, as diffusers writes it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == "VQModel"


def read_vqmodel(folder: Path) -> tuple[Codec, Framing]:
    """The codec of a VQModel's folder, and the framing at the size that its config.json names.

    Raises:
        InputError: it can't be used.
        MissingExtra: diffusers is missing (extra "diffusers").
    """
    from imagegpt.codec.diffusers_vq import DiffusersVQ

    codec = DiffusersVQ.load(folder)
    try:
        return codec, codec.framing
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _beside(folder: Path, entry: str, name: Any) -> Path:
    if not isinstance(name, str) or name in ("", "..") or (name != "." and Path(name).name != name):
        raise ValueError(f"{entry} must be the name of a folder beside it, not {name!r}")
    return folder / name
