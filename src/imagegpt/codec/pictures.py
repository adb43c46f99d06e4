"""Any picture -> uint8 RGB of a given grid. numpy and PIL only."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imagegpt.errors import InputError

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any"
Crop: TypeAlias = Literal["none", "center"]

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Framing:
    """How a picture of any shape comes onto the grid.

    Args:
        height, width: of the grid.
        crop: "none" squashes the whole picture onto the grid, as HF does; "center" cuts the largest centred part of
            the grid's shape, as the paper does.
        resample: PIL's number of the filter; 2 is bilinear (antialiased when it shrinks), the default of HF.
    """

    height: int
    width: int
    crop: Crop = "none"
    resample: int = Image.Resampling.BILINEAR

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"The grid's {name} must be a whole number of at least 1, not {value!r}.")
        if self.resample not in list(Image.Resampling):
            raise InputError(f"resample must be the number of a PIL filter, 0 to 5, not {self.resample!r}.")
        if self.crop not in ("none", "center"):
            raise InputError(f'crop must be "none" or "center", not {self.crop!r}.')

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the picture that the grid will show, in the picture's own resolution."""
        left, top, right, bottom = self._box(image.size)
        left, top = math.floor(left), math.floor(top)
        return image.crop((left, top, max(left + 1, round(right)), max(top + 1, round(bottom))))

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Crop and resize an RGB picture: (height, width, 3) uint8."""
        size = (self.width, self.height)
        if image.size != size:
            image = image.resize(size, self.resample, box=self._box(image.size))
        return np.asarray(image)

    def _box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        width, height = size
        if self.crop == "none":
            return (0, 0, width, height)
        scale = min(width / self.width, height / self.height)
        left, top = (width - scale * self.width) / 2, (height - scale * self.height) / 2
        return (left, top, width - left, height - top)


def read_picture(source: Picture) -> Image.Image:
    """Turn whatever holds one picture into an upright RGB image.

    * files (path or bytes): anything that PIL reads; of an animation the first frame; EXIF orientation is applied.
    * PIL images of every mode: alpha and transparent colours are laid on white; 16-bit grey is scaled to 8 bits.
    * arrays and tensors: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, the last axis preferred where both
      fit; uint8, bool, uint16 (65535 is white), or floats: in [0, 1] if no value is above 1, else in [0, 255].

    Args:
        source: a path, bytes, a PIL image, a numpy array or a torch tensor.

    Returns:
        An RGB image.

    Raises:
        InputError: no such file, not a picture, broken, too large (PIL's limit against decompression bombs), empty.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source))
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), "The bytes given")
    if isinstance(source, Image.Image):
        with _damage_told("The image"):
            return _to_rgb(source, "The image")
    return array_to_image(source)


def read_pictures(sources: Picture | Iterable[Picture]) -> list[Image.Image]:
    """Read one picture or several; an error in a batch names the picture by its position, from 0."""
    if isinstance(sources, (str, os.PathLike, bytes, Image.Image)) or getattr(sources, "ndim", 4) < 4:
        return [read_picture(sources)]
    images = []
    for position, source in enumerate(sources):
        try:
            images.append(read_picture(source))
        except InputError as error:
            named = isinstance(source, (str, os.PathLike))  # a path's message says which already
            raise error if named else InputError(f"Picture {position}: {error}") from None
    if not images:
        raise InputError("No picture was given.")
    return images


def array_to_image(array: Any) -> Image.Image:
    """An RGB image from a numpy array or a torch tensor; see `read_picture` for what is accepted."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    pixels = np.asarray(array)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise InputError(f"An array of {pixels.dtype} with shape {pixels.shape} is no picture.")
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        if pixels.shape[0] not in (1, 3, 4):
            raise InputError(f"An array of shape {pixels.shape} has no axis of 1, 3 or 4 channels at either end.")
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return _to_rgb(Image.fromarray(_to_uint8(pixels)), "The array")


def _to_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise InputError(f"The picture's values go from {low:g} to {high:g}; they must be finite and not negative.")
    if pixels.dtype.kind == "f":
        white = 1.0 if high <= 1 else 255.0
    else:
        white = 65535.0 if pixels.dtype == np.uint16 or high > 255 else 255.0
    if high > white:
        raise InputError(f"The picture's values go up to {high:g}, above {white:g}; scale them to 0..255.")
    return np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)


def _read_file(path: Path) -> Image.Image:
    if not os.path.exists(path):  # unlike Path's, it takes a name that is too long for an absent file
        raise InputError(f"{path}: there is no such file.")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a picture.")
    return _open(path, str(path))


def _open(file: Path | io.BytesIO, name: str) -> Image.Image:
    with _damage_told(name), Image.open(file) as image:
        return _to_rgb(image, name)


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Turn what PIL raises into one sentence about the picture."""
    try:
        with warnings.catch_warnings():
            # PIL warns at half of its limit; between the two a picture is large, but no bomb.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError:
        raise InputError(f"{name}: the picture has too many pixels to be opened safely; shrink it first.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture in a format that can be read.") from None
    except PermissionError:
        raise InputError(f"{name} may not be read.") from None
    except InputError:
        raise
    # A broken file makes PIL's readers raise nearly anything.
    except Exception as error:
        raise InputError(f"{name}: the picture is truncated or damaged ({error}).") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels ({image.width} x {image.height}).")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _deep_grey(image)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = _unpremultiplied(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (*WHITE, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits; a transparent value becomes white."""
    values = np.asarray(image)
    pixels = _to_uint8(values)
    if "transparency" in image.info:
        pixels = np.where(values == image.info["transparency"], np.uint8(255), pixels)
    return Image.fromarray(pixels)


def _unpremultiplied(image: Image.Image) -> Image.Image:
    *colors, alpha = (np.asarray(band, np.float64) for band in image.split())
    scaled = [np.rint(color * 255 / np.maximum(alpha, 1)).clip(0, 255) for color in colors]
    return Image.fromarray(np.stack([*scaled, alpha], 2).astype(np.uint8))
