"""The tab that shows what a layer finds alike: neighbours, a map of pictures, and what probes of layers are worth."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.data.folders import is_picture_name, open_files
from imagegpt.data.ids import read_ids
from imagegpt.data.records import Source
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.neighbours import nearest
from imagegpt.probe.plane import neighbour_plane, principal_plane
from imagegpt.probe.sweep import Curve
from imagegpt.studio import views
from imagegpt.studio.asked import whole
from imagegpt.studio.page import UNSEEN, Page, Seen, Studio, paths_of, read_photo
from imagegpt.studio.widgets import new_problem, nothing, problem

NEIGHBOURS = 8
BATCH = 16  # pictures between two turns
SIDE = 1000  # of the map, in its own units
Plane = Literal["principal components", "t-SNE"]


@dataclass(frozen=True)
class Gathered:
    """Pictures with their features.

    Args:
        names: of the pictures.
        images: as the model sees them.
        features_ND: float32 (pictures, D).
        total: how many there are to be, those that can't be read included.
        skipped: a sentence for each that can't be read.
    """

    names: list[str]
    images: list[Image.Image]
    features_ND: NDArray[np.float32]
    total: int
    skipped: list[str]

    @property
    def done(self) -> bool:
        """Whether no more will come."""
        return len(self.names) + len(self.skipped) == self.total

    def nearest(self, x_D: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """The numbers of the nearest pictures and their cosines, the nearest first."""
        cosine_MK, index_MK = nearest(x_D[None], self.features_ND, min(count, len(self.names)))
        return list(zip(index_MK[0].tolist(), cosine_MK[0].tolist(), strict=True))


def gather(studio: Studio, model: ImageGPT, source: Source, layer: int) -> Iterator[Gathered]:
    """Features of a source's first pictures, batch by batch: as many as the limit allows.

    Raises:
        InputError: none of the pictures can be read.
    """
    total = min(len(source), studio.limits.pictures)
    names, images, skipped, found = [], [], [], []
    for batch in read_ids(source, model.codec, model.framing, "skip", 0, total, batch=BATCH):
        skipped += map(_by_name, batch.skipped)
        if len(batch):
            names += [Path(name).name for name in batch.names]
            images += model.decode(batch.ids_BT)
            found.append(model.features_of(batch.ids_BT, [layer])[layer])
        if found:
            yield Gathered(list(names), list(images), np.concatenate(found), total, list(skipped))
    if not found:
        raise InputError(f"None of the {total} pictures can be read: {skipped[0] if skipped else 'there are none'}")


def _by_name(sentence: str) -> str:
    """A sentence on a file, which is called by its own name: where it lies is the server's business."""
    path, colon, told = sentence.partition(": ")
    return Path(path).name + colon + told


def source_of(studio: Studio, offered: str | None, uploaded: Any) -> Source:
    """The pictures that were chosen: uploaded ones, or what the owner offers by this name.

    Raises:
        InputError: nothing was chosen, or no picture is among the files.
    """
    paths = paths_of(uploaded)
    if paths:
        files = [Path(path) for path in paths if is_picture_name(path)]
        if not files:
            raise InputError(f"No picture is among the {len(paths)} files that you chose.")
        return open_files(sorted(files), "the pictures")
    if offered:
        if offered not in studio.data:
            raise InputError(f"There are no pictures called {offered!r} here.")
        return open_source(studio.data[offered])
    raise InputError("Choose pictures to look among: a folder of yours, or what is offered.")


def status_html(gathered: Gathered) -> str:
    """How many pictures there are by now, and what became of the others."""
    skipped = f"; {len(gathered.skipped)} can't be read: {gathered.skipped[0]}" if gathered.skipped else ""
    return f'<p role="status">{len(gathered.names)} of {gathered.total} pictures{escape(skipped)}</p>'


def near_html(gathered: Gathered, found: list[tuple[int, float]]) -> str:
    """The neighbours, the nearest first."""
    figures = [
        f'<figure><img src="{views.data_uri(gathered.images[index])}" alt="Neighbour {rank}: {name}">'
        f"<figcaption>{name}<br>{cosine:.3f}</figcaption></figure>"
        for rank, (index, cosine) in enumerate(found, 1)
        for name in [escape(gathered.names[index])]
    ]
    return f'<div class="near">{"".join(figures)}</div>'


def plane_html(gathered: Gathered, kind: Plane) -> str:
    """The pictures on a plane, as an SVG.

    Raises:
        InputError: there are too few pictures.
    """
    features_ND = gathered.features_ND
    if len(features_ND) < 3:
        raise InputError("A map takes at least 3 pictures.")
    if kind not in get_args(Plane):
        raise InputError(f"The map must be one of {', '.join(get_args(Plane))}.")
    if kind == "t-SNE":
        xy_N2, told = neighbour_plane(features_ND), "near pictures have near features"
    else:
        xy_N2, explained = principal_plane(features_ND)
        told = f"the two directions hold {100 * explained.sum():.0f} % of the variance"
    size = int(np.clip(SIDE / np.sqrt(len(xy_N2)) / 1.5, 18, 90))
    low, high = xy_N2.min(0), xy_N2.max(0)
    places_N2 = (xy_N2 - low) / np.maximum(high - low, 1e-9) * (SIDE - size)
    parts = [
        f'<image href="{views.data_uri(image)}" x="{x:.0f}" y="{y:.0f}" width="{size}" height="{size}">'
        f"<title>{escape(name)}</title></image>"
        for image, name, (x, y) in zip(gathered.images, gathered.names, places_N2.tolist(), strict=True)
    ]
    label = f"{len(parts)} pictures on a plane by {kind}: {told}."
    words = f'class="plane" role="img" aria-label="{label}"'
    return f'<svg {words} viewBox="0 0 {SIDE} {SIDE}">{"".join(parts)}</svg><p>{label}</p>'


def curve_html(curve: Curve) -> str:
    """Accuracy of linear probes, as bars and numbers."""
    rows = "".join(
        f'<tr><th scope="row">{"" if row.baseline else "layer "}{escape(row.name)}</th><td style="width:60%">'
        f'<span class="bar" style="width:{percent}%"></span></td><td>{percent} %</td></tr>'
        for row in curve.rows
        for percent in [f"{100 * row.metrics.top1:.1f}"]
    )
    return f'<table class="told"><caption>Accuracy of a linear probe by layer</caption>{rows}</table>'


def build(page: Page) -> None:
    """Lay the tab out."""
    studio = page.studio
    gr.Markdown(
        "What the middle of the network says of a picture: pictures that it finds alike. Up to "
        f"{studio.limits.pictures} pictures are looked at."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            uploads = gr.File(label="A folder of pictures", file_count="directory", height=140)
            offered = gr.Dropdown(
                list(studio.data), value=None, label="Or pictures that are offered here", visible=bool(studio.data)
            )
            layer = gr.Slider(0, 8, 4, step=1, label="Layer", info="0 is the embedding; the middle knows most.")
            kind = gr.Radio(list(get_args(Plane)), value="principal components", label="Map")
            ask = gr.Button("Find neighbours", variant="primary")
            about, status = new_problem(), gr.HTML()
        with gr.Column(scale=2, min_width=280):
            near, plane = gr.HTML(), gr.HTML()
            if studio.curve is not None:
                gr.HTML(curve_html(studio.curve))
    page.shows.extend([(layer, _layers), *((each, nothing) for each in (near, plane, status, about))])

    async def find(
        photo: Any,
        name: Any,
        uploaded: Any,
        chosen: Any,
        layer: Any,
        kind: Any,
        request: gr.Request,
    ) -> AsyncGenerator[Any, None]:
        def start() -> Iterator[tuple[Gathered, str, str]]:
            picture, model = read_photo(photo), studio.catalogue.open(name)
            source = source_of(studio, chosen, uploaded)
            number = whole("layer", layer)
            query_D = model.features(picture, number)
            for gathered in gather(studio, model, source, number):
                found = near_html(gathered, gathered.nearest(query_D[0], NEIGHBOURS))
                yield gathered, found, ""
                if gathered.done:
                    yield gathered, found, plane_html(gathered, kind)

        try:
            async with aclosing(studio.stream(request, start)) as results:
                async for gathered, near, plane in results:
                    yield near, plane, status_html(gathered), problem()
        except InputError as error:
            yield gr.skip(), gr.skip(), "", problem(str(error))

    inputs = [page.photo, page.model, uploads, offered, layer, kind]
    ask.click(find, inputs, [near, plane, status, about], **UNSEEN)


def _layers(seen: Seen) -> Any:
    layers = seen.model.spec.n_layer
    return gr.update(maximum=layers, value=layers // 2)
