"""Results as what the page's widgets show.

Shape suffixes: HW a picture's squares, T all of them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.errors import InputError
from imagegpt.heatmap import color_values
from imagegpt.painting import Result

HINT = "Move over the picture to read its numbers."


def data_uri(image: Image.Image) -> str:
    """A picture as an address that needs no second request."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # on the way for a moment
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(title: str, alt: str, image: Image.Image) -> dict[str, Any]:
    """A picture among maps."""
    return {"title": title, "alt": alt, "src": data_uri(image)}


def heat(
    title: str,
    alt: str,
    values_HW: NDArray[np.floating],
    top: float,
    unit: str = "",
    root: bool = False,
) -> dict[str, Any]:
    """A heat map among maps, with its numbers.

    Args:
        title, alt: its words.
        values_HW: the numbers, none below 0.
        top: what the lightest colour stands for.
        unit: of the numbers.
        root: colours go with the numbers' square roots, so that small ones are seen beside a large one.
    """
    image = color_values(np.sqrt(values_HW), top**0.5) if root else color_values(values_HW, top)
    return picture(title, alt, image) | {"values": np.round(values_HW.astype(float), 4).ravel().tolist(), "unit": unit}


def maps(grid: tuple[int, int], parts: Sequence[dict[str, Any]], mode: str = "look", **more: Any) -> dict[str, Any]:
    """The value of `imagegpt.studio.widgets.new_maps`.

    Args:
        grid: (rows, columns) of squares.
        parts: pictures and heat maps of that grid.
        mode: "look", "pick" or "paint".
        more: `at`, the square that is picked; `keep`, the part from the top that is kept; `painted`; `hint`.
    """
    return {"rows": grid[0], "columns": grid[1], "mode": mode, "maps": list(parts), "hint": HINT, **more}


def samples(result: Result, status: str, picked: int | None = None) -> dict[str, Any]:
    """The value of `imagegpt.studio.widgets.new_samples`: pictures as far as they are drawn."""
    drawn = [image for images in result.images for image in images]
    parts = (result.ids >= 0).mean(1)
    pictures = [
        {"src": data_uri(image), "alt": f"Sample {number}, {part:.0%} of it drawn"}
        for number, (image, part) in enumerate(zip(drawn, parts, strict=True), 1)
    ]
    return {"pictures": pictures, "status": status, "picked": picked}


def mask_of(painted: Any, grid: tuple[int, int], factor: int) -> Image.Image:
    """A mask, as the pipeline takes it, of the squares that were painted.

    Args:
        painted: 0 or 1 for each square, row by row.
        grid: (rows, columns) of squares.
        factor: pixels of a square along each side.

    Raises:
        InputError: that is no such text.
    """
    if not isinstance(painted, str) or len(painted) != grid[0] * grid[1] or set(painted) - {"0", "1"}:
        raise InputError(f"A mask has a 0 or 1 for each of {grid[0]} x {grid[1]} squares.")
    flags = np.frombuffer(painted.encode(), np.uint8) == ord("1")
    return Image.fromarray(flags.reshape(grid).repeat(factor, 0).repeat(factor, 1))
