"""What a model folder says of itself, once it is found to open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from imagegpt import checkpoint
from imagegpt.backbone import Backbone
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.spec import ModelSpec


@dataclass(frozen=True)
class Facts:
    """What a model folder that opens says of itself.

    Args:
        spec: the model's numbers.
        causal: whether it is autoregressive, or bidirectional (BERT).
        classes: of a classifier.
        parameters: how many, heads included.
        grid: (height, width) of ids.
        codec: what its ids are of: the codec's name and fingerprint.
        fingerprint: of the model; see `checkpoint.fingerprint`.
    """

    spec: ModelSpec
    causal: bool
    classes: tuple[str, ...]
    parameters: int
    grid: tuple[int, int]
    codec: tuple[str, str]
    fingerprint: str

    @property
    def task(self) -> str:
        """What the Hub calls that which the model does."""
        if self.classes:
            return "image-classification"
        return "unconditional-image-generation" if self.causal else "image-feature-extraction"


def check_weights(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Find out whether a folder's config and weights fit; of safetensors the headers are read, of `.bin` files all.

    Returns:
        How many parameters there are, and the names of the classes, if there is a class head.

    Raises:
        InputError: they do not; the message names the file or the first tensor.
    """
    spec, stored = checkpoint.read_spec(folder), checkpoint.stored_tensors(folder)
    if stored is None:
        shapes = [tensor.shape for tensor in checkpoint.load_tensors(folder, {}).values()]
        classes = _classes_of_bin(folder)
        heads = [len(classes) or (0 if spec.tie_word_embeddings else spec.num_colors)]
        return sum(map(math.prod, shapes)) + sum(heads) * spec.n_embd, classes
    heads, classes = checkpoint.stored_heads(folder, spec, stored)
    checkpoint.check_weights(folder, spec, heads)
    return sum(math.prod(shape) for shape in checkpoint.expected_shapes(spec, heads).values()), classes


def _classes_of_bin(folder: Path) -> tuple[str, ...]:
    kinds = checkpoint.read_config(folder).get("architectures") or []
    return checkpoint.read_classes(folder) if any("Classification" in str(kind) for kind in kinds) else ()


def read_facts(folder: Path) -> Facts:
    """Open a model folder: config, weights and codec.

    Raises:
        InputError: one of them is missing, damaged, or does not fit the others.
    """
    parameters, classes = check_weights(folder)
    load_preprocessor(folder)  # its own: a codec that is guessed is not for others
    opened = Backbone(folder)
    return Facts(
        opened.spec,
        checkpoint.is_causal(folder),
        classes,
        parameters,
        opened.grid,
        (opened.codec.name, opened.codec.fingerprint),
        checkpoint.fingerprint(folder),
    )
