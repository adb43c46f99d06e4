"""Plots: what is drawn, and that nothing of it stays."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from imagegpt.errors import InputError
from imagegpt.metrics import evaluate
from imagegpt.probe import plot
from imagegpt.probe.plot import plot_confusion, plot_curve
from imagegpt.probe.sweep import Curve, Row


def row(name, layers, top1, knn=None, ridge=None) -> Row:
    y = np.arange(100) % 4
    guess = np.where(np.arange(100) < 100 * top1, y, (y + 1) % 4)
    return Row(name, layers, "lbfgs", 0.1, {}, True, evaluate(np.eye(4)[guess], y, 4), knn, ridge)


def curve(knn=0.5, ridge=0.55) -> Curve:
    layers = [row(str(n), (n,), top1, knn, ridge) for n, top1 in enumerate((0.4, 0.7, 0.6))]
    return Curve((row("pixels", (), 0.3), *layers, row("0+1", (0, 1), 0.75), row("random", (), 0.25)))


@pytest.fixture
def drawn(monkeypatch):
    """The figures, before they are written."""
    figures = []
    save = plot.save_figure
    monkeypatch.setattr(plot, "save_figure", lambda path, figure: (figures.append(figure), save(path, figure)))
    return figures


def test_a_curve_has_a_line_for_each_classifier_and_baseline(tmp_path, drawn):
    plot_curve(tmp_path / "a.png", curve())
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.size == (1200, 800)
    [axes] = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["linear probe"].get_xydata().tolist() == [[0, 40], [1, 70], [2, 60]]
    assert lines["nearest neighbours"].get_ydata().tolist() == [50, 50, 50]
    assert lines["ridge regression"].get_ydata().tolist() == pytest.approx([55, 55, 55])
    assert lines["pixels: 30.0 %"].get_linestyle() == "--"
    assert set(lines) >= {"random: 25.0 %", "layers 0+1: 75.0 %"}
    assert [text.get_text() for text in axes.texts] == ["layer 1: 70.0 %"]
    assert axes.get_xlabel() == "layer"
    assert axes.get_ylabel() == "top-1 accuracy (%)"


def test_what_was_not_measured_is_not_drawn(tmp_path, drawn):
    plot_curve(tmp_path / "a.png", Curve(curve(None, None).rows[1:4]))
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["linear probe"]


def test_a_confusion_matrix(tmp_path, drawn):
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    plot_confusion(tmp_path / "a.png", counts, ["$a", "猫", "a very long name of a class"])
    with Image.open(tmp_path / "a.png") as image:
        image.load()
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "0", "0", "0", "0", "25", "25", "50"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$a", "猫", "a very long name …"]
    assert axes.get_title() == "Confusion matrix: 62.5 % right"


def test_many_classes_are_drawn_without_names(tmp_path, drawn):
    plot_confusion(tmp_path / "a.png", np.eye(100, dtype=np.int64), [f"class {n}" for n in range(100)])
    axes = drawn[0].axes[0]
    assert not axes.texts
    assert "class 3" not in [text.get_text() for text in axes.get_yticklabels()]


def test_no_warning_no_pyplot_and_the_same_file_twice(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curve(tmp_path / "a.png", curve(), "title of 1$ and $^_ 猫")
        plot_curve(tmp_path / "b.png", curve(), "title of 1$ and $^_ 猫")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


def test_what_can_not_be_drawn_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one layer"):
        plot_curve(tmp_path / "a.png", Curve((row("pixels", (), 0.3),)))
    with pytest.raises(InputError, match="1 names don't fit 4 classes"):
        plot_confusion(tmp_path / "a.png", np.eye(4, dtype=np.int64), ["a"])
    with pytest.raises(InputError, match="can't be written"):
        plot_curve(tmp_path / "none" / "a.png", curve())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[plot\]"):
        plot_curve(tmp_path / "a.png", curve())
