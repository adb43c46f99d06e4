"""Read a model folder's weights strictly: everything that is needed, in the right shape, or an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from imagegpt.checkpoint import SCORE, check_weights, read_classes, read_spec, weights_file
from imagegpt.errors import InputError, reason
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification


def load_generative(folder: Path, dtype: torch.dtype, device: torch.device) -> ImageGPTForCausalImageModeling:
    """Load a generative ImageGPT for inference.

    Args:
        folder: in HF's layout; safetensors or, with `weights_only`, old `.bin` files; one file or shards.
        dtype: of the weights in memory.
        device: where they go.

    Raises:
        InputError: files missing or damaged, or weights that are missing or have a wrong shape.
    """
    check_weights(folder, read_spec(folder))
    return _load(ImageGPTForCausalImageModeling, folder, dtype, device)


def load_classifier(folder: Path, dtype: torch.dtype, device: torch.device) -> ImageGPTForImageClassification:
    """Load an ImageGPT with a class head for inference; see `load_generative`."""
    check_weights(folder, read_spec(folder), {SCORE: len(read_classes(folder))})
    return _load(ImageGPTForImageClassification, folder, dtype, device)


def _load(kind: type[Any], folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    try:
        with _no_progress_bar():
            loaded: Any = kind.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, attn_implementation="sdpa"
            )
        model, info = loaded
    # A damaged .bin makes the unpickler raise nearly anything; safetensors were checked above.
    except Exception as error:
        raise InputError(f"{weights_file(folder)} can't be loaded: {reason(error)}") from error
    # transformers fills gaps with random numbers and goes on.
    wrong = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if wrong:
        raise InputError(f"{weights_file(folder)}: {sorted(wrong)[0]} is missing or has a wrong shape.")
    return model.eval().to(device)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Reading a local folder is quick; transformers' bar would only disturb ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
