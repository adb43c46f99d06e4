"""Which files of a model folder are for others: the model with its codec, its card, its results."""

from __future__ import annotations

import fnmatch
import json
import re
import warnings
from pathlib import Path
from typing import Any

from imagegpt import checkpoint
from imagegpt.codec.preprocessor_file import NAME as PREPROCESSOR
from imagegpt.codec.preprocessor_file import codec_folders
from imagegpt.errors import InputError

CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
PICTURES = ("samples.png", "completions.png", "confusion.png", "reliability.png")
TRAINING, CONVERSION, EVALUATIONS = "training.json", "conversion.json", "evaluation*.json"
RECORDS = (TRAINING, CONVERSION, EVALUATIONS)
SMALL = (checkpoint.CONFIG, PREPROCESSOR, "generation_config.json", CARD, *LICENCES, *PICTURES)
SAFE = ("model*.safetensors", "model.safetensors.index.json")
WEIGHTS = (*SAFE, "pytorch_model*.bin", "pytorch_model.bin.index.json")


def files_of(folder: Path, fingerprint: str) -> list[str]:
    """Names of the files of a model folder that are for others: the model with its codec, its card, its results.

    Results that name the fingerprint of another model are left out, with a warning.
    """
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = checkpoint.weights_file(folder)
    shards = {weights.name}
    if weights.suffix == ".json":
        shards |= set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
    names = [name for name in there if name in SMALL or name in shards]
    inside = (path for name in codec_folders(folder) for path in (folder / name).glob("*") if path.is_file())
    names += [path.relative_to(folder).as_posix() for path in inside]
    for name in (name for name in there if matches(name, RECORDS)):
        about = read_record(folder / name).get("fingerprint", fingerprint)
        if about == fingerprint:
            names.append(name)
        else:
            warnings.warn(f"{folder / name} is left out: it is about another model ({about}).", stacklevel=2)
    return sorted(names)


def contents_of(folder: Path, names: list[str]) -> dict[str, str | bytes]:
    """Name -> path, or bytes of a record without this machine's paths."""
    contents: dict[str, str | bytes] = {name: str(folder / name) for name in names}
    for name in names:
        if matches(name, RECORDS):
            record = read_record(folder / name)
            if record != json.loads((folder / name).read_text(encoding="utf-8")):
                contents[name] = (json.dumps(record, indent=2) + "\n").encode()
    return contents


def read_record(path: Path) -> dict[str, Any]:
    """A result file beside the weights; an InputError says that it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is no record of results: it is no JSON object.")
    return without_places(record)


def without_places(value: Any) -> Any:
    """JSON in which each absolute path is cut to its last name: where it lay concerns this machine only."""
    if isinstance(value, dict):
        return {name: without_places(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if isinstance(value, str) and re.match(r"[/~]|[A-Za-z]:[\\/]|file:", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name in the folder itself is of some patterns."""
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
