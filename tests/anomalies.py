"""Pictures of two kinds for tiny models: striped ones, which are normal, and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imagegpt import ImageGPT
from imagegpt.anomaly import Detector

FPR = 0.2


def striped(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures of upright stripes in two colours of three."""
    rng = np.random.default_rng(seed)
    colors = np.array([[20, 40, 60], [200, 30, 90], [90, 220, 10]], np.uint8)
    pictures = []
    for _ in range(count):
        stripes = np.where(rng.random(8) < 0.5, *rng.permutation(3)[:2])
        picture = np.repeat(colors[stripes][None], 8, 0)
        picture[rng.integers(0, 8), rng.integers(0, 8)] = 255
        pictures.append(picture)
    return pictures


def noisy(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8))


def write(folder: Path, pictures: list[np.ndarray]) -> Path:
    """PNG files of these, in their order."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


def fitted(folder: Path, count: int = 80, **options) -> Detector:
    """A detector on the model in a folder, fitted to striped pictures."""
    return Detector.fit(ImageGPT.from_pretrained(folder, device="cpu"), striped(count), **{"fpr": FPR, **options})
