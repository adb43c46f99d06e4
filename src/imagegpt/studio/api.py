"""What programs may ask of the studio: Gradio's REST and Python clients; docs/studio.md has examples."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

import gradio as gr

from imagegpt.errors import InputError
from imagegpt.painting import Result
from imagegpt.studio.asked import Kept, Wanted
from imagegpt.studio.drawing import completions, new_folder, samples, write_images
from imagegpt.studio.page import Studio
from imagegpt.studio.surprise_tab import surprise_of

EVERY = 0.5  # seconds between two reports on a drawing


def build(studio: Studio) -> None:
    """Add the functions: components that nobody sees tell the clients what they take and give."""
    with gr.Column(visible=False):
        photo, model = gr.Image(type="filepath", label="image"), gr.Textbox(studio.catalogue.first, label="model")
        keep = gr.Number(0.5, label="keep")
        painted = gr.Textbox("", label="mask", info="0 or 1 for each id of the grid, row by row; 1 is painted anew")
        particles = gr.Number(1, precision=0, label="particles")
        wanted = [
            gr.Number(1, precision=0, label="num"),
            gr.Number(1.0, label="temperature"),
            gr.Number(0, precision=0, label="top_k"),
            gr.Number(1.0, label="top_p"),
            gr.Number(-1, precision=0, label="seed"),
        ]
        pictures, facts = gr.File(file_count="multiple", label="pictures"), gr.JSON(label="facts")
        ask = gr.Button()
    how: dict[str, Any] = {"preprocess": False, "concurrency_limit": None}

    async def complete(
        image: Any,
        keep: float,
        mask: str,
        particles: int,
        num: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        model: str,
        request: gr.Request,
    ) -> AsyncIterator[Any]:
        """Complete a picture: keep the part `keep` from the top, or what `mask` says, and paint the rest."""

        def start() -> Any:
            asked = Wanted.read(num, temperature, top_k, top_p, seed)
            return completions(studio, model, image, Kept.read(keep, mask, particles), asked)

        async with aclosing(_drawn(studio, request, model, start)) as told:
            async for each in told:
                yield each

    async def sample(
        num: int, temperature: float, top_k: int, top_p: float, seed: int, model: str, request: gr.Request
    ) -> AsyncIterator[Any]:
        """Draw pictures from nothing."""

        def start() -> Any:
            return samples(studio, model, Wanted.read(num, temperature, top_k, top_p, seed))

        async with aclosing(_drawn(studio, request, model, start)) as told:
            async for each in told:
                yield each

    async def surprise(image: Any, model: str, request: gr.Request) -> Any:
        """How likely a picture is, and the surprise at each of its ids in nats, row by row."""
        try:
            found = await studio.run(request, lambda: surprise_of(studio, model, image))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return found.summary() | {"surprise": found.scores.surprise[0].tolist()}

    inputs, outputs = [photo, keep, painted, particles, *wanted, model], [pictures, facts]
    ask.click(complete, inputs, outputs, api_name="complete", **how)
    ask.click(sample, [*wanted, model], outputs, api_name="sample", **how)
    ask.click(surprise, [photo, model], facts, api_name="surprise", **how)
    ask.click(lambda: studio.catalogue.names, None, facts, api_name="models", **how)


async def _drawn(studio: Studio, request: gr.Request, name: str, start: Any) -> AsyncGenerator[Any, None]:
    """Draw to the end: the pictures' files, in the grid's own size, and what made them.

    How far it is comes before that. Gradio learns then whether the client still listens, and stops this if not.
    """

    def draw() -> Iterator[tuple[Result, list[str]]]:
        with closing(start()) as results:
            result = None
            for result in results:
                yield result, []
            if result is not None:
                images = [image for images in result.images for image in images]
                yield result, write_images(new_folder(), {str(number): image for number, image in enumerate(images, 1)})

    told = time.monotonic()
    try:
        async with aclosing(studio.stream(request, draw)) as results:
            async for result, written in results:
                if written:
                    facts = {"model": name, "seed": result.seed, "given": result.given, "ids": result.ids.tolist()}
                    yield written, facts
                elif time.monotonic() > told + EVERY:
                    yield None, {"drawn": round(float((result.ids >= 0).mean()), 3)}
                    told = time.monotonic()
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
