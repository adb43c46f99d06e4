"""Pictures of the order in which samples are drawn, and animations of it.

Shape suffixes: G samples, T ids, HW a frame's pixels, S colours of an animation, P colours of its palette.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.engine.decode import UNKNOWN
from imagegpt.errors import InputError, check_count
from imagegpt.files import write_whole
from imagegpt.painting import Decode
from imagegpt.sheet import enlarge, sample_sheet

COLORS = 256  # that a GIF's frame can have
SECONDS = (0.02, 60.0)  # browsers show a frame of less for 0.1 s; a GIF counts hundredths in 16 bits
BLOCK = 4096  # colours that are compared with the palette at once


def drawing_frames(
    decode: Decode, ids_GT: NDArray[np.int64], known_GT: NDArray[np.bool_], every: int
) -> Iterator[list[Image.Image]]:
    """What samples looked like on their way; of those that were stopped, as far as they came.

    Every sample is shown after as many of its own drawn ids, so none waits for known ids that others lack.

    Args:
        decode: ids to pictures, -1 as unknown ones: `ImageGPT.decode`.
        ids_GT: of samples; -1 where nothing was drawn.
        known_GT: which of them were given; these are seen in every frame.
        every: so many ids of each sample are drawn between two frames.

    Yields:
        G pictures: first what was given, then more and more, at last the samples as they are.

    Raises:
        InputError: another shape of `known_GT`, or `every` below 1.

    Example:
        >>> from imagegpt import ImageGPT
        >>> model = ImageGPT.from_pretrained("nano")
        >>> known = np.arange(1024)[None] < 512
        >>> len(list(drawing_frames(model.decode, np.zeros((1, 1024), np.int64), known, every=128)))
        5
    """
    ids_GT, known_GT = np.asarray(ids_GT), np.asarray(known_GT, bool)
    check_count("every", every)
    if ids_GT.ndim != 2 or known_GT.shape != ids_GT.shape:
        raise InputError(f"ids and known must be of one shape (samples, ids), not {ids_GT.shape} and {known_GT.shape}.")
    return _frames(decode, ids_GT, known_GT, every)


def _frames(
    decode: Decode, ids_GT: NDArray[np.int64], known_GT: NDArray[np.bool_], every: int
) -> Iterator[list[Image.Image]]:
    turn_GT = np.where(known_GT, 0, (~known_GT).cumsum(1))  # an unknown id is drawn as the 1st, 2nd, 3rd and so on
    total = int(turn_GT[ids_GT != UNKNOWN].max(initial=0))
    for drawn in [*range(0, total, every), total]:
        yield decode(np.where(turn_GT <= drawn, ids_GT, UNKNOWN))


def drawing_sheet(images: list[Image.Image]) -> Image.Image:
    """The samples of one frame side by side, every id a square; one sample alone has no margin."""
    return enlarge(images[0]) if len(images) == 1 else sample_sheet(images)


def write_gif(path: Path, frames: Iterable[Image.Image], seconds: float = 0.06, last: float = 2.0) -> None:
    """Write an animated GIF that begins again for ever.

    All frames share one palette, so that what does not change does not flicker, and are not dithered. Up to 256 colours
    in all are exact. Of more, the palette has those that represent the first and the last frame best.

    Args:
        path: of the file.
        frames: of one size.
        seconds: that each is shown, to the nearest hundredth.
        last: seconds that the last is shown.

    Raises:
        InputError: no frames, frames of several sizes, times that are no 0.02 to 60 seconds, or a file that can't be
            written.
    """
    for name, value in (("seconds", seconds), ("last", last)):
        if not SECONDS[0] <= value <= SECONDS[1]:  # NaN fails too
            raise InputError(f"{name} must be {SECONDS[0]} to {SECONDS[1]:.0f} seconds, not {value}.")
    pictures = [frame.convert("RGB") for frame in frames]
    if len({picture.size for picture in pictures}) != 1:
        raise InputError("An animation needs frames, all of one size.")
    first, *others = _with_palette(pictures)
    durations = [10 * round(100 * value) for value in [*[seconds] * len(others), last]]
    how: dict[str, Any] = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    write_whole(Path(path), lambda temporary: first.save(temporary, "GIF", **how))


def _with_palette(pictures: list[Image.Image]) -> list[Image.Image]:
    """RGB pictures as ones of a palette that they share, each colour as the nearest of it."""
    numbers = [_colors(picture) for picture in pictures]
    found_S = np.unique(np.concatenate([np.unique(number_HW) for number_HW in numbers]))
    chosen_P = found_S if len(found_S) <= COLORS else _representatives(pictures[0], pictures[-1])
    index_S, palette_P3 = np.empty(len(found_S), np.uint8), _rgb(chosen_P)
    for start in range(0, len(found_S), BLOCK):
        part = slice(start, start + BLOCK)
        gap_SP3 = _rgb(found_S[part])[:, None].astype(np.int32) - palette_P3
        index_S[part] = np.square(gap_SP3).sum(2).argmin(1)
    indexed = []
    for number_HW in numbers:
        image = Image.fromarray(index_S[np.searchsorted(found_S, number_HW)])
        image.putpalette(palette_P3.tobytes())
        indexed.append(image)
    return indexed


def _representatives(*pictures: Image.Image) -> NDArray[np.int32]:
    """The colours that represent pictures of one size best, as PIL finds them."""
    pixels = np.concatenate([np.asarray(picture) for picture in pictures])
    few = Image.fromarray(pixels).quantize(COLORS, Image.Quantize.MEDIANCUT, kmeans=1)
    return np.unique(_colors(few.convert("RGB")))


def _colors(picture: Image.Image) -> NDArray[np.int32]:
    """Each pixel's colour as one number."""
    red, green, blue = np.moveaxis(np.asarray(picture, np.int32), 2, 0)
    return (red << 16) | (green << 8) | blue


def _rgb(numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Numbers as colours again, (..., 3)."""
    return np.stack([numbers >> 16, numbers >> 8, numbers], -1).astype(np.uint8)  # the upper bits fall off
