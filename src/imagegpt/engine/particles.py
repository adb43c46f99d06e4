"""Sequential Monte Carlo: pixels that are known after unknown ones (Doucet and Johansen 2009, sections 3 and 4).

A model in raster order can't see a known pixel before it has drawn those above, so merely forcing it where it comes
makes pictures that run against it. Here several histories, the particles, are drawn side by side. Where a known id
comes, each is weighed by the probability that its history gives to that id,

    w_i <- w_i p(x_t | history_i),

so that after the last id the weighted particles stand for p(unknown | known), the more exactly the more there are.
When the effective number (sum w)^2 / sum w^2 falls below half of them, likely histories are doubled in the place of
unlikely ones (systematic resampling) and all weigh the same again. One particle is drawn by its weight at the end.
With temperature and filters the unknown ids are drawn from the changed distribution, and known ones weigh by the
model's own; one particle is plain forcing.

Shape suffixes: G samples, P particles of each, T positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Particles:
    """Weights of the particles of G samples; the rows of a sample are P beside one another.

    Args:
        particles: P.
        uniforms_GT: random numbers in [0, 1): one for a resampling at each position; the last one picks.
    """

    def __init__(self, particles: int, uniforms_GT: NDArray[np.float64]) -> None:
        self._uniforms_GT = uniforms_GT
        self._log_weights_GP = np.zeros((len(uniforms_GT), particles))
        self._weighed_G = np.zeros(len(uniforms_GT), bool)
        self.least_effective = np.full(len(uniforms_GT), float(particles))

    def weigh(self, log_probs_B: NDArray[np.float64], weighed_G: NDArray[np.bool_]) -> None:
        """Multiply the weights of some samples by probabilities, one a row."""
        self._weighed_G |= weighed_G
        log_probs_GP = log_probs_B.reshape(self._log_weights_GP.shape)
        self._log_weights_GP += np.where(weighed_G[:, None], log_probs_GP, 0.0)
        self.least_effective = np.minimum(self.least_effective, self.effective())

    def weights(self) -> NDArray[np.float64]:
        """(G, P), rows sum to 1."""
        weights_GP = np.exp(self._log_weights_GP - self._log_weights_GP.max(1, keepdims=True))
        return weights_GP / weights_GP.sum(1, keepdims=True)

    def effective(self) -> NDArray[np.float64]:
        """(G,) the effective numbers of particles: P where all weigh the same, 1 where one has it all."""
        return 1 / np.square(self.weights()).sum(1)

    def resample(self, position: int, allowed_G: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Double likely particles in the place of unlikely ones, in the samples that need it.

        Args:
            position: chooses the random number.
            allowed_G: samples that may be resampled.

        Returns:
            Rows to copy from, and as many rows to copy to. A particle that survives stays where it is.
        """
        weights_GP = self.weights()
        particles = weights_GP.shape[1]
        sources, targets = [], []
        for sample in np.flatnonzero(allowed_G & (self.effective() < particles / 2)):
            marks = (self._uniforms_GT[sample, position] + np.arange(particles)) / particles
            marks = np.minimum(marks, np.nextafter(1, 0))  # rounding may reach 1
            cumulative = weights_GP[sample].cumsum()
            chosen = np.searchsorted(cumulative / cumulative[-1], marks, side="right")
            copies = np.bincount(chosen, minlength=particles)
            sources.append(sample * particles + np.repeat(np.arange(particles), np.maximum(copies - 1, 0)))
            targets.append(sample * particles + np.flatnonzero(copies == 0))
            self._log_weights_GP[sample] = 0
        if not targets:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate(sources), np.concatenate(targets)

    def pick(self) -> NDArray[np.int64]:
        """(G,) one row of each sample: drawn by weight, or the first, which is the sample that it would be alone."""
        weights_GP = self.weights()
        cumulative_GP = weights_GP.cumsum(1)
        marks_G1 = self._uniforms_GT[:, -1:] * cumulative_GP[:, -1:]
        chosen_G = np.where(self._weighed_G, (cumulative_GP <= marks_G1).sum(1), 0)
        return np.arange(len(weights_GP)) * weights_GP.shape[1] + chosen_G
