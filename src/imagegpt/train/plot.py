"""Pictures of runs: losses over step sizes, and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagegpt.figures import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from imagegpt.train.journal import LOG, read_journal


def plot_rates(path: Path, found: Mapping[str, Any]) -> None:
    """Write what the learning-rate finder saw as a PNG.

    Args:
        path: of the PNG.
        found: `run_finder`'s result.

    Raises:
        MissingExtra: matplotlib is missing (extra "plot").
    """
    figure, axes = new_figure(1000, 650)
    rates, losses = zip(*found["curve"], strict=True)
    axes.semilogx(rates, losses, color=BLUE, linewidth=2)
    axes.axvline(found["lr"], color=ORANGE, linestyle="--", label=f"suggested: {found['lr']:.2g}")
    axes.set(xlabel="step size (lr)", ylabel="training loss, nats/token", title="Learning-rate finder")
    axes.legend()
    save_figure(path, figure)


def plot_runs(
    path: Path, runs: Mapping[str, Path], levels: Mapping[str, float] | None = None, limits: Sequence[float] = ()
) -> None:
    """Write the validation curves of runs over their training time as a PNG.

    Args:
        path: of the PNG.
        runs: name -> folder.
        levels: name -> nats/token that are drawn as a line across.
        limits: lowest and highest nats/token that are shown.

    Raises:
        MissingExtra: matplotlib is missing (extra "plot").
    """
    figure, axes = new_figure(1200, 800)
    styles = zip((BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=True)
    for (name, folder), (color, style) in zip(runs.items(), styles, strict=False):
        points = [record for record in read_journal(folder / LOG) if record.get("kind") == "validation"]
        minutes = [point["seconds"] / 60 for point in points]
        nats = [point["nats_per_token"] for point in points]
        axes.plot(minutes, nats, style, color=color, label=name, linewidth=2, marker="o", markersize=4)
    for name, value in (levels or {}).items():
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (6, 2, 1, 2)))
        axes.annotate(f"{name}: {value:g}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    if limits:
        axes.set_ylim(*limits)
    axes.set(xlabel="minutes of updates", ylabel="nats/token on validation pictures")
    axes.legend()
    save_figure(path, figure)
