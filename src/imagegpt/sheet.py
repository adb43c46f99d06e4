"""Contact sheets: input, what the model saw, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 128
GAP = 8
CAPTION = 22
PAPER = (255, 255, 255)
INK = (60, 60, 60)
SAMPLES_PER_ROW = 8


@dataclass(frozen=True)
class Cell:
    """A picture on a sheet and the words above it."""

    image: Image.Image
    caption: str = ""


def enlarge(image: Image.Image, cell: int = CELL) -> Image.Image:
    """Bring a picture of the grid's size into a cell by whole factors, so that every id stays a square."""
    factor = max(1, cell // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def shrink(image: Image.Image, cell: int = CELL) -> Image.Image:
    """Fit a photograph into a cell."""
    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def draw_sheet(rows: list[list[Cell]]) -> Image.Image:
    """Lay out rows of cells on white."""
    columns = max(len(row) for row in rows)
    cell = max(max(item.image.size) for row in rows for item in row)
    captions = [CAPTION if any(item.caption for item in row) else 0 for row in rows]
    width = GAP + columns * (cell + GAP)
    height = GAP + sum(cell + GAP + caption for caption in captions)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    top = GAP
    for row, caption in zip(rows, captions, strict=True):
        for column, item in enumerate(row):
            left = GAP + column * (cell + GAP)
            pen.text((left, top), item.caption, INK, font)
            corner = (left + (cell - item.image.width) // 2, top + caption + (cell - item.image.height) // 2)
            sheet.paste(item.image, corner)
        top += cell + GAP + caption
    return sheet


def completion_sheet(
    inputs: list[Image.Image], seen: list[Image.Image], samples: list[list[Image.Image]]
) -> Image.Image:
    """A sheet of completions: for each picture the input, what the model saw of it, and its samples."""
    rows = []
    for number, (image, known, drawn) in enumerate(zip(inputs, seen, samples, strict=True)):
        head = [Cell(shrink(image), "input"), Cell(enlarge(known), "seen")]
        blank = Cell(Image.new("RGB", (1, 1), PAPER))
        for start in range(0, len(drawn), SAMPLES_PER_ROW):
            part = drawn[start : start + SAMPLES_PER_ROW]
            cells = [Cell(enlarge(image), f"sample {start + i + 1}") for i, image in enumerate(part)]
            if number and not start:  # the words stand above the first picture only
                cells = [Cell(cell.image) for cell in cells]
                head = [Cell(cell.image) for cell in head]
            rows.append([*(head if not start else [blank, blank]), *cells])
    return draw_sheet(rows)


def comparison_sheet(rows: Mapping[str, NDArray[np.uint8]], cell: int = CELL) -> Image.Image:
    """A sheet of the same pictures in several versions, one below the other: words -> (B, H, W, 3) uint8."""
    pictures = {words: [enlarge(Image.fromarray(pixels), cell) for pixels in row] for words, row in rows.items()}
    return draw_sheet([[Cell(row[0], words), *map(Cell, row[1:])] for words, row in pictures.items()])


def sample_sheet(samples: list[Image.Image]) -> Image.Image:
    """A sheet of samples alone, about square."""
    columns = math.ceil(math.sqrt(len(samples)))
    cells = [Cell(enlarge(image)) for image in samples]
    return draw_sheet([cells[start : start + columns] for start in range(0, len(cells), columns)])
