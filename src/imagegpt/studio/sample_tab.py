"""The tab that draws pictures from nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from imagegpt.errors import InputError
from imagegpt.studio.drawing import Stage, Wanted, samples, shown
from imagegpt.studio.page import Page
from imagegpt.studio.widgets import problem


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("The model draws from nothing: what pictures are like, to its mind.")
    stage = Stage.build(page, "Sample")

    async def sample(
        name: Any, count: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, request: gr.Request
    ) -> AsyncIterator[Any]:
        try:
            wanted = Wanted.read(count, temperature, top_k, top_p, seed)
        except InputError as error:
            yield gr.skip(), gr.skip(), gr.skip(), problem(str(error))
            return
        steps = shown(page.studio, request, name, lambda: samples(page.studio, name, wanted))
        try:
            async for step in steps:
                yield step
        finally:
            await steps.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    stage.wire(page, sample, [page.model, *stage.controls])
