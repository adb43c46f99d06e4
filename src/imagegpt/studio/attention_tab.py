"""The tab that shows where the model looks before it draws a pixel."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.attention import Attention
from imagegpt.errors import InputError
from imagegpt.studio import views
from imagegpt.studio.asked import whole
from imagegpt.studio.page import UNSEEN, Page, Seen, Studio, read_photo
from imagegpt.studio.widgets import new_maps, new_problem, nothing, problem

COLORS = 5  # that are told as the likeliest


def attention_of(studio: Studio, name: str, photo: Any, index: int) -> tuple[Attention, NDArray[np.uint8]]:
    """Where a model looks before it draws id `index`, and the colours of all ids, (K, 3).

    Raises:
        InputError: a picture that can't be read, or no such id.
    """
    picture, model = read_photo(photo), studio.catalogue.open(name)
    colors_K3 = np.rint((model.codec.colors + 1) * 127.5).astype(np.uint8)
    return model.attention(picture, divmod(index, model.grid[1])), colors_K3


def heads(found: Attention, layer: int) -> dict[str, Any]:
    """Heat maps of a layer's heads, and of their mean.

    Raises:
        InputError: no such layer.
    """
    layers = len(found.weights)
    if not 1 <= layer <= layers:
        raise InputError(f"The layer must be 1 to {layers}, not {layer}.")
    weights_NHW = np.asarray(found.weights[layer - 1])[found.heads[layer - 1]]
    row, column = found.at
    parts = [
        views.heat(
            title,
            f"Heat map of layer {layer}, {title}: lighter pixels count more for row {row + 1}, column {column + 1}.",
            100 * weights_HW,
            max(100 * float(weights_HW.max()), 1e-3),
            "%",
            root=True,
        )
        for title, weights_HW in [
            ("mean of the heads", weights_NHW.mean(0)),
            *((f"head {number}", each) for number, each in enumerate(weights_NHW, 1)),
        ]
    ]
    return views.maps(weights_NHW.shape[1:], parts, at=row * weights_NHW.shape[2] + column)


def likeliest(found: Attention, layer: int, colors_K3: NDArray[np.uint8]) -> str:
    """The share of the start token, and the ids that the model held likeliest at the place."""
    start = ", ".join(f"{100 * share:.1f} %" for share in np.asarray(found.start[layer - 1])[found.heads[layer - 1]])
    swatches = "".join(
        f'<span class="likely"><span class="swatch" style="background: rgb{tuple(colors_K3[index].tolist())}"></span>'
        f"id {index}: {100 * found.expected[index]:.1f} %</span>"
        for index in np.argsort(-found.expected, kind="stable")[:COLORS].tolist()
    )
    row, column = found.at
    return (
        f"<p>Layer {layer}: the start token has {start} of the heads' attention. What the model expected at "
        f"row {row + 1}, column {column + 1}:</p><p>{swatches}</p>"
    )


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("Click a pixel: where did the model look before it drew that one? It sees only what is before it.")
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            board = new_maps(elem_classes="pick-a-pixel")
            layer = gr.Slider(1, 8, 4, step=1, label="Layer")
            about = new_problem()
        with gr.Column(scale=2, min_width=280):
            maps, words = new_maps(elem_classes="heads"), gr.HTML()
    page.shows.extend([(board, _board), (layer, _layers), (maps, nothing), (words, nothing), (about, nothing)])

    async def show(photo: Any, name: Any, told: Any, layer: Any, request: gr.Request) -> Any:
        index = (told or {}).get("at")
        if not isinstance(index, int):  # another layer, before a pixel was picked
            return gr.skip(), gr.skip(), problem()
        try:
            number = whole("layer", layer)
            found, colors = await page.studio.run(request, lambda: attention_of(page.studio, name, photo, index))
            return heads(found, number), likeliest(found, number, colors), problem()
        except InputError as error:
            return gr.skip(), gr.skip(), problem(str(error))

    inputs, outputs = [page.photo, page.model, board, layer], [maps, words, about]
    board.select(show, inputs, outputs, **UNSEEN)
    layer.change(show, inputs, outputs, trigger_mode="always_last", **UNSEEN)


def _board(seen: Seen) -> dict[str, Any]:
    shown = views.picture("The picture: click a pixel", "The picture as the model sees it.", seen.image)
    return views.maps(seen.model.grid, [shown], "pick", hint="")


def _layers(seen: Seen) -> Any:
    layers = seen.model.spec.n_layer
    return gr.update(maximum=layers, value=max(1, layers // 2))
