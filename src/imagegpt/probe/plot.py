"""Pictures of results: accuracy by layer, which classes are taken for which, and how sure to be of it.

Line styles and marks differ, as colours do.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.figures import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from imagegpt.metrics import Reliability
    from imagegpt.probe.sweep import Curve, Row

NAMED = 30  # classes whose names are written
NUMBERED = 12  # classes whose cells have numbers
LONGEST = 18  # letters of a name


def plot_curve(path: Path, curve: Curve, title: str = "Linear probe by layer") -> None:
    """Write the accuracy by layer as a PNG: the linear probe, nearest neighbours, ridge, and the baselines.

    Raises:
        InputError: the sweep has no single layer, or the file can't be written.
        MissingExtra: matplotlib is missing (extra "plot").
    """
    figure, axes = new_figure(1200, 800)
    rows = sorted((row for row in curve.rows if len(row.layers) == 1), key=lambda row: row.layers)
    if not rows:
        raise InputError("There is no curve without the features of at least one layer.")
    _line(axes, rows, lambda row: row.metrics.top1, "linear probe", color=BLUE, linewidth=2.2, marker="o", zorder=3)
    _line(axes, rows, lambda row: row.ridge, "ridge regression", color=GREEN, linewidth=1, marker="^", markersize=4)
    _line(axes, rows, lambda row: row.knn, "nearest neighbours", color=GREY, linewidth=1, marker="s", markersize=3.5)
    _levels(axes, [row for row in curve.rows if len(row.layers) != 1])
    best = max(rows, key=lambda row: row.metrics.top1)
    [layer], top = best.layers, 100 * best.metrics.top1
    axes.plot([layer], [top], "o", color=BLUE, markersize=13, fillstyle="none", markeredgewidth=1.8, zorder=4)
    axes.annotate(
        f"layer {layer}: {top:.1f} %",
        (layer, top),
        xytext=(0, 13),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=BLUE,
        weight="bold",
    )
    layers = [row.layers[0] for row in rows]
    axes.set_title(title, parse_math=False)
    axes.set(xlabel="layer", ylabel="top-1 accuracy (%)")
    axes.set_xticks(layers[:: -(-len(layers) // 16)])
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.margins(y=0.14)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    save_figure(path, figure)


def plot_confusion(
    path: Path, confusion_CC: NDArray[np.int64], classes: Sequence[str], title: str = "Confusion matrix"
) -> None:
    """Write a confusion matrix as a PNG: of the pictures of each true class, the part predicted as each class.

    Args:
        path: the file.
        confusion_CC: pictures by true class (rows) and predicted class (columns).
        classes: names, by label.
        title: the accuracy is written after it.

    Raises:
        InputError: the names are not as many as the classes, or the file can't be written.
        MissingExtra: matplotlib is missing (extra "plot").
    """
    count = len(confusion_CC)
    if len(classes) != count:
        raise InputError(f"{len(classes)} names don't fit {count} classes.")
    figure, axes = new_figure(1200, 1050)
    percent_CC = 100 * confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    image = axes.imshow(percent_CC, cmap="Blues", vmin=0, vmax=100)
    if count <= NUMBERED:
        for (true, predicted), value in np.ndenumerate(percent_CC):
            color = "white" if value > 55 else "black"
            axes.text(predicted, true, f"{value:.0f}", ha="center", va="center", color=color)
    if count <= NAMED:
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}" for name in classes]
        size = 10 if count <= NUMBERED else 7
        style: dict[str, Any] = {"fontsize": size, "parse_math": False}
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", **style)
        axes.set_yticks(range(count), names, **style)
    right = 100 * confusion_CC.trace() / max(confusion_CC.sum(), 1)
    axes.set_title(f"{title}: {right:.1f} % right", parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    save_figure(path, figure)


def plot_reliability(path: Path, found: Reliability, title: str = "Reliability") -> None:
    """Write how right predictions are by how sure they are as a PNG, bin by bin; on the dashed line they are as right.

    Raises:
        InputError: the file can't be written.
        MissingExtra: matplotlib is missing (extra "plot").
    """
    figure, axes = new_figure(1050, 900)
    width = 1 / len(found.count_M)
    middles_M, there_M = (np.arange(len(found.count_M)) + 0.5) * width, found.count_M > 0
    heights_M = 100 * found.accuracy_M[there_M]
    axes.bar(100 * middles_M[there_M], heights_M, 90 * width, color=BLUE, label="accuracy")
    axes.plot(100 * found.confidence_M[there_M], heights_M, "D", color=ORANGE, markersize=5, label="mean confidence")
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    axes.set_title(f"{title}: calibration error {100 * found.error:.1f} %", parse_math=False)
    axes.legend(frameon=False, loc="upper left")
    save_figure(path, figure)


def _line(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float | None], label: str, **style: Any) -> None:
    """One line through the layers that have such a value."""
    points = [(row.layers[0], 100 * known) for row in rows if (known := value(row)) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _levels(axes: Axes, rows: Sequence[Row]) -> None:
    """What has no place on the axis of layers: baselines dashed, layers side by side dotted."""
    dashes = cycle(["--", (0, (6, 2, 1, 2)), (0, (10, 3))])
    for row in rows:
        top = 100 * row.metrics.top1
        if row.baseline:
            style, color, label = next(dashes), ORANGE, row.name
        else:
            style, color, label = ":", BLUE, f"layers {row.name}"
        axes.axhline(top, color=color, linestyle=style, linewidth=1.5, label=f"{label}: {top:.1f} %")
