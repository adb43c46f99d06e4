"""What a codec loses of pictures, and how much of it is used.

Shape suffixes: B pictures, HW pixels, hw the grid of ids, K ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.codec import Codec

WHITE = 255.0


@dataclass
class Quality:
    """Sums over pictures that went through a codec.

    Args:
        codec: whose.
        again: also find out how many ids stay what they are when a picture that was decoded is encoded.

    Example:
        >>> from imagegpt.codec.palette import PaletteCodec
        >>> quality = Quality(PaletteCodec([[-1, -1, -1], [1, 1, 1]]))
        >>> seen = quality.add(np.full((1, 2, 2, 3), 250, np.uint8))
        >>> round(quality.result()["psnr"], 2), quality.result()["used"]
        (34.15, 0.5)
    """

    codec: Codec
    again: bool = False
    _sums: NDArray[np.float64] = field(init=False, repr=False)  # pictures, dims, squares, absolutes, psnr, same
    _counts_K: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sums, self._counts_K = np.zeros(6), np.zeros(len(self.codec))

    def add(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Send pictures through the codec.

        Args:
            pixels_BHWC: uint8.

        Returns:
            What came out, of the same shape.
        """
        ids_Bhw = self.codec.encode(pixels_BHWC)
        seen_BHWC = self.codec.decode(ids_Bhw)
        errors = seen_BHWC.astype(np.float64) - pixels_BHWC
        squares_B = np.square(errors).mean((1, 2, 3))
        same = float((self.codec.encode(seen_BHWC) == ids_Bhw).sum()) if self.again else 0.0
        self._sums += (
            len(pixels_BHWC),
            errors.size,
            np.square(errors).sum(),
            np.abs(errors).sum(),
            _decibels(squares_B).sum(),
            same,
        )
        self._counts_K += np.bincount(ids_Bhw.reshape(-1), minlength=len(self._counts_K))
        return seen_BHWC

    @property
    def pictures(self) -> int:
        """How many there were."""
        return int(self._sums[0])

    def state(self) -> list[float]:
        """The sums as numbers, which those of other processes can be added to."""
        return [*self._sums.tolist(), *self._counts_K.tolist()]

    def restore(self, state: Sequence[float]) -> None:
        """Take sums in the place of these."""
        self._sums, self._counts_K = np.array(state[:6]), np.array(state[6:])

    def result(self) -> dict[str, Any]:
        """What was found.

        Returns:
            `psnr` in dB, of the mean squared error of all pixels; `mean_psnr`, the mean of the pictures' own; `rmse`
            and `mae` in levels of 0..255; `used`, the part of the ids that occur; `perplexity`, exp of the entropy of
            how often each does: K if all do as often; `stable`, with `again`, the part of the ids that a second
            encoding leaves; `pictures`, and the `codec`. Without pictures the errors are not a number.
        """
        pictures, dims, squares, absolutes, decibels, same = self._sums
        with np.errstate(invalid="ignore"):  # of no pictures nothing is known
            square, absolute, mean = squares / dims, absolutes / dims, decibels / pictures
            stable = float(same / self._counts_K.sum())
        return {
            "psnr": float(_decibels(square)),
            "mean_psnr": float(mean),
            "rmse": math.sqrt(square),
            "mae": float(absolute),
            "used": int((self._counts_K > 0).sum()) / len(self.codec),
            "perplexity": perplexity(self._counts_K),
            **({"stable": stable} if self.again else {}),
            "codec": self.codec.name,
            "pictures": self.pictures,
        }


def perplexity(counts_K: NDArray[np.floating[Any]]) -> float:
    """exp of the entropy of how often each id occurs: K if all do as often."""
    parts_K = counts_K[counts_K > 0] / counts_K.sum()
    return math.exp(-float((parts_K * np.log(parts_K)).sum()))


def _decibels(squares: Any) -> Any:
    """Peak signal-to-noise ratio of mean squared errors in levels; infinite where there is none."""
    with np.errstate(divide="ignore"):
        return 20 * np.log10(WHITE) - 10 * np.log10(squares)
