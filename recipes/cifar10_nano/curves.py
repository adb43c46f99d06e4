"""Draw the validation curves of runs of the recipe, such as one with --start informed and one with --start paper.

python recipes/cifar10_nano/curves.py --run informed=runs/informed --run paper=runs/paper --out curves.png
"""

from __future__ import annotations

from pathlib import Path

import cyclopts

from imagegpt.train.plot import plot_runs

LEVELS = {"left neighbour, counted": 3.12}  # by measure.py, on the same ids


def curves(*, run: list[str], out: Path) -> None:
    """Draw.

    Args:
        run: name=folder of each run.
        out: the PNG.
    """
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in run)}
    plot_runs(out, folders, LEVELS, (2.1, 4.1))


if __name__ == "__main__":
    cyclopts.run(curves)
