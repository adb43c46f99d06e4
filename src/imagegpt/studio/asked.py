"""What a client tells, which may be anything, read and checked."""

from __future__ import annotations

import math
import reprlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imagegpt.errors import InputError

MOST_SEED = 2**32 - 1


def number(name: str, value: Any) -> float:
    """A number that a client told, which may be anything.

    Raises:
        InputError: it is no finite number.
    """
    with suppress(OverflowError):  # of a whole number that is too large
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise InputError(f"{name} must be a number, not {reprlib.repr(value)}.")


def whole(name: str, value: Any) -> int:
    """The same of a whole number; see `number`."""
    if number(name, value) != int(value):
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    return int(value)


@dataclass(frozen=True)
class Wanted:
    """How pictures are to be drawn, as the controls say it.

    Args:
        count: how many.
        temperature: see `imagegpt.engine.warp.Sampling`.
        top_k: 0 for all colours.
        top_p: 1 for all colours.
        seed: -1 for a new one.
    """

    count: int = 4
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = -1

    @classmethod
    def read(cls, count: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any) -> Wanted:
        """What the controls hold, which a client may have filled with anything.

        Raises:
            InputError: something that is no such number.
        """
        asked = cls(
            whole("num", count),
            number("temperature", temperature),
            whole("top_k", top_k),
            number("top_p", top_p),
            whole("seed", seed),
        )
        if not -1 <= asked.seed <= MOST_SEED:
            raise InputError(f"seed must be 0 to {MOST_SEED}, or -1 for a new one, not {seed}.")
        return asked

    def options(self) -> dict[str, Any]:
        """Arguments of `ImageGPT.stream`."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k or None,
            "top_p": None if self.top_p == 1 else self.top_p,
            "seed": None if self.seed < 0 else self.seed,
        }


@dataclass(frozen=True)
class Kept:
    """What is kept of a picture.

    Args:
        part: from the top, where nothing is painted.
        painted: 0 or 1 for each square of the grid, 1 where the model shall paint; `None` for `part`.
        particles: histories of each sample, where something is painted.
    """

    part: float = 0.5
    painted: str | None = None
    particles: int = 1

    @classmethod
    def read(cls, part: Any, painted: Any, particles: Any) -> Kept:
        """What the controls hold; see `Wanted.read`."""
        return cls(number("keep", part), painted or None, whole("particles", particles))
