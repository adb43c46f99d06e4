"""The size of a grid, as code of every age expects it."""

from __future__ import annotations

import operator
from typing import Any


class Size(dict[str, int]):
    """{"height", "width"}. A square one is its side as well, which `size` was in transformers before 4.25.

    Where a whole number is needed (shapes, ranges), in products and in halves it is the side.

    Example:
        >>> size = Size(height=8, width=8)
        >>> size["height"], size == {"height": 8, "width": 8}
        (8, True)
        >>> len(range(size)), size * size + 1
        (8, 65)
    """

    def __index__(self) -> int:
        height, width = self["height"], self["width"]
        if height != width:
            raise TypeError(f"A size of {height} x {width} is not one number: it is not square.")
        return height

    def __mul__(self, other: Any) -> Any:
        return operator.index(self) * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return operator.index(self) // other
