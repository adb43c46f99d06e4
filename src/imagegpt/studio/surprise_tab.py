"""The tab that shows which pixels the model did not expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from imagegpt.engine.score import Scores
from imagegpt.errors import InputError
from imagegpt.sequence import unflatten
from imagegpt.studio import views
from imagegpt.studio.page import UNSEEN, Page, Seen, Studio, look, read_photo
from imagegpt.studio.widgets import new_maps, new_problem, nothing, problem, table

LISTED = 8


@dataclass(frozen=True)
class Surprise:
    """How likely a model finds a picture."""

    seen: Seen
    scores: Scores

    def board(self) -> dict[str, Any]:
        """The picture, the surprise at each of its ids, and how open each place was."""
        model = self.seen.model
        top = math.log(model.spec.num_colors)  # what each id would cost if all were as likely
        scores = self.scores
        surprise_HW, entropy_HW = (unflatten(each, model.grid)[0] for each in (scores.surprise, scores.entropy))
        parts = [
            views.picture("What the model sees", "The picture as the model sees it.", self.seen.image),
            views.heat("surprise", "Heat map: lighter pixels surprised the model more.", surprise_HW, top, "nats"),
            views.heat("entropy", "Heat map: at lighter pixels more colours were likely.", entropy_HW, top, "nats"),
        ]
        return views.maps(model.grid, parts)

    def summary(self) -> dict[str, float | str]:
        """What is told of the whole picture."""
        scores = self.scores
        return {
            "log_likelihood": float(scores.log_likelihood[0]),
            "nats_per_token": float(scores.nats_per_token[0]),
            "bits_per_dim": float(scores.bits_per_dim[0]),
            "codec": scores.codec,
        }

    def words(self) -> str:
        """The sums, and the most surprising pixels."""
        told, width = self.summary(), self.seen.model.grid[1]
        rows = {
            "log-likelihood": f"{told['log_likelihood']:,.1f} nats",
            "nats/token": f"{told['nats_per_token']:.4f}",
            f"bits/dim of {told['codec']}": f"{told['bits_per_dim']:.4f}",
        }
        surprise_T = self.scores.surprise[0]
        for rank, index in enumerate(np.argsort(-surprise_T, kind="stable")[:LISTED].tolist(), 1):
            place = f"row {index // width + 1}, column {index % width + 1}"
            rows[f"most surprising, {rank}"] = f"{place}: {surprise_T[index]:.2f} nats"
        return table(rows)


def surprise_of(studio: Studio, name: str, photo: Any) -> Surprise:
    """Score a picture.

    Raises:
        InputError: a picture that can't be read.
    """
    picture, model = read_photo(photo), studio.catalogue.open(name)
    return Surprise(look(model, picture), model.score(picture))


def build(page: Page) -> None:
    """Lay the tab out."""
    gr.Markdown("How unlikely the model found each pixel, given all above and to the left of it: -log p, in nats.")
    ask = gr.Button("Show the surprise", variant="primary")
    about, board, words = new_problem(), new_maps(), gr.HTML()
    page.shows.extend([(board, nothing), (words, nothing), (about, nothing)])

    async def show(photo: Any, name: Any, request: gr.Request) -> Any:
        try:
            found = await page.studio.run(request, lambda: surprise_of(page.studio, name, photo))
        except InputError as error:
            return gr.skip(), gr.skip(), problem(str(error))
        return found.board(), found.words(), problem()

    ask.click(show, [page.photo, page.model], [board, words, about], **UNSEEN)
