"""The VQ-VAE in numpy and float64, slowly: one vector, one code, one pixel at a time (van den Oord et al. 2017)."""

from __future__ import annotations

import numpy as np


def nearest(vector_C, codes_KC):
    """The first of the codes with the smallest squared distance."""
    best, least = 0, np.inf
    for number, code in enumerate(codes_KC):
        distance = sum((a - b) ** 2 for a, b in zip(vector_C, code, strict=True))
        if distance < least:
            best, least = number, distance
    return best


def quantize(z_BChw, codes_KC):
    """Codes (B, C, h, w), ids (B, h, w) and the commitment loss."""
    chosen, ids = np.zeros_like(z_BChw), np.zeros((len(z_BChw), *z_BChw.shape[2:]), int)
    squares = []
    for b, row, column in np.ndindex(*ids.shape):
        vector = z_BChw[b, :, row, column]
        ids[b, row, column] = nearest(vector, codes_KC)
        chosen[b, :, row, column] = codes_KC[ids[b, row, column]]
        squares += [(a - e) ** 2 for a, e in zip(vector, chosen[b, :, row, column], strict=True)]
    return chosen, ids, sum(squares) / len(squares)


def gradient(z_BChw, codes_KC, slope_BChw, commitment):
    """Of a loss at the vectors, whose gradient at the codes is `slope`: straight through, and the commitment's own."""
    chosen, _, _ = quantize(z_BChw, codes_KC)
    return slope_BChw + commitment * 2 * (z_BChw - chosen) / z_BChw.size


def update(counts_K, codes_KC, vectors, ids, decay):
    """Appendix A.1, equations 6 to 8, for one batch; a code whose count is 0 has no mean and stays."""
    counts, codes = [], []
    for number, (count, code) in enumerate(zip(counts_K, codes_KC, strict=True)):
        own = [vector for vector, id_ in zip(vectors, ids, strict=True) if id_ == number]
        total = decay * count + (1 - decay) * len(own)
        summed = decay * count * code + (1 - decay) * sum(own, np.zeros_like(code))
        counts.append(total)
        codes.append(summed / total if total else code)
    return np.array(counts), np.array(codes)


def revive(counts_K, codes_KC, places_KC, restart):
    """Counts, codes, and which were dead: used less than a part of the mean."""
    limit = restart * sum(counts_K) / len(counts_K)
    dead = [count < limit for count in counts_K]
    counts = [limit if gone else count for gone, count in zip(dead, counts_K, strict=True)]
    codes = [place if gone else code for gone, code, place in zip(dead, codes_KC, places_KC, strict=True)]
    return np.array(counts), np.array(codes), np.array(dead)


def lloyd(vectors, codes_KC, rounds):
    """K-means from these codes on: those that no vector is nearest to stay. Codes, and counts of the last round."""
    for _ in range(rounds):
        ids = [nearest(vector, codes_KC) for vector in vectors]
        groups = [[v for v, id_ in zip(vectors, ids, strict=True) if id_ == number] for number in range(len(codes_KC))]
        codes_KC = np.array([np.mean(g, axis=0) if g else code for g, code in zip(groups, codes_KC, strict=True)])
    return codes_KC, np.array([len(group) for group in groups])


def convolve(x_CHW, weight, bias, stride, padding):
    """weight (out, in, side, side)."""
    padded = np.pad(x_CHW, ((0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[-1]
    height, width = ((size + 2 * padding - side) // stride + 1 for size in x_CHW.shape[1:])
    made = np.zeros((len(weight), height, width))
    for out, row, column in np.ndindex(*made.shape):
        window = padded[:, row * stride : row * stride + side, column * stride : column * stride + side]
        made[out, row, column] = bias[out] + (weight[out] * window).sum()
    return made


def spread(x_Chw, weight, bias, stride, padding):
    """The transposed convolution, weight (in, out, side, side): each number paints its own window."""
    side = weight.shape[-1]
    height, width = ((size - 1) * stride + side for size in x_Chw.shape[1:])
    made = np.zeros((weight.shape[1], height, width))
    for channel, row, column in np.ndindex(*x_Chw.shape):
        window = made[:, row * stride : row * stride + side, column * stride : column * stride + side]
        window += x_Chw[channel, row, column] * weight[channel]
    return made[:, padding : height - padding, padding : width - padding] + bias[:, None, None]


class SlowNetwork:
    """A VQ-VAE's encoder and decoder, from its weights by name.

    They are named by their places: in the encoder each halving is a convolution and a ReLU; then come a convolution,
    the residual blocks, a ReLU and a convolution. In the decoder a convolution and the residual blocks come first, then
    a ReLU and a transposed convolution for each doubling.
    """

    def __init__(self, weights, factor, blocks):
        self.weights = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
        self.halvings, self.blocks = {2: 1, 4: 2, 8: 3}[factor], blocks

    def encode(self, x_CHW):
        for number in range(self.halvings):
            x_CHW = relu(self._convolved(x_CHW, f"encoder.{2 * number}", 2, 1))
        place = 2 * self.halvings
        x_CHW = self._convolved(x_CHW, f"encoder.{place}", 1, 1)
        for block in range(self.blocks):
            x_CHW = self._block(x_CHW, f"encoder.{place + 1 + block}")
        return self._convolved(relu(x_CHW), f"encoder.{place + self.blocks + 2}", 1, 0)

    def decode(self, codes_Chw):
        x_CHW = self._convolved(codes_Chw, "decoder.0", 1, 1)
        for block in range(self.blocks):
            x_CHW = self._block(x_CHW, f"decoder.{1 + block}")
        for number in range(self.halvings):
            name = f"decoder.{self.blocks + 2 + 2 * number}"
            x_CHW = spread(relu(x_CHW), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 2, 1)
        return x_CHW

    def _block(self, x_CHW, name):
        inner = relu(self._convolved(relu(x_CHW), f"{name}.widen", 1, 1))
        return x_CHW + self._convolved(inner, f"{name}.narrow", 1, 0)

    def _convolved(self, x_CHW, name, stride, padding):
        return convolve(x_CHW, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)


def relu(x):
    return np.maximum(x, 0)
