"""The methods: from a picture's statistics to a score that is higher the less normal the picture is.

All are in nats. With m the model's nats/token, b the background's and c the compressed file's (docs/anomaly.md):

* likelihood: m (Bishop 1994, "Novelty detection and neural network validation"). It calls simple pictures normal,
  whatever they show (Nalisnick et al. 2019, "Do deep generative models know what they don't know?").
* typicality: |m - mean of m over normal pictures| (Nalisnick et al. 2019, "Detecting out-of-distribution inputs to deep
  generative models using typicality", for one picture at a time).
* ratio: m - b (Ren et al. 2019, "Likelihood ratios for out-of-distribution detection").
* complexity: m - c (Serra et al. 2020, "Input complexity and out-of-distribution detection with likelihood-based
  generative models").
* density: -log of the density of all statistics together over normal pictures, after Morningstar et al. 2021, "Density
  of states estimation for out-of-distribution detection".

Shape suffixes: N normal pictures, B pictures, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagegpt.anomaly.density import Density
from imagegpt.anomaly.statistics import column
from imagegpt.errors import InputError

Method = Literal["likelihood", "typicality", "ratio", "complexity", "density"]
METHODS = ("likelihood", "typicality", "ratio", "complexity", "density")
DEFAULT: Method = "density"
Rows = NDArray[np.float64]


def check_method(method: str) -> None:
    """Refuse what is no method."""
    if method not in METHODS:
        raise InputError(f"method must be {', '.join(METHODS)}, not {method!r}.")


class Methods:
    """All methods, with what they know of normal pictures.

    Args:
        reference_NS: statistics of normal pictures, two at least; see `imagegpt.anomaly.statistics`.
    """

    def __init__(self, reference_NS: Rows) -> None:
        usual, density = column(reference_NS, "nats").mean(), Density(reference_NS)
        self._ways: dict[str, Callable[[Rows], Rows]] = {
            "likelihood": lambda x_BS: column(x_BS, "nats"),
            "typicality": lambda x_BS: np.abs(column(x_BS, "nats") - usual),
            "ratio": lambda x_BS: column(x_BS, "nats") - column(x_BS, "background"),
            "complexity": lambda x_BS: column(x_BS, "nats") - column(x_BS, "compressed"),
            "density": density.surprise,
        }

    def scores(self, x_BS: Rows) -> dict[str, Rows]:
        """Each method's score of each picture, by the method's name: (B,)."""
        return {method: self._ways[method](x_BS) for method in METHODS}
