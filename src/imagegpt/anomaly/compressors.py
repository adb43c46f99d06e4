"""How long a lossless compressor's file of a picture is: a measure of how complex the picture is (Serra et al. 2020).

Shape suffixes: B pictures, T ids, C colour channels.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from imagegpt.codec.codec import Codec
from imagegpt.errors import InputError
from imagegpt.sequence import unflatten

Compressor = Literal["png", "webp", "zlib"]
Pixels = NDArray[np.uint8]


def _image(pixels: Pixels, **options: Any) -> int:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return len(file.getvalue())


COMPRESSORS: dict[str, Callable[[Pixels], int]] = {
    "png": lambda pixels: _image(pixels, format="PNG", optimize=True),
    "webp": lambda pixels: _image(pixels, format="WEBP", lossless=True),
    "zlib": lambda pixels: len(zlib.compress(pixels.tobytes(), 9)),
}


def check_compressor(name: str) -> None:
    """Refuse a compressor that is unknown, or that Pillow was built without."""
    if name not in COMPRESSORS:
        raise InputError(f"compressor must be {', '.join(COMPRESSORS)}, not {name!r}.")
    if name == "webp" and not features.check("webp"):
        raise InputError("Pillow was built without WebP here: choose png or zlib.")


def compressor_version(name: str) -> str:
    """Which build a compressor is: another one may make files of other lengths."""
    kind = {"png": "zlib", "webp": "webp"}.get(name)
    return f"{name} {features.version(kind) if kind else zlib.ZLIB_RUNTIME_VERSION}"


def compressed(ids_BT: NDArray[np.int64], codec: Codec, grid: tuple[int, int], name: str) -> NDArray[np.float64]:
    """The length of each picture's file, (B,), in nats for each id: bytes times 8 ln 2 / T.

    Args:
        ids_BT: the pictures; what is compressed are the pixels that the codec makes of them, as the model sees these.
        codec: whose ids they are.
        grid: (height, width) of ids.
        name: "png" or "webp" of Pillow's, or "zlib" of the bytes row by row.
    """
    pixels_BHWC = codec.decode(unflatten(ids_BT, grid))
    lengths = [COMPRESSORS[name](pixels) for pixels in pixels_BHWC]
    return np.array(lengths, np.float64) * 8 * math.log(2) / ids_BT.shape[1]
