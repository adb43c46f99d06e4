"""What watches over a run's numbers: loss spikes, and the scale of float16's gradients."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW = 50  # updates whose mean a loss is compared with
LOWEST_SCALE, FIRST_SCALE, PATIENCE = 2.0**-10, 2.0**16, 2000


class Guard:
    """Tells an update that must not be made.

    Args:
        spike: nats/token above the mean of the latest updates that are too many; 0 looks for losses that are not
            finite only.
    """

    def __init__(self, spike: float) -> None:
        self._spike, self._recent = spike, deque[float](maxlen=WINDOW)

    def trouble(self, loss: float, norm: float) -> str | None:
        """What is wrong with an update's loss or its gradient's norm; `None` counts it among the latest."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        mean = sum(self._recent) / len(self._recent) if self._recent else loss
        if self._spike and len(self._recent) == WINDOW and loss > mean + self._spike:
            return f"the loss jumped to {loss:.3f} nats/token from a mean of {mean:.3f}"
        self._recent.append(loss)
        return None

    def state(self) -> list[float]:
        """The latest losses, for a checkpoint."""
        return list(self._recent)

    def restore(self, state: list[float]) -> None:
        """Go on from a checkpoint's."""
        self._recent = deque(state, maxlen=WINDOW)


class LossScale:
    """The factor that keeps float16's gradients above its smallest numbers (Micikevicius et al. 2018, section 3.2).

    It is halved when a gradient overflows, and that update is left out; after 2,000 good ones it is doubled. Unlike
    torch's GradScaler it decides by the norm over all processes, which FSDP's parts need.

    Args:
        used: off, the factor stays 1.
    """

    def __init__(self, used: bool) -> None:
        self.used, self.factor, self._good = used, FIRST_SCALE if used else 1.0, 0

    def overflowed(self, norm: float) -> bool:
        """Whether the update must be left out; counts it."""
        if not self.used or (math.isfinite(norm)):
            self._good += 1
            if self.used and self._good % PATIENCE == 0:
                self.factor *= 2
            return False
        self.factor, self._good = self.factor / 2, 0
        return self.factor >= LOWEST_SCALE

    def state(self) -> list[float]:
        """For a checkpoint; empty where it is off."""
        return [self.factor, self._good] if self.used else []

    def restore(self, state: list[Any]) -> None:
        """Go on from a checkpoint's; one of another precision is left alone."""
        if self.used and state:
            self.factor, self._good = float(state[0]), int(state[1])
