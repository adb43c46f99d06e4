"""Pictures of scores: of each picture where it surprises, and sheets of the likeliest and the least likely ones."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.data.ids import Ids, read_ids
from imagegpt.engine.score import Scores
from imagegpt.files import make_folder, write_whole
from imagegpt.heatmap import draw_heatmap, draw_scale
from imagegpt.scoring import Scoring
from imagegpt.sequence import unflatten
from imagegpt.sheet import Cell, draw_sheet, enlarge

ON_SHEET, PER_ROW = 32, 8


class ScorePictures:
    """Draws into a folder, one file a picture, named by the number of its record.

    Args:
        folder: is made with the first picture.
        run: whose scores they are.
    """

    def __init__(self, folder: Path, run: Scoring) -> None:
        self._folder, self._run = folder, run
        self._top = math.log(run.model.spec.num_colors)  # what each id would cost if all colours were as likely

    def draw(self, batch: Ids, scores: Scores) -> None:
        """Draw a batch's pictures as the model saw them, with the surprise at each id and the entropy of its place."""
        model = self._run.model
        maps = (self._over_pixels(values) for values in (scores.surprise, scores.entropy))
        rows = zip(batch.numbers, batch.names, model.decode(batch.ids_BT), *maps, scores.nats_per_token, strict=True)
        for number, name, image, surprise_HW, entropy_HW, nats in rows:
            cells = [
                Cell(enlarge(image), "seen"),
                Cell(draw_heatmap(surprise_HW, self._top), f"surprise {nats:.2f}"),
                Cell(draw_heatmap(entropy_HW, self._top), f"entropy {entropy_HW.mean():.2f}"),
                Cell(draw_scale(self._top, "nats")),
            ]
            self._save(f"{number:06}-{_plain(name)}.png", draw_sheet([cells]))

    def _over_pixels(self, values_BT: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers of ids as (B, H, W), each over all pixels of its id, so that maps are as large as pictures."""
        model = self._run.model
        factor = model.codec.factor
        return unflatten(values_BT, model.grid).repeat(factor, 1).repeat(factor, 2)

    def draw_sheets(self, numbers: NDArray[np.int64], log_likelihoods: NDArray[np.float64]) -> list[str]:
        """Draw `likeliest.png` and `unlikeliest.png`, the farthest first; their paths.

        Args:
            numbers: of the records.
            log_likelihoods: theirs, in nats.
        """
        order = np.argsort(-log_likelihoods, kind="stable")
        chosen = {"likeliest": order[:ON_SHEET], "unlikeliest": order[::-1][:ON_SHEET]}
        return [self._sheet(name, numbers[rows], log_likelihoods[rows]) for name, rows in chosen.items()]

    def _sheet(self, name: str, numbers: NDArray[np.int64], log_likelihoods: NDArray[np.float64]) -> str:
        length = self._run.model.spec.n_positions
        cells = [
            Cell(enlarge(self._picture(int(number))), f"{number}: {-log_likelihood / length:.2f}")
            for number, log_likelihood in zip(numbers, log_likelihoods, strict=True)
        ]
        rows = [cells[start : start + PER_ROW] for start in range(0, len(cells), PER_ROW)]
        return self._save(f"{name}.png", draw_sheet(rows))

    def _picture(self, number: int) -> Image.Image:
        """A record's picture as the model sees it, read again: they may be any of millions."""
        run = self._run
        [batch] = read_ids(run.source, run.model.codec, run.model.framing, run.on_error, number, number + 1)
        return run.model.decode(batch.ids_BT)[0]

    def _save(self, name: str, sheet: Image.Image) -> str:
        make_folder(self._folder)
        path = self._folder / name
        write_whole(path, sheet.save)
        return str(path)


def _plain(name: str) -> str:
    """The end of a record's name, in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem)[-40:].strip("-") or "picture"
