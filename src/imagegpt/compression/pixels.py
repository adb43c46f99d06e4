"""The original pixels of pictures whose ids are known: what is lossless about --lossless.

Pictures of one size and number of channels are coded together. What is learnt of one group serves the next one.

Shape suffixes: P pictures, T ids of a picture, G pixels of a framed one, N pixels that are coded together, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.pictures import Framing
from imagegpt.compression.canvas import Canvas, Step, differences
from imagegpt.compression.cells import Cells, cells_of
from imagegpt.compression.coder import Coder
from imagegpt.compression.frequencies import from_weights
from imagegpt.compression.prediction import Prediction
from imagegpt.compression.student import UNIT, level_weights
from imagegpt.sequence import unflatten

TOGETHER = 1 << 12  # pixels that are coded at once: what a row of a table for each of them takes is 8 MiB
GREEN = slice(1, 2)  # the channel that stands for a colour where the picture is grey


class Form(NamedTuple):
    """What pictures must have in common to be coded together."""

    height: int
    width: int
    channels: int


def code_pixels(
    coder: Coder,
    ids_BT: NDArray[np.int64],
    forms: Sequence[Form],
    codec: Codec,
    framing: Framing,
    known: Sequence[NDArray[np.uint8]] | None = None,
) -> list[NDArray[np.uint8]]:
    """Code the pixels of pictures.

    Args:
        coder: an encoder, or a decoder.
        ids_BT: the pictures' ids; where a picture has the framing's size, those of its very pixels.
        forms: of each picture.
        codec, framing: how the pictures became ids.
        known: for an encoder: uint8 (height, width, channels) of each picture.

    Returns:
        The pictures' pixels.

    Raises:
        DamagedStream: by a decoder.
    """
    found: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(forms)
    learnt: dict[int, Prediction] = {}
    for form, numbers in groups(forms):
        colors_PGC = _coded(codec, framing, ids_BT[numbers])
        canvas = Canvas(form[:2], colors_PGC if form.channels == 3 else colors_PGC[..., GREEN], framing)
        prediction = learnt.setdefault(form.channels, Prediction(form.channels, differences(form.channels)))
        cells = cells_of(codec) if form[:2] == (framing.height, framing.width) else None
        given = None if known is None else np.stack([known[number] for number in numbers])
        _code_group(coder, canvas, prediction, ids_BT[numbers], cells, given)
        for number, pixels in zip(numbers, canvas.pictures(), strict=True):
            found[number] = np.ascontiguousarray(pixels)
    return found


def groups(forms: Sequence[Form]) -> Iterator[tuple[Form, list[int]]]:
    """The pictures that are coded together: those of one form, in their order, as many as memory allows."""
    numbers: dict[Form, list[int]] = {}
    for number, form in enumerate(forms):
        numbers.setdefault(form, []).append(number)
    for form, alike in numbers.items():
        most = max(1, TOGETHER // min(form.height, (form.width + 1) // 2))  # pixels of a step in one picture
        for start in range(0, len(alike), most):
            yield form, alike[start : start + most]


def _code_group(
    coder: Coder,
    canvas: Canvas,
    prediction: Prediction,
    ids_PT: NDArray[np.int64],
    cells: Cells | None,
    known_PHWC: NDArray[np.uint8] | None,
) -> None:
    known_PXC = None if known_PHWC is None else known_PHWC.reshape(len(known_PHWC), -1, canvas.channels)
    for pixels_M in canvas.steps():
        step = canvas.at(pixels_M)
        ids_N = None if cells is None else ids_PT[:, pixels_M].reshape(-1)
        for channel in range(canvas.channels):
            known_N = None if known_PXC is None else known_PXC[:, pixels_M, channel].reshape(-1)
            allowed_NL = (
                None if cells is None or ids_N is None else _allowed(cells, ids_N, step, canvas.channels, channel)
            )
            _code_channel(coder, canvas, step, prediction, channel, allowed_NL, known_N)
        prediction.learn()


def _coded(codec: Codec, framing: Framing, ids_PT: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The framed pictures that the codec makes of ids, (P, G, C)."""
    colors_PHWC = codec.decode(unflatten(ids_PT, grid_of(codec, framing)))
    return colors_PHWC.reshape(len(colors_PHWC), -1, colors_PHWC.shape[-1])


def _allowed(cells: Cells, ids_N: NDArray[np.int64], step: Step, channels: int, channel: int) -> NDArray[np.bool_]:
    return cells.levels(ids_N, step.known(channel)) if channels == 3 else cells.greys(ids_N)


def _code_channel(
    coder: Coder,
    canvas: Canvas,
    step: Step,
    prediction: Prediction,
    channel: int,
    allowed_NL: NDArray[np.bool_] | None,
    known_N: NDArray[np.uint8] | None,
) -> None:
    base_N, values_NF = step.base(channel), step.values(channel)
    means_N = prediction.means(channel, base_N, values_NF)
    scales_N, classes_N = prediction.scales(channel, step.around(channel))
    weights_NL = level_weights(means_N, scales_N)
    if allowed_NL is not None:
        weights_NL = _narrowed(weights_NL, allowed_NL)
    levels_N = coder.code(from_weights(weights_NL), known_N)
    errors_N = np.abs(levels_N * UNIT - means_N)
    prediction.see(channel, values_NF, levels_N - base_N, errors_N, classes_N, scales_N)
    shape = (-1, len(step.cells_M))
    canvas.put(channel, step.cells_M, levels_N.reshape(shape), errors_N.reshape(shape))


def _narrowed(weights_NL: NDArray[np.int64], allowed_NL: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Weights of levels that are allowed, at least 1; where none is (in a damaged file), all are."""
    none_N1 = ~allowed_NL.any(1, keepdims=True)
    return (weights_NL + 1) * (allowed_NL | none_N1)
