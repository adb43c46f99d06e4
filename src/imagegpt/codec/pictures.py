"""Any picture -> uint8 RGB of a given grid. numpy and PIL only."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imagegpt.errors import InputError, reason

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any"
Crop: TypeAlias = Literal["none", "center", "random"]
OnError: TypeAlias = Literal["raise", "skip"]

WHITE = (255, 255, 255)
MOST_PIXELS = 64_000_000  # of one picture: what reading takes stays below 1 GiB, whatever a file's header claims
TOO_LARGE = f"{{}}: the picture has too many pixels, at most {MOST_PIXELS:,} are read; shrink it first."
URL_SECONDS, URL_BYTES = 20, 1 << 26  # patience with a server, and the most that is fetched
# PIL runs the first with Ghostscript, and unpacks the second pixel by pixel in Python: minutes for a small file.
NOT_READ = {"EPS": "a PostScript program", "FITS": "an astronomer's table"}
STRIP = 1 << 20  # values of a deep picture that are scaled at once

# PIL logs some damage; without any handler Python prints it. Programs that configure logging still get it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Framing:
    """How a picture of any shape comes onto the grid.

    Args:
        height, width: of the grid.
        crop: "none" squashes the whole picture onto the grid, as HF does; "center" cuts the largest centred part of
            the grid's shape, as the paper does; "random" cuts one as large anywhere.
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
        if self.crop not in get_args(Crop):
            raise InputError(f"crop must be one of {', '.join(get_args(Crop))}, not {self.crop!r}.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the picture that the grid will show, in the picture's own resolution."""
        left, top, right, bottom = self._box(image.size)
        left, top = math.floor(left), math.floor(top)
        return image.crop((left, top, max(left + 1, round(right)), max(top + 1, round(bottom))))

    def apply(self, image: Image.Image, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
        """Crop and resize an RGB picture: (height, width, 3) uint8.

        Args:
            image: of any size.
            rng: decides where a "random" crop lies; default: a new one.
        """
        size = (self.width, self.height)
        if image.size != size:
            image = image.resize(size, self.resample, box=self._box(image.size, rng))
        return np.asarray(image)

    def _box(self, size: tuple[int, int], rng: np.random.Generator | None = None) -> tuple[float, float, float, float]:
        width, height = size
        if self.crop == "none":
            return (0, 0, width, height)
        scale = min(width / self.width, height / self.height)
        free_x, free_y = width - scale * self.width, height - scale * self.height
        if self.crop == "center":
            left, top = free_x / 2, free_y / 2
        else:
            left, top = (rng or np.random.default_rng()).random(2) * (free_x, free_y)
        return (left, top, min(left + scale * self.width, width), min(top + scale * self.height, height))


@dataclass(frozen=True)
class Reading:
    """How pictures are read where there is a choice.

    Args:
        background: RGB levels that alpha and transparent colours are laid on.
        white: the value of white in arrays of floats; default: 1 if no value is above 1, else 255, with a warning.
        channels: where an array has its channels, "first" or "last"; default: last where both fit.
        urls: fetch http and https addresses.
        exact: take only what 8-bit RGB or grey holds without loss; grey then stays grey ("L").

    Raises:
        InputError: no such levels, or no such white.
    """

    background: tuple[int, int, int] = WHITE
    white: float | None = None
    channels: Literal["first", "last"] | None = None
    urls: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        levels = self.background
        if len(levels) != 3 or not all(isinstance(level, Integral) and 0 <= level <= 255 for level in levels):
            raise InputError(f"background must be three levels from 0 to 255, not {levels!r}.")
        if self.white is not None and not (isinstance(self.white, Real) and 0 < self.white < math.inf):
            raise InputError(f"white must be a number above 0, not {self.white!r}.")


def read_picture(source: Picture, how: Reading | None = None) -> Image.Image:
    """Turn whatever holds one picture into an upright RGB image.

    * files (path, bytes, or an address if `how.urls`): what PIL reads, but for EPS, which runs Ghostscript, and FITS,
      which may take minutes; of an animation the first frame; EXIF orientation is applied.
    * PIL images of every mode: alpha and transparent colours are laid on white; 16-bit grey is scaled to 8 bits.
    * arrays and tensors: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, the last axis preferred where both
      fit; uint8, bool, uint16 (65535 is white), or floats: in [0, 1] if no value is above 1, else in [0, 255], which
      is a guess and warned of unless `how.white` says it.

    Args:
        source: a path, bytes, a PIL image, a numpy array or a torch tensor.
        how: choices; see `Reading`.

    Returns:
        An RGB image; with `how.exact` one in RGB or L.

    Raises:
        InputError: no such file, not a picture that is read, broken, larger than 64 million pixels, empty.
    """
    how = how or Reading()
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _open(io.BytesIO(_fetch(source, how)), source, how)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), how)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(source), "The bytes given", how)
    if isinstance(source, Image.Image):
        with _damage_told("The image"):
            return _to_rgb(source, "The image", how)
    return array_to_image(source, how)


def read_pictures(
    sources: Picture | Iterable[Picture],
    how: Reading | None = None,
    on_error: OnError = "raise",
    skipped: list[str] | None = None,
) -> list[Image.Image]:
    """Read one picture or several.

    Args:
        sources: one picture, or an iterable or an array of several.
        how: choices; see `Reading`.
        on_error: "skip" leaves bad pictures out.
        skipped: takes a sentence for each picture left out.

    Raises:
        InputError: a bad picture, named by its position from 0, with "raise"; or none is left.
    """
    if isinstance(sources, (str, os.PathLike, bytes, bytearray, Image.Image)) or getattr(sources, "ndim", 4) < 4:
        return [read_picture(sources, how)]
    images, bad = [], [] if skipped is None else skipped
    for position, source in enumerate(_flat(sources)):
        try:
            images.append(read_picture(source, how))
        except InputError as error:
            named = isinstance(source, (str, os.PathLike))  # a path's message says which already
            told = str(error) if named else f"Picture {position}: {error}"
            if on_error != "skip":  # a word that is misspelt leaves nothing out
                raise InputError(told) from None
            bad.append(told)
    if not images:
        raise InputError(f"No picture can be read; the first: {bad[0]}" if bad else "No picture was given.")
    return images


def _flat(sources: Iterable[Any]) -> Iterator[Any]:
    """Pictures in lists of lists, as transformers takes them, one after another; numbers are no pictures."""
    for source in sources:
        several = isinstance(source, (list, tuple)) and source and not isinstance(source[0], (Real, list, tuple))
        yield from source if several else [source]


def array_to_image(array: Any, how: Reading | None = None) -> Image.Image:
    """An RGB image from a numpy array or a torch tensor; see `read_picture` for what is accepted."""
    how = how or Reading()
    if isinstance(array, (list, tuple)):
        raise InputError("A list is no picture: make an array of its numbers, or give the pictures in one list.")
    pixels = as_array(array)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise InputError(f"An array of {pixels.dtype} with shape {pixels.shape} is no picture.")
    if pixels.ndim == 3:
        pixels = _channels_last(pixels, how)
    if how.exact and pixels.dtype not in (np.uint8, bool):
        raise InputError(f"An array of {pixels.dtype} is not kept exactly, only uint8 and bool are; convert it first.")
    return _to_rgb(Image.fromarray(_to_uint8(pixels, "The array", how.white)), "The array", how)


def as_array(values: Any) -> NDArray[Any]:
    """A numpy array from an array, nested lists or a torch tensor on any device, whose floats become float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _channels_last(pixels: NDArray[Any], how: Reading) -> NDArray[Any]:
    """(H, W, 3), (H, W, 4), or (H, W) for grey."""
    first = how.channels == "first" or (how.channels is None and pixels.shape[2] not in (1, 3, 4))
    if pixels.shape[0 if first else 2] not in (1, 3, 4):
        where = "at either end" if how.channels is None else how.channels
        raise InputError(f"An array of shape {pixels.shape} has no axis of 1, 3 or 4 channels {where}.")
    pixels = np.moveaxis(pixels, 0, 2) if first else pixels
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _to_uint8(pixels: NDArray[Any], name: str, white: float | None = None) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise InputError(f"{name}: its values go from {low:g} to {high:g}; they must be finite and not negative.")
    if pixels.dtype.kind == "f" and white is None:
        white = 1.0 if high <= 1 else 255.0
        warnings.warn(
            # Without the picture's own numbers: Python shows a warning once that says the same of every picture.
            f"Floats {'of at most' if high <= 1 else 'above'} 1 are read as a picture whose white is {white:g}; "
            f"say so (white={white:g}), or give uint8.",
            stacklevel=2,
        )
    elif white is None or pixels.dtype.kind != "f":
        white = 65535.0 if pixels.dtype == np.uint16 or high > 255 else 255.0
    if high > white:
        raise InputError(f"{name}: its values go up to {high:g}, above {white:g}; scale them to 0..255.")
    levels = np.empty(pixels.shape, np.uint8)
    flat, flat_levels = pixels.reshape(-1), levels.reshape(-1)
    for start in range(0, flat.size, STRIP):  # a whole picture in float64 takes 8 bytes a value
        strip = slice(start, start + STRIP)
        flat_levels[strip] = np.rint(flat[strip].astype(np.float64) * (255 / white))
    return levels


def _fetch(url: str, how: Reading) -> bytes:
    if not how.urls:
        raise InputError(f"{url} is an address; it is fetched only on request (urls=True).")
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=URL_SECONDS) as response:
            content = response.read(URL_BYTES + 1)
    except (OSError, ValueError) as error:  # what urllib raises derives from these
        raise InputError(f"{url} can't be fetched: {error}.") from None
    if len(content) > URL_BYTES:
        raise InputError(f"{url} is larger than {URL_BYTES >> 20} MiB.")
    return content


def _read_file(path: Path, how: Reading) -> Image.Image:
    if not os.path.exists(path):  # unlike Path's, it takes a name that is too long for an absent file
        raise InputError(f"{path}: there is no such file.")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a picture.")
    return _open(path, str(path), how)


def _open(file: Path | io.BytesIO, name: str, how: Reading) -> Image.Image:
    with _damage_told(name), Image.open(file) as image:
        return _to_rgb(image, name, how)


class _Filters:
    """What becomes of PIL's warnings while pictures are read, by as many threads as may be.

    Filters belong to the process: threads that each set and restored them would leave ours behind for good.
    """

    def __init__(self) -> None:
        self._lock, self._readers, self._set = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._readers += 1
            if self._readers == 1:
                self._set = warnings.catch_warnings()
                self._set.__enter__()
                warnings.filterwarnings("ignore", module="PIL")  # of damage that PIL can read past
                # A small picture may hold a large one, as icons do: what PIL warns of is above our limit already.
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._set.__exit__(None, None, None)


FILTERS = _Filters()


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Turn what PIL raises into one sentence about the picture."""
    try:
        with FILTERS:
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(TOO_LARGE.format(name)) from None
    except MemoryError:
        raise InputError(f"{name}: there is not enough memory to read the picture.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture in a format that can be read.") from None
    except PermissionError:
        raise InputError(f"{name} may not be read.") from None
    except InputError:
        raise
    # A broken file makes PIL's readers raise nearly anything.
    except Exception as error:
        raise InputError(f"{name}: the picture is truncated or damaged ({reason(error).rstrip('.')}).") from None


def _to_rgb(image: Image.Image, name: str, how: Reading) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels ({image.width} x {image.height}).")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(TOO_LARGE.format(name))
    if image.format in NOT_READ:
        raise InputError(f"{name} is {NOT_READ[image.format]}, which is not read; save it as a PNG first.")
    image.load()
    image = ImageOps.exif_transpose(image)
    if how.exact:
        return _exactly(image, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _deep_grey(image, name, how)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = _unpremultiplied(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", image.size, how.background)
        ground.paste(image, mask=image)
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _exactly(image: Image.Image, name: str) -> Image.Image:
    """RGB or grey ("L") with the very same levels."""
    if image.has_transparency_data:
        raise InputError(f"{name} has transparent parts, and only opaque pictures are kept exactly; flatten it first.")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("RGB", "P"):
        return image.convert("RGB")
    raise InputError(f"{name} is of mode {image.mode}, and only 8-bit RGB and grey are kept exactly; convert it first.")


def _deep_grey(image: Image.Image, name: str, how: Reading) -> Image.Image:
    """Grey of more than 8 bits as 8 bits; a transparent value becomes the background."""
    values = np.asarray(image)
    pixels = _to_uint8(values, name, how.white)
    if "transparency" not in image.info:
        return Image.fromarray(pixels)
    clear = (values == image.info["transparency"])[..., None]
    return Image.fromarray(np.where(clear, np.array(how.background, np.uint8), pixels[..., None]).astype(np.uint8))


def _unpremultiplied(image: Image.Image) -> Image.Image:
    *colors, alpha = (np.asarray(band, np.float64) for band in image.split())
    scaled = [np.rint(color * 255 / np.maximum(alpha, 1)).clip(0, 255) for color in colors]
    return Image.fromarray(np.stack([*scaled, alpha], 2).astype(np.uint8))
