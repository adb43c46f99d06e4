"""The tab that completes pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from imagegpt.errors import InputError
from imagegpt.studio import views
from imagegpt.studio.asked import Kept, Wanted
from imagegpt.studio.drawing import Drawn, Stage, Start, completions, new_folder, write_images
from imagegpt.studio.page import UNSEEN, Page, Seen
from imagegpt.studio.widgets import new_maps, new_problem, nothing, problem

UPPER, PAINTED = "The upper part", "All but what I paint over"
KEEP = 0.5
# What the picture shows of these controls is settled in the browser, at once.
SHOW_KEPT = f"""(how, keep, brush, board) => ({{...board, brush, mode: how === "{PAINTED}" ? "paint" : "look",
  keep: how === "{PAINTED}" ? null : keep, painted: how === "{PAINTED}" ? board?.painted : null}})"""
CLEAR = "(board) => ({...board, painted: null})"


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("The model keeps a part of the picture and paints the rest, pixel by pixel, from the top left.")
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            how = gr.Radio([UPPER, PAINTED], value=UPPER, label="What is kept")
            keep = gr.Slider(0, 0.99, KEEP, step=0.01, label="Part that is kept")
            with gr.Group(visible=False) as painting:
                brush = gr.Slider(1, 9, 3, step=2, label="Width of the brush")
                particles = gr.Slider(
                    1, 32, 8, step=1, label="Histories", info="More fit what is below better, and take longer."
                )
                clear = gr.Button("Clear", size="sm")
            board = new_maps(elem_classes="kept")
        with gr.Column(scale=2, min_width=280):
            stage = Stage.build(page, "Complete")
            with stage.below:
                onward = gr.Button("Continue from the picked one", size="sm")
                about_onward = new_problem()
    page.shows.extend([(board, _board), (stage.problem, nothing), (about_onward, nothing)])
    settings = [how, keep, brush, board]
    for control in settings:
        control.change(None, settings, board, js=SHOW_KEPT, queue=False, api_visibility="private")
    clear.click(None, board, board, js=CLEAR, queue=False, api_visibility="private")
    how.change(
        lambda how: (gr.update(visible=how == PAINTED), gr.update(visible=how == UPPER)),
        how,
        [painting, keep],
        **UNSEEN,
    )
    inputs = [page.photo, page.model, how, keep, particles, board, *stage.controls]
    stage.wire(page, _asking(page), inputs)
    onward.click(_onward(page), [stage.state, stage.samples, keep], [page.photo, keep, about_onward], **UNSEEN)


def _board(seen: Seen) -> dict[str, Any]:
    """What is kept of a new picture, before anybody has painted."""
    shown = views.picture("The picture, and what is kept of it", "The picture as the model sees it.", seen.image)
    return views.maps(seen.model.grid, [shown], keep=KEEP, brush=3, hint="")


def _asking(page: Page) -> Callable[..., tuple[str, Start]]:
    def ask(
        photo: Any, name: Any, how: Any, keep: Any, particles: Any, board: Any, *controls: Any
    ) -> tuple[str, Start]:
        wanted = Wanted.read(*controls)
        painted = (board or {}).get("painted") if how == PAINTED else None
        if how == PAINTED and not (isinstance(painted, str) and "1" in painted):
            raise InputError("Paint over the part of the picture that the model shall draw anew.")
        kept = Kept.read(keep, painted, particles)
        return name, lambda: completions(page.studio, name, photo, kept, wanted)

    return ask


def _onward(page: Page) -> Any:
    async def onward(drawn: Drawn | None, samples: Any, keep: Any, request: gr.Request) -> Any:
        picked = (samples or {}).get("picked")
        if drawn is None or not isinstance(picked, int) or not 0 <= picked < len(drawn.ids):
            return gr.skip(), gr.skip(), problem("Pick a picture first: click one that was drawn.")

        def write() -> str:
            image = page.studio.catalogue.open(drawn.model).decode(drawn.ids[picked : picked + 1])[0]
            return write_images(new_folder(), {"picked": image})[0]

        ids_T = drawn.ids[picked]
        complete = bool((ids_T >= 0).all())
        # What was stopped goes on where it stopped.
        part = keep if complete else int(np.flatnonzero(ids_T < 0)[0]) / len(ids_T)
        return await page.studio.run(request, write), part, problem()

    return onward
