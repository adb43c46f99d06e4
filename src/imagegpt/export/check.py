"""Is what was exported the same function? Both run the same ids, and their outputs are compared.

Shape suffixes: B rows, S ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.export.options import Function
from imagegpt.export.source import Source

ROWS, LENGTH = 2, 64  # of ids that both run: enough to show an error, and short even for a large model
# Largest part of an output's root mean square that the root mean square of the difference may be.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1, "int8": 1e-1}
Outputs = Mapping[str, NDArray[np.floating[Any]]]
Run = Callable[[NDArray[np.int64]], Outputs]


@dataclass(frozen=True)
class Difference:
    """How far an output is from the network in float32.

    Args:
        function: of the export.
        output: its name.
        largest: largest difference of a number.
        relative: root mean square of the differences, over that of the output.
        tolerance: that `relative` may not exceed.
    """

    function: Function
    output: str
    largest: float
    relative: float
    tolerance: float

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_ids(source: Source, function: Function, seed: int = 0) -> NDArray[np.int64]:
    """(B, S) random ids for a comparison, behind SOS where the function reads it."""
    spec = source.spec
    ids_BS = np.random.default_rng(seed).integers(0, spec.num_colors, (ROWS, min(LENGTH, spec.n_positions)))
    if source.causal and function != "classification":
        ids_BS[:, 0] = spec.sos
    return ids_BS


def compare(function: Function, got: Outputs, wanted: Outputs, precision: str) -> list[Difference]:
    """The differences of all outputs.

    Raises:
        InputError: one is above the tolerance; nothing should be made of such an export.
    """
    found = []
    for name, value in wanted.items():
        away = np.asarray(got[name], np.float64) - value
        relative = _rms(away) / max(_rms(np.asarray(value, np.float64)), 1e-30)
        found.append(Difference(function, name, float(np.abs(away).max()), relative, TOLERANCES[precision]))
    for one in found:
        if not one.relative <= one.tolerance:  # NaN too
            raise InputError(
                f"The exported {one.function} is another function than the model: {one.output} differs by "
                f"{one.relative:.2g} of its size, and {precision} may by {one.tolerance:g}. Nothing was written"
                + ("." if precision == "fp32" else "; export in fp32.")
            )
    return found


def in_two_parts(ids_BS: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    """Ids as a decoder gets them: first some, then the rest behind their keys and values."""
    return np.split(ids_BS, [ids_BS.shape[1] // 2], axis=1) if ids_BS.shape[1] > 1 else [ids_BS]


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
