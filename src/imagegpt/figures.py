"""Figures: what all of them share. Colours are of Okabe and Ito's set, which colour-blind people tell apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from imagegpt.errors import MissingExtra
from imagegpt.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
DPI = 150


def new_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure of so many pixels, with one plot.

    Raises:
        MissingExtra: matplotlib is missing (extra "plot").
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("Drawing a plot", "matplotlib", "plot") from error
    figure = Figure((width / DPI, height / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # no window, and no state of pyplot's
    return figure, figure.add_subplot()


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG, whole or not at all; the same figure makes the same file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        write_whole(Path(path), lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
