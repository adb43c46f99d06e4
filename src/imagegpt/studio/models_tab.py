"""The tab that tells what a model is and takes, and chooses another."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from imagegpt.errors import InputError
from imagegpt.studio.page import UNSEEN, Page
from imagegpt.studio.widgets import new_problem, problem, table


def build(page: Page) -> None:
    """Lay the tab out."""
    catalogue = page.studio.catalogue
    places = "a model's folder" + (" or an id on the Hub, such as openai/imagegpt-small" if catalogue.hub else "")
    gr.Markdown("What a model is, and how much memory it takes, before it is loaded.")
    name = gr.Dropdown(
        catalogue.names,
        value=catalogue.first,
        label="Model",
        allow_custom_value=True,
        info=f"One of the list, or {places}.",
    )
    with gr.Row():
        ask = gr.Button("What is it?")
        load = gr.Button("Use it", variant="primary")
    about, facts = new_problem(), gr.HTML()

    async def describe(name: Any, request: gr.Request) -> Any:
        try:
            found = await page.studio.run(request, lambda: catalogue.describe(name))
        except InputError as error:
            return "", problem(str(error))
        return table(found.facts), problem("" if found.fits else "There is too little free memory for this model.")

    async def use(name: Any, request: gr.Request) -> Any:
        try:
            await page.studio.run(request, lambda: catalogue.open(name))
        except InputError as error:
            return gr.skip(), gr.skip(), problem(str(error))
        names = catalogue.names
        choices = names if name in names else [*names, name]
        return gr.update(choices=choices, value=name), f'<p role="status">{escape(name)} is chosen.</p>', problem()

    ask.click(describe, name, [facts, about], **UNSEEN)
    load.click(use, name, [page.model, facts, about], **UNSEEN)
