"""What the page is made of beside Gradio's own components: pictures of squares, samples, a sentence, a table."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

ASSETS = Path(__file__).parent / "assets"


def asset(name: str) -> str:
    """The text of a file that belongs to the page."""
    return (ASSETS / name).read_text(encoding="utf-8")


def new_maps(**options: Any) -> gr.HTML:
    """Pictures of the grid with numbers under the pointer; a square can be picked, or some painted; assets/maps.js.

    Its value is a dictionary that `imagegpt.studio.views.maps` makes. Events: `select`, `change`.
    """
    return gr.HTML(html_template='<div class="maps"></div>', js_on_load=asset("maps.js"), **options)


def new_samples(**options: Any) -> gr.HTML:
    """Pictures as they are drawn, of which one can be picked; assets/samples.js.

    Its value is a dictionary that `imagegpt.studio.views.samples` makes. Event: `select`.
    """
    template = '<ul class="samples"></ul><p class="samples-status" role="status"></p>'
    return gr.HTML(html_template=template, js_on_load=asset("samples.js"), **options)


def new_problem(name: str = "", **options: Any) -> gr.HTML:
    """The place for a sentence on what went wrong; it takes no room while there is none."""
    return gr.HTML(elem_classes=["about", name] if name else "about", **options)


def problem(sentence: str = "") -> str:
    """The words for what went wrong, shown beside the control that it is about; nothing where nothing did."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>' if sentence else ""


def nothing(_: Any) -> None:
    """What shows results of one picture shows none of the next before it is asked for."""


def table(rows: dict[str, str]) -> str:
    """Words and what is told of each."""
    cells = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(told)}</td></tr>' for name, told in rows.items()]
    return f'<table class="told">{"".join(cells)}</table>'
