"""The background model of ids, slow and obvious: one event at a time, counted in dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict


def events(picture, colors):
    """(left, above, id) of each pixel of a picture, rows of ids; `colors` stands beyond the edge."""
    for row, ids in enumerate(picture):
        for place, id_ in enumerate(ids):
            left = ids[place - 1] if place else colors
            above = picture[row - 1][place] if row else colors
            yield left, above, id_


class SlowBackground:
    def __init__(self, pictures, colors):
        self.colors = colors
        self.followers = defaultdict(Counter)
        for picture in pictures:
            for left, above, id_ in events(picture, colors):
                for context in (("pair", left, above), ("left", left), ("above", above), ("alone",)):
                    self.followers[context][id_] += 1

    def probability(self, left, above, id_):
        alone = self._mixed(("alone",), id_, 1 / self.colors)
        either = (self._mixed(("left", left), id_, alone) + self._mixed(("above", above), id_, alone)) / 2
        return self._mixed(("pair", left, above), id_, either)

    def log_likelihood(self, picture):
        return sum(math.log(self.probability(*event)) for event in events(picture, self.colors))

    def _mixed(self, context, id_, lower):
        seen = self.followers.get(context)
        if not seen:
            return lower
        return (seen[id_] + len(seen) * lower) / (sum(seen.values()) + len(seen))
