"""Heat maps: numbers of a picture's ids as colours, with a scale.

The colours are perceptually uniform: equal steps of the number are equal steps of colour in OKLab (Ottosson 2020, "A
perceptual color space for image processing"), and lighter is always more, so the map reads in grey too.

Shape suffixes: HW a picture's ids, S colours of the map, P points.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imagegpt.sheet import CELL, INK, PAPER, enlarge

STEPS = 256
# Lightness, chroma and hue (degrees) that the map goes through: near black, violet, red, orange, pale yellow.
WAY = ((0.16, 0.03, 280), (0.36, 0.15, 300), (0.55, 0.18, 10), (0.75, 0.15, 60), (0.96, 0.09, 105))
BAR = 14
# From OKLab to the cube roots of LMS, and from LMS to linear sRGB (Ottosson 2020).
TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def uniform_colors() -> NDArray[np.uint8]:
    """The map, (S, 3) sRGB, from the least number to the greatest."""
    lightness_P, chroma_P, hue_P = np.array(WAY).T
    angle_P = np.unwrap(np.radians(hue_P))
    points_P3 = np.stack([lightness_P, chroma_P * np.cos(angle_P), chroma_P * np.sin(angle_P)], 1)
    lengths = np.linalg.norm(np.diff(points_P3, axis=0), axis=1)
    along_P = np.concatenate([[0], np.cumsum(lengths)])
    along_S = np.linspace(0, along_P[-1], STEPS)
    lab_S3 = np.stack([np.interp(along_S, along_P, column) for column in points_P3.T], 1)
    return np.rint(255 * oklab_to_srgb(lab_S3)).astype(np.uint8)


def oklab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab (..., 3) to sRGB in [0, 1]; what lies outside of it is clipped."""
    linear = np.clip((lab @ TO_LMS.T) ** 3 @ TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def color_values(values_HW: NDArray[np.floating], top: float) -> Image.Image:
    """Numbers as colours, a pixel each; the scale goes from 0 to `top`, and what lies beyond is drawn as its end."""
    part_HW = np.clip(np.asarray(values_HW, np.float64) / top, 0, 1)
    return Image.fromarray(uniform_colors()[np.rint(part_HW * (STEPS - 1)).astype(int)])


def draw_heatmap(values_HW: NDArray[np.floating], top: float) -> Image.Image:
    """Numbers as colours, each a square; see `color_values`."""
    return enlarge(color_values(values_HW, top))


def draw_scale(top: float, unit: str, height: int = CELL) -> Image.Image:
    """The scale of heat maps: a bar of the colours with the numbers 0, a half of `top`, and `top`, which means more
    too."""
    font = ImageFont.load_default(12)
    words = [(0.0, f"0 {unit}"), (0.5, f"{top / 2:.3g}"), (1.0, f">= {top:.3g}")]
    width = BAR + 6 + max(round(font.getlength(text)) for _, text in words)
    scale = Image.new("RGB", (width, height), PAPER)
    colors_H = uniform_colors()[np.rint(np.linspace(STEPS - 1, 0, height)).astype(int)]
    scale.paste(Image.fromarray(np.repeat(colors_H[:, None], BAR, 1)), (0, 0))
    pen = ImageDraw.Draw(scale)
    for part, text in words:
        pen.text((BAR + 4, min(max((1 - part) * height - 7, 0), height - 15)), text, INK, font)
    return scale
