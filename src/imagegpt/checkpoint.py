"""A model on disk: find its folder, and check what is in it before anything large is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, reason
from imagegpt.spec import ModelSpec
from imagegpt.tensors import map_tensors, read_header

EMBEDDED = {"nano": Path(__file__).parent / "weights" / "nano"}
CONFIG = "config.json"
HEAD, SCORE = "lm_head.weight", "score.weight"  # what draws, and what classifies
# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_ID = r"[\w.-]+/[\w.-]+"
HUB_FILES = ["*.json", "*.safetensors", "*.bin", "README.md"]
# What says what a model is: a codec may be a network, in a folder of its own, and that is small beside the model.
SMALL_FILES = ["*.json", "vqvae/*.safetensors", "vqmodel/*.safetensors"]
Heads = Mapping[str, int]
CROSS_ATTENTION = r"\.h\.\d+\.(crossattention|ln_cross_attn)\."  # drawing and features do without
# Names of the causal masks that files of old releases carry; a mask is no weight.
OLD_MASKS = r"(^|\.)h\.\d+\.(attn|crossattention)\.(masked_)?bias$"


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: "nano" (the embedded model), a folder, or an id on the Hugging Face Hub, which is fetched.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: there is no such model, or it can't be fetched.
    """
    if str(name) in EMBEDDED:
        return EMBEDDED[str(name)]
    path = Path(os.path.expanduser(name))  # unlike Path's methods, those of os.path take any name
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise InputError(f"{name} is a file; a model is a folder with {CONFIG} and weights.")
    if not re.fullmatch(HUB_ID, str(name)):
        known = ", ".join(EMBEDDED)
        raise InputError(f"There is no model {str(name)!r}: give {known}, a model folder, or a Hub id like owner/name.")
    return fetch_model(str(name), revision)


def fetch_model(hub_id: str, revision: str | None = None, small: bool = False) -> Path:
    """The local folder of a model on the Hugging Face Hub, fetched if it is not there yet.

    Args:
        hub_id: such as owner/name; a folder of that name does not count.
        revision: branch, tag or commit.
        small: only what says what it is, its config and its codec, and not the model's weights.

    Raises:
        InputError: it is no id, or can't be fetched.
    """
    if not re.fullmatch(HUB_ID, hub_id):
        raise InputError(f"{hub_id!r} is no id on the Hugging Face Hub, which is like owner/name.")
    files = SMALL_FILES if small else HUB_FILES
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"There is no folder {hub_id!r}, and it can't be fetched from the Hugging Face Hub: {reason(error)}"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        InputError: there is none, it is no JSON, or it is of another kind of model.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        own = folder / "model"
        hint = f" It is a run's; its model is {own}." if (own / CONFIG).is_file() else ""
        raise InputError(f"{folder} is no model folder: it has no {CONFIG}.{hint}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "imagegpt":
        raise InputError(f'{path} is not of an ImageGPT: its model_type is {kind!r}, not "imagegpt".')
    return config


def is_causal(folder: Path) -> bool:
    """Whether a folder's model sees only the ids before each; False for a bidirectional (BERT) one."""
    causal = read_config(folder).get("is_causal", True)
    if not isinstance(causal, bool):
        raise InputError(f"{folder / CONFIG}: is_causal must be true or false, not {causal!r}.")
    return causal


def read_spec(folder: Path) -> ModelSpec:
    """The numbers of the model in a folder; an InputError says what is wrong with them."""
    config = read_config(folder)
    try:
        return ModelSpec.from_config(config)
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None


def read_classes(folder: Path) -> tuple[str, ...]:
    """Names of a classifier's outputs, by number, as its config.json has them.

    Raises:
        InputError: they are not numbered from 0 on.
    """
    config = read_config(folder)
    try:
        # transformers leaves them out where they are these.
        names = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
        by_number = {int(number): str(name) for number, name in names.items()}
        return tuple(by_number[number] for number in range(len(names)))
    except (AttributeError, KeyError, TypeError, ValueError):
        told = config.get("id2label")
        raise InputError(
            f"{folder / CONFIG}: id2label must name the classes 0, 1, 2 and so on, not {told!r}."
        ) from None


def stored_heads(
    folder: Path, spec: ModelSpec, stored: Mapping[str, Any] | None
) -> tuple[Heads | None, tuple[str, ...]]:
    """The heads that a folder's weights must have, and the classes that it tells.

    Args:
        folder: the model's.
        spec: its numbers.
        stored: what is in its weights by their headers (`stored_tensors`); `None` where these do not tell.

    Returns:
        Heads for `check_weights`, `None` for the one that draws; names of classes, none without a class head.
    """
    if stored is None or SCORE not in stored:
        return None, ()
    classes = read_classes(folder)
    draws = {HEAD: spec.num_colors} if HEAD in stored else {}
    return {**draws, SCORE: len(classes)}, classes


def weights_file(folder: Path) -> Path:
    """The file that holds a folder's weights, or the index of its shards."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}.")


def fingerprint(folder: Path) -> str:
    """A hex digest of a folder's config.json and weights: what results, caches and sessions know a model by."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for path in _shards(weights_file(folder)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def expected_shapes(spec: ModelSpec, heads: Heads | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, as in every published checkpoint.

    Args:
        spec: the model's numbers.
        heads: name of a head's weight -> how many outputs it has; default: the head that draws, if it is one by itself.
    """
    width, inner = spec.n_embd, spec.inner_width
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (spec.vocab_size, width),
        "transformer.wpe.weight": (spec.n_positions, width),
    }
    for layer in range(spec.n_layer):
        attended = spec.heads(layer) * spec.head_width
        block = {
            "ln_1.weight": (width,),
            "attn.c_attn.weight": (width, 3 * attended),
            "attn.c_attn.bias": (3 * attended,),
            "attn.c_proj.weight": (attended, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "mlp.c_fc.weight": (width, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, width),
            "mlp.c_proj.bias": (width,),
        }
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes["transformer.ln_f.weight"] = (width,)
    if heads is None:
        heads = {} if spec.tie_word_embeddings else {HEAD: spec.num_colors}
    return shapes | {name: (outputs, width) for name, outputs in heads.items()}


def stored_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Name -> (dtype, shape) of a folder's safetensors, from the headers alone; `None` for old `.bin` files.

    Raises:
        InputError: no weights, a shard that is missing, or a damaged file.
    """
    path = weights_file(folder)
    files = _shards(path)
    if ".safetensors" not in path.name:
        return None
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        tensors |= {name: (entry.dtype, entry.shape) for name, entry in read_header(file).items()}
    return {name: entry for name, entry in tensors.items() if not re.search(OLD_MASKS, name)}


def check_weights(folder: Path, spec: ModelSpec, heads: Heads | None = None) -> None:
    """Compare a folder's safetensors with what the spec expects, without reading a tensor; see `expected_shapes`.

    Raises:
        InputError: a tensor is missing, has another shape, or is none of this network's; the message names the first.
    """
    stored = stored_tensors(folder)
    if stored is not None:
        _check_shapes(folder, spec, heads, {name: shape for name, (_, shape) in stored.items()})


def _check_shapes(folder: Path, spec: ModelSpec, heads: Heads | None, stored: Mapping[str, tuple[int, ...]]) -> None:
    blocks = {found[1] for name in stored if (found := re.match(r"transformer\.h\.(\d+)\.", name))}
    if len(blocks) != spec.n_layer:  # first: there may be no memory for the names of all that are asked for
        raise InputError(
            f"{folder}: {CONFIG} asks for n_layer {spec.n_layer}, and the weights have {len(blocks)} blocks."
        )
    expected = expected_shapes(spec, heads)
    for name, shape in expected.items():
        if name not in stored:
            raise InputError(_lacks(folder, name, shape))
        if stored[name] != shape:
            raise InputError(_misshapen(folder, name, stored[name], shape))
    if spec.tie_word_embeddings and HEAD in stored:
        raise InputError(
            f"{folder}: the weights have {HEAD}, and by {CONFIG} (tie_word_embeddings) the embedding is the head."
        )
    unknown = (name for name in stored if name.startswith("transformer.") and name not in expected)
    left = [name for name in unknown if not re.search(CROSS_ATTENTION, name)]
    if left:
        raise InputError(f"{folder}: the weights have {left[0]}, which no network has that is as {CONFIG} says.")


def load_tensors(folder: Path, heads: Heads | None = None) -> dict[str, NDArray[np.float32]]:
    """A folder's parameters as float32, by the names of `expected_shapes`; safetensors stay mapped to their files.

    A drawing head that is the embedding is there too, as a view of it, where no heads are named.

    Old `.bin` files are read by torch with `weights_only`, so they never execute code.

    Raises:
        InputError: no weights, damaged ones, or other parameters than config.json asks for.
    """
    spec = read_spec(folder)
    check_weights(folder, spec, heads)
    path, found = weights_file(folder), {}
    for file in _shards(path):
        found |= map_tensors(file) if file.suffix == ".safetensors" else _unpickle(file)
    found = {name: tensor for name, tensor in found.items() if not re.search(OLD_MASKS, name)}
    _check_shapes(folder, spec, heads, {name: tensor.shape for name, tensor in found.items()})
    tensors = {name: found[name] for name in expected_shapes(spec, heads)}
    if spec.tie_word_embeddings and heads is None:
        tensors[HEAD] = tensors["transformer.wte.weight"][: spec.num_colors]
    return tensors


def load_head(folder: Path, name: str, outputs: int) -> NDArray[np.float32] | None:
    """One head of a folder as float32, (outputs, width); `None` where there is none.

    Args:
        folder: of the model.
        name: of the head's weight. The one that draws may be a part of the embedding.
        outputs: how many it must have.

    Raises:
        InputError: no weights, damaged ones, or a head of another shape.
    """
    spec = read_spec(folder)
    tied = spec.tie_word_embeddings and name == HEAD
    stored = "transformer.wte.weight" if tied else name
    for file in _shards(weights_file(folder)):
        found = map_tensors(file, {stored}) if file.suffix == ".safetensors" else _unpickle(file)
        if stored in found:
            head, shape = found[stored][: outputs if tied else None], (outputs, spec.n_embd)
            if head.shape != shape:
                raise InputError(_misshapen(folder, name, head.shape, shape))
            return head
    return None


def no_class_head(folder: Path) -> str:
    """The sentence for who wants to classify with a model that has not learnt to."""
    return (
        f"{folder} has no class head ({SCORE}): make one with `imagegpt finetune`, or classify by a probe of its "
        "features (`imagegpt probe`, then `imagegpt classify --probe`)."
    )


def _lacks(folder: Path, name: str, shape: tuple[int, ...]) -> str:
    if name == SCORE:
        return no_class_head(folder)
    return f"{folder}: the weights lack {name} {shape}; is it a generative ImageGPT?"


def _misshapen(folder: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return f"{folder}: {name} has shape {found}, but {CONFIG} asks for {wanted}."


def _unpickle(path: Path) -> dict[str, NDArray[np.float32]]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise InputError(f"{path} can't be loaded: {reason(error)}") from error


def _shards(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is no index of shards.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{path} names a shard outside of its folder: {name!r}.")
        if not (path.parent / name).is_file():
            raise InputError(f"{path.parent} lacks the shard {name}.")
    return [path.parent / name for name in names]
