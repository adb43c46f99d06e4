"""What is to be drawn, in batches of rows that are sampled together.

Shape suffixes: R pictures, T ids of a picture, B rows, G samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.decode import Batch, span
from imagegpt.engine.warp import uniforms


@dataclass(frozen=True)
class Task:
    """Samples of pictures.

    Args:
        ids_RT: the pictures' ids; those that are not known may be anything.
        known_RT: which of them are given.
        seeds: one for each picture.
        samples: of each picture.
        first: number of the first sample, which with the seed decides its random numbers.
        particles: histories of each sample; see `imagegpt.engine.particles`.
    """

    ids_RT: NDArray[np.int64]
    known_RT: NDArray[np.bool_]
    seeds: list[int]
    samples: int
    first: int = 0
    particles: int = 1

    @property
    def total(self) -> int:
        """All samples: those of a picture are beside one another."""
        return len(self.ids_RT) * self.samples

    @property
    def prompt(self) -> int:
        """How many first ids are known in all pictures."""
        return span(self.known_RT).start

    def parts(self, rows: int) -> list[slice]:
        """The samples in turn, as many at once as `rows` rows hold, at least one."""
        size = max(1, rows // self.particles)
        return [slice(start, min(start + size, self.total)) for start in range(0, self.total, size)]

    def positions(self, part: slice) -> int:
        """How many positions of samples a part steps through."""
        pictures = np.unique(np.arange(part.start, part.stop) // self.samples)
        return (part.stop - part.start) * len(span(self.known_RT[pictures], self.particles))

    def batch(self, part: slice) -> Batch:
        """The rows of a part, with their random numbers."""
        samples_G = np.arange(part.start, part.stop)
        pictures, of_sample = np.unique(samples_G // self.samples, return_inverse=True)
        keys = [
            (self.seeds[sample // self.samples], self.first + sample % self.samples) for sample in samples_G.tolist()
        ]
        length, particles = self.known_RT.shape[1], self.particles
        numbers = [uniforms(*key, length, particle) for key in keys for particle in range(particles)]
        # One stream more than there are particles chooses among them.
        choosing = [uniforms(*key, length, particles) for key in keys] if particles > 1 else None
        return Batch(
            self.ids_RT[pictures],
            self.known_RT[pictures],
            np.repeat(of_sample.reshape(-1), particles),
            np.stack(numbers),
            particles,
            None if choosing is None else np.stack(choosing),
        )
