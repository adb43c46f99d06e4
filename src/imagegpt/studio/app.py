"""The page: the picture and the model on one side, the tabs on the other."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from imagegpt.errors import InputError
from imagegpt.studio import (
    api,
    attention_tab,
    complete_tab,
    features_tab,
    models_tab,
    sample_tab,
    seen_tab,
    surprise_tab,
)
from imagegpt.studio.page import UNSEEN, Page, Seen, Studio, look, read_photo
from imagegpt.studio.widgets import ASSETS, asset, new_problem, problem

TABS = {
    "Complete": complete_tab,
    "Sample": sample_tab,
    "What the model sees": seen_tab,
    "Surprise": surprise_tab,
    "Attention": attention_tab,
    "Features": features_tab,
    "Models": models_tab,
}
EXAMPLES = sorted(str(path) for path in ASSETS.glob("*.jpg"))
SWEEP = (600, 3600)  # seconds: how often uploads are looked through, and how old they get


def build_app(studio: Studio) -> gr.Blocks:
    """The page over a studio, not yet served."""
    with gr.Blocks(title="imagegpt studio", analytics_enabled=False, fill_width=True, delete_cache=SWEEP) as app:
        api.build(studio)  # first, so that its names are free
        gr.Markdown("# imagegpt studio\nImageGPT predicts the next pixel. Watch it draw, and see what it looks at.")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                names = studio.catalogue.names
                model = gr.Dropdown(names, value=studio.catalogue.first, label="Model")
                photo = gr.Image(
                    EXAMPLES[0],
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    label="Picture",
                    alt_text="The picture that is chosen.",
                    height=260,
                )
                about = new_problem("about-photo", js_on_load=asset("photo.js"), most=studio.limits.upload)
                photo.clear(problem, None, about, **UNSEEN)
                with gr.Row(elem_classes="examples"):
                    for path in EXAMPLES:
                        example = gr.Button(Path(path).stem, icon=path, size="sm", min_width=100)
                        example.click(partial(str, path), None, photo, **UNSEEN)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                page = Page(studio, model, photo)
                for name, tab in TABS.items():
                    with gr.Tab(name):
                        tab.build(page)
        outputs = [about, *(component for component, _ in page.shows)]
        gr.on(
            [photo.change, model.change, app.load],
            _looking(page),
            [photo, model],
            outputs,
            **UNSEEN,
        )
    return app


def _looking(page: Page) -> Any:
    """What happens when a picture or a model is chosen: every tab shows it, or the picture's own words say why not."""

    async def show(photo: Any, name: Any, request: gr.Request) -> list[Any]:
        def see() -> Seen:
            picture = read_photo(photo)
            return look(page.studio.catalogue.open(name), picture)

        if not photo:
            return [gr.skip() for _ in (None, *page.shows)]  # also while a file is on its way
        try:
            seen = await page.studio.run(request, see)
        except InputError as error:
            return [problem(str(error)), *(gr.skip() for _ in page.shows)]
        return [problem(), *(view(seen) for _, view in page.shows)]

    return show
