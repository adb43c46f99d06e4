"""Tiny classifiers as folders in HF's layout, as fine-tuning writes them, and pictures for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForImageClassification

K, GRID, WIDTH = 16, (8, 8), 32
T = GRID[0] * GRID[1]
CLASSES = ("cat", "dog", "eel", "fox", "gnu", "hen", "ibex")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
WEIGHTS = "model.safetensors"


def make(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    problem: str | None = SINGLE,
    *,
    start: bool = True,
    causal: bool = True,
    draws: bool = True,
    seed: int = 0,
) -> Path:
    """Write a classifier with large weights: with small ones all pictures are about the same.

    Args:
        folder: to write into.
        classes: names of the outputs.
        problem: `problem_type` of config.json.
        start: `classifier_start`.
        causal: else it is a BERT model.
        draws: keep a head that draws.
        seed: of the weights.
    """
    config = ImageGPTConfig(vocab_size=K + 1, n_positions=T, n_embd=WIDTH, n_layer=2, n_head=2)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type, config.classifier_start = problem, start
    if not causal:
        config.is_causal = False
    model, generator = ImageGPTForImageClassification(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            large = 0.6 if name == "score.weight" else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * large + ("ln_" in name))
    model.save_pretrained(folder)
    clusters = np.random.default_rng(0).uniform(-1, 1, (K, 3))
    save_preprocessor(folder, PaletteCodec(clusters), Framing(*GRID))
    if draws:
        change(folder, **{"lm_head.weight": torch.randn(K, WIDTH, generator=generator) * 0.3})
    return folder


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Set tensors of a folder's weights; `None` takes one out."""
    weights = {**load_file(folder / WEIGHTS), **tensors}
    save_file({name: value for name, value in weights.items() if value is not None}, folder / WEIGHTS, {"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    """Set entries of config.json; `None` takes one out."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Noise; each has colours of its own."""
    rng = np.random.default_rng(seed)
    lows = rng.integers(0, 200, count)
    return [rng.integers(low, low + 50, (11, 9, 3), np.uint8) for low in lows]


def ids_of(count: int, seed: int = 0) -> np.ndarray:
    """(count, T) ids, of a few colours each."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(rng.integers(0, K, 3), T) for _ in range(count)])


def save_pictures(folder: Path, images: list[np.ndarray], names: list[str]) -> Path:
    """PNG files, each in the subfolder of that name."""
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{number:03}.png")
    return folder
