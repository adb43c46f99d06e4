"""Tiny models, pictures and files for the tests of compression."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from imagegpt import ImageGPT
from imagegpt.compression.container import CHECKSUM
from imagegpt.compression.decompressing import open_compressed, pictures


def photographs(count: int, height: int = 8, width: int = 8, grey: bool = False, seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures with a little noise: (height, width, 3), or (height, width)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
        large = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.int64)
        pixels = np.clip(large + rng.integers(-2, 3, large.shape), 0, 255).astype(np.uint8)
        found.append(pixels[..., 0].copy() if grey else pixels)
    return found


def decoded(path: Path, model: ImageGPT) -> list[np.ndarray]:
    """All pictures of a file."""
    return [pixels for batch in open_compressed(path).decode(model) for pixels in pictures(batch, model)]


def resealed(content: bytes) -> bytes:
    """A file's bytes with the checksum made right again."""
    body = content[:-CHECKSUM]
    return body + hashlib.sha256(body).digest()


def same(mine: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Whether two lists hold the same pictures."""
    return len(mine) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
