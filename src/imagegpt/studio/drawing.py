"""Pictures on their way: what both tabs that draw ask of the pipeline, show, and hand out as files."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.utils import get_upload_folder
from numpy.typing import NDArray
from PIL import Image

from imagegpt.animation import drawing_frames, write_gif
from imagegpt.errors import InputError
from imagegpt.files import write_whole
from imagegpt.painting import Result
from imagegpt.pipeline import ImageGPT
from imagegpt.sheet import enlarge, sample_sheet
from imagegpt.studio import views
from imagegpt.studio.asked import Kept, Wanted
from imagegpt.studio.page import UNSEEN, Page, Studio, read_photo
from imagegpt.studio.widgets import new_problem, new_samples, problem

KEPT_SECONDS = 3600
Start = Callable[[], Iterator[Result]]  # of a drawing


@dataclass(frozen=True)
class Drawn:
    """What a session has drawn last.

    Args:
        model: the name of the one that drew.
        ids: (samples, T), -1 where nothing is drawn yet.
        known: (samples, T): which ids were given.
        seed: with which the same is drawn again.
    """

    model: str
    ids: NDArray[np.int64]
    known: NDArray[np.bool_]
    seed: int | list[int]


def completions(studio: Studio, name: str, photo: Any, kept: Kept, wanted: Wanted) -> Iterator[Result]:
    """Complete a picture, row by row.

    Raises:
        InputError: a picture, a mask or a number that can't be used.
    """
    studio.limits.check_samples(wanted.count)
    picture, model = read_photo(photo), studio.catalogue.open(name)
    options = wanted.options()
    if kept.painted is None:
        options["keep"] = kept.part
    else:
        options["mask"] = views.mask_of(kept.painted, model.grid, model.codec.factor)
        options["particles"] = kept.particles
        if kept.particles * wanted.count > studio.limits.rows:
            raise InputError(
                f"{wanted.count} pictures of {kept.particles} histories each are more than {studio.limits.rows} rows: "
                "choose fewer."
            )
    return model.stream(picture, num_samples=wanted.count, **options)


def samples(studio: Studio, name: str, wanted: Wanted) -> Iterator[Result]:
    """Draw pictures from nothing, row by row; see `completions`."""
    studio.limits.check_samples(wanted.count)
    return studio.catalogue.open(name).stream(n=wanted.count, **wanted.options())


async def shown(
    studio: Studio, request: gr.Request, name: str, start: Start
) -> AsyncGenerator[tuple[Any, Any, Any, str], None]:
    """Draw, and tell what `Stage`'s components show on the way: samples, what is drawn, files, and a problem."""
    began = time.perf_counter()
    before = studio.turns.waiting if studio.turns.running >= studio.limits.running else None
    line = "Starting." if before is None else f"Waiting: {before + 1} requests come first."
    yield {"pictures": [], "status": line, "picked": None}, None, gr.update(value=None, visible=False), problem()
    try:
        async with aclosing(studio.stream(request, start)) as results:  # closed now, not when it is collected
            async for result in results:
                part = (result.ids >= 0).mean()
                told = f"{part:.0%} drawn." if part < 1 else f"Done in {time.perf_counter() - began:.1f} s."
                known = result.known.repeat(len(result.ids) // len(result.known), 0)
                state = Drawn(name, result.ids, known, result.seed)
                yield views.samples(result, f"{told} Seed {result.seed}."), state, gr.skip(), problem()
    except InputError as error:
        yield refused(error)


def refused(error: InputError) -> tuple[Any, Any, Any, str]:
    """The same of what went wrong: what was drawn before stays."""
    return gr.skip(), gr.skip(), gr.skip(), problem(str(error))


def write_files(folder: Path, model: ImageGPT, drawn: Drawn) -> list[str]:
    """Write a sheet, single pictures and a GIF of the drawing order into a folder; their paths.

    Args:
        folder: is there.
        model: that drew.
        drawn: what it drew, perhaps not to the end.
    """
    images = model.decode(drawn.ids)
    single = {f"sample-{number}": enlarge(image) for number, image in enumerate(images, 1)}
    written = write_images(folder, {"sheet": sample_sheet(images), **single})
    frames = drawing_frames(model.decode, drawn.ids, drawn.known, model.grid[1])
    write_gif(folder / "drawing.gif", map(sample_sheet, frames))
    return [*written, str(folder / "drawing.gif")]


def write_images(folder: Path, images: Mapping[str, Image.Image]) -> list[str]:
    """Write pictures as PNG files of these names into a folder that is there; their paths."""
    paths = [folder / f"{name}.png" for name in images]
    for path, image in zip(paths, images.values(), strict=True):
        write_whole(path, image.save)
    return [str(path) for path in paths]


@dataclass(frozen=True)
class Stage:
    """The components around a drawing, the same in both tabs."""

    samples: gr.HTML
    state: gr.State
    files: gr.File
    problem: gr.HTML
    draw: gr.Button
    stop: gr.Button
    below: gr.Column
    controls: list[Component]

    @property
    def outputs(self) -> list[Any]:
        """What `shown` fills."""
        return [self.samples, self.state, self.files, self.problem]

    @classmethod
    def build(cls, page: Page, verb: str) -> Stage:
        """Lay the components out."""
        with gr.Row():
            draw = gr.Button(verb, variant="primary", min_width=120)
            stop = gr.Button("Stop", variant="stop", min_width=80, interactive=False)
        told = new_problem()
        shown = new_samples(elem_classes="stage")
        with gr.Column() as below:
            pass  # a tab may put something right under the pictures
        with gr.Accordion("How to draw", open=False):
            controls = _controls(page)
        files = gr.File(
            label="Download: sheet, single pictures, GIF of the drawing order",
            file_count="multiple",
            interactive=False,
            visible=False,
        )
        return cls(shown, gr.State(), files, told, draw, stop, below, controls)

    def wire(self, page: Page, ask: Callable[..., tuple[str, Start]], inputs: list[Any]) -> None:
        """Make the buttons work.

        Args:
            page: that this is on.
            ask: takes what `inputs` hold, checks it, and gives the model's name and what starts the drawing.
            inputs: components.
        """

        async def draw(request: gr.Request, *told: Any) -> AsyncGenerator[Any, None]:
            try:
                name, start = ask(*told)
            except InputError as error:
                yield refused(error)
                return
            async with aclosing(shown(page.studio, request, name, start)) as steps:
                async for step in steps:
                    yield step

        quick: dict[str, Any] = {**UNSEEN, "queue": False}
        began = gr.update(interactive=False), gr.update(interactive=True)
        self.draw.click(lambda: began, None, self._buttons, **quick)
        drawing = self.draw.click(draw, inputs, self.outputs, **UNSEEN)
        self.stop.click(None, None, None, cancels=[drawing], api_visibility="private")
        # Also after it was stopped: what is drawn by then is handed out.
        ended = drawing.then(lambda: began[::-1], None, self._buttons, **quick)
        ended.then(self._files(page), self.state, [self.files, self.problem], **UNSEEN)

    @property
    def _buttons(self) -> list[gr.Button]:
        return [self.draw, self.stop]

    def _files(self, page: Page) -> Callable[..., Any]:
        async def files(drawn: Drawn | None, request: gr.Request) -> Any:
            if drawn is None:
                return gr.update(value=None, visible=False), gr.skip()

            def write() -> list[str]:
                return write_files(new_folder(), page.studio.catalogue.open(drawn.model), drawn)

            try:
                return gr.update(value=await page.studio.run(request, write), visible=True), gr.skip()
            except InputError as error:
                return gr.skip(), problem(f"There are no files of this drawing. {error}")

        return files


def new_folder() -> Path:
    """A folder for files that are handed out, beside Gradio's own; those handed out more than an hour ago go."""
    parent = Path(get_upload_folder()) / "made"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():
        with suppress(FileNotFoundError):  # another request may be at it
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent))


def _controls(page: Page) -> list[Component]:
    most = page.studio.limits.samples
    count = gr.Slider(1, most, Wanted.count, step=1, label="Pictures")
    temperature = gr.Slider(
        0, 2, 1, step=0.05, label="Temperature", info="Below 1 is safer, above 1 wilder; 0 takes the likeliest colour."
    )
    top_k = gr.Slider(0, 512, 0, step=1, label="Top-k", info="Only the k likeliest colours; 0 for all.")
    top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Only the likeliest with this probability; 1 for all.")
    seed = gr.Number(-1, precision=0, label="Seed", info="The same seed gives the same pictures; -1 for a new one.")
    return [count, temperature, top_k, top_p, seed]
