"""The tab that draws pictures from nothing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from imagegpt.studio.asked import Wanted
from imagegpt.studio.drawing import Stage, Start, samples
from imagegpt.studio.page import Page


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("The model draws from nothing: what pictures are like, to its mind.")
    stage = Stage.build(page, "Sample")

    def ask(name: Any, *controls: Any) -> tuple[str, Start]:
        wanted = Wanted.read(*controls)
        return name, lambda: samples(page.studio, name, wanted)

    stage.wire(page, ask, [page.model, *stage.controls])
