"""What the tabs share: the studio behind the page, the model and the picture that are chosen, and how they ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component
from gradio.utils import get_upload_folder
from PIL import Image

from imagegpt.codec.pictures import read_picture
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.sweep import Curve
from imagegpt.studio.catalogue import Catalogue
from imagegpt.studio.limits import Limits
from imagegpt.studio.turns import Turns

# Of events that the page alone triggers. What Gradio would make of their inputs is left to the pipeline, whose errors
# are sentences: a picture stays the file that was uploaded, which Gradio has made sure of.
UNSEEN: dict[str, Any] = {
    "preprocess": False,
    "concurrency_limit": None,
    "show_progress": "hidden",
    "api_visibility": "private",
}

CALL = "/gradio_api/call/"

T = TypeVar("T")


@dataclass(frozen=True)
class Studio:
    """What is behind the page.

    Args:
        catalogue: the models.
        limits: what a request may take.
        data: words -> DATA, sets of pictures that the owner offers to look for neighbours in.
        curve: accuracy of linear probes by layer, if there is one.
    """

    catalogue: Catalogue
    limits: Limits
    data: dict[str, str] = field(default_factory=dict)
    curve: Curve | None = None
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", Turns(self.limits))

    async def run(self, request: gr.Request, call: Callable[[], T]) -> T:
        """Compute something short, when it is the client's turn."""
        return await self.turns.run(client_of(request), call)

    def stream(self, request: gr.Request, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Compute something long piece by piece, when it is the client's turn; to be closed."""
        return self.turns.stream(client_of(request), start)


@dataclass(frozen=True)
class Seen:
    """A picture, and what a model sees of it.

    Args:
        model: that looks.
        cut: the part that comes onto the grid, in the picture's own resolution.
        framed: that part in the model's pixels.
        image: what is left of it as the codec's ids.
    """

    model: ImageGPT
    cut: Image.Image
    framed: Image.Image
    image: Image.Image


@dataclass(frozen=True)
class Page:
    """The page while it is built.

    Args:
        studio: behind it.
        model: the name of the model that is chosen.
        photo: the picture that is chosen.
        shows: components that show something of the picture, and what; each tab adds its own.
    """

    studio: Studio
    model: gr.Dropdown
    photo: gr.Image
    shows: list[tuple[Component, Callable[[Seen], Any]]] = field(default_factory=list)


def client_of(request: gr.Request) -> str:
    """Who asks: the user who has logged in, or the session; by REST each call is one, so there it is the machine."""
    if not request.username and CALL in request.url.path:
        return request.client.host
    return request.username or request.session_hash or "nobody"


def paths_of(uploads: Any) -> list[str]:
    """Where files lie that were uploaded: one, several or none, as Gradio tells them.

    Raises:
        InputError: a client names another place, whether there is anything or not.
    """
    told = uploads if isinstance(uploads, list) else [uploads]
    paths = [upload["path"] for upload in told if isinstance(upload, dict) and isinstance(upload.get("path"), str)]
    for path in paths:
        if not _is_upload(path):
            raise InputError("That is no file that was uploaded: upload it first.")
    return paths


def _is_upload(path: str) -> bool:
    """Whether Gradio has put a file there; it makes sure of that only where a client says that it is a file."""
    try:
        return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, RuntimeError, ValueError):  # no name of a file at all
        return False


def read_photo(upload: Any) -> Image.Image:
    """The picture that was uploaded.

    Args:
        upload: as Gradio tells it.

    Raises:
        InputError: there is none, or it can't be read; it is called by its own name.
    """
    paths = paths_of(upload)
    if not paths:
        raise InputError("Choose a picture first: upload one, take one with the camera, or click an example.")
    try:
        return read_picture(Path(paths[0]))
    except InputError as error:
        raise InputError(str(error).replace(paths[0], Path(paths[0]).name)) from None


def look(model: ImageGPT, picture: Image.Image) -> Seen:
    """What a model sees of a picture."""
    ids_BT = model.encode(picture)
    framed = Image.fromarray(model.framing.apply(picture))
    return Seen(model, model.framing.cut(picture), framed, model.decode(ids_BT)[0])
