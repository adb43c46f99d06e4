"""The tab that shows what is left of a picture before the model sees it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from imagegpt.sheet import shrink
from imagegpt.studio import views
from imagegpt.studio.page import Page, Seen
from imagegpt.studio.widgets import new_maps

PREVIEW = 320  # pixels of the original's longer side


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("A picture becomes a few ids of a palette. All that the model ever knows of it is the last one.")
    boards, words, colors = new_maps(), gr.HTML(), gr.HTML(elem_classes="palette")
    page.shows.extend([(boards, _boards), (words, _words), (colors, _palette)])


def _boards(seen: Seen) -> dict[str, Any]:
    height, width = seen.framed.height, seen.framed.width
    original = _fit(shrink(seen.cut, PREVIEW), (width, height))
    parts = [
        views.picture("Original", "The picture in its own resolution.", original),
        views.picture(f"Resized to {height} x {width}", "The picture in the model's pixels.", seen.framed),
        views.picture("What the model sees", "The picture in the codec's colours.", seen.image),
    ]
    return views.maps(seen.model.grid, parts, hint="")


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Squash a preview into the shape of the grid, as the model's framing did."""
    side = max(image.size) / max(size)
    return image.resize((round(size[0] * side), round(size[1] * side)), Image.Resampling.LANCZOS)


def _words(seen: Seen) -> str:
    used = len(set(seen.model.encode(seen.framed)[0].tolist()))
    codec, grid = seen.model.codec, seen.model.grid
    told = f"{grid[0]} x {grid[1]} ids of {len(codec)} ({codec.name}); this picture uses {used} of them."
    return f"<p>{escape(told)}</p>"


def _palette(seen: Seen) -> str:
    source = views.data_uri(seen.model.codec.picture(8))
    return f'<img src="{source}" alt="All {len(seen.model.codec)} ids of the codec, in rows from 0 on.">'
