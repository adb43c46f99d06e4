"""The start of the nano model: embeddings and first heads that already know what a grid and a colour are.

The plain start makes the network discover from scratch that ids 17 and 18 are similar greens and that position 33 is
under position 1. Here both are in the weights before the first step, and the checkpoint stays a plain ImageGPT.

* `wpe`: Fourier features of row and column. `wte`: random Fourier features of the colour (Rahimi and Recht, 2007).
  Both go through one random orthonormal basis, each into its own subspace.
* `lm_head`: a scaled copy of the colour features, so the first guess is "about the colour to the left".
* the first blocks' heads look at fixed neighbours: a rotation of Fourier features is a shift in the grid, so a query
  matrix can ask for "one row up" exactly. The key at sequence index t holds pixel t - 1 beside position t.
* residual projections start at zero.

Shape suffixes: T positions, K colours, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from imagegpt.model.heads import ImageGPTForCausalImageModeling

# Offsets (rows, columns) from an id's position to the position beside the pixel that the head shall read:
# up, two to the left, up left, up right, two up, three to the left.
NEIGHBOURS = [(-1, 1), (0, -1), (-1, 0), (-1, 2), (-2, 1), (0, -2)]
# The same of a bidirectional network, which has no start token, so that pixel t is beside position t, and sees all
# sides: up, left, right, down, up left, down right.
AROUND = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (1, 1)]
EMBEDDING_STD = 0.1


def grid_features(side: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of `pairs` frequencies for 0..side-1: (side, 2 pairs), and the frequencies (pairs,)."""
    frequencies = math.pi * (torch.arange(pairs) + 0.5) / (2 * pairs)
    angle = torch.arange(side)[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], 1) / math.sqrt(pairs), frequencies


def rotation(frequencies: torch.Tensor, shift: int) -> torch.Tensor:
    """The matrix R with features(p) @ R = features(p + shift)."""
    cos, sin = (frequencies * shift).cos().diag(), (frequencies * shift).sin().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0)


def color_features(colors_K3: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Random Fourier features at three scales, unit norm: (K, width)."""
    third = width // 6
    scales = torch.cat([torch.full((third,), s) for s in (1.0, 3.0)] + [torch.full((width // 2 - 2 * third,), 9.0)])
    frequencies = torch.randn(3, width // 2, generator=generator) * scales
    angle = colors_K3 @ frequencies
    return torch.cat([angle.cos(), angle.sin()], 1) / math.sqrt(width // 2)


@torch.no_grad()
def informed_start(
    model: ImageGPTForCausalImageModeling,
    colors_K3: torch.Tensor,
    seed: int,
    heads: bool = True,
    sharpness: float = 24.0,
) -> None:
    """Overwrite a new model's weights with the start described above.

    Args:
        model: square grid of at least 4 x 4.
        colors_K3: the palette in [-1, 1].
        seed: of the random parts.
        heads: also start the first blocks' heads on neighbours.
        sharpness: score of an exact hit of a neighbour head, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    config, trunk = model.config, model.transformer
    width, head_width = config.n_embd, config.spec.head_width
    side = config.spec.square_grid[0]
    neighbours = NEIGHBOURS if getattr(config, "is_causal", True) else AROUND
    pairs = head_width // 4
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    place, color = basis[: 4 * pairs], basis[4 * pairs :]

    axis, frequencies = grid_features(side, pairs)
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    scale = EMBEDDING_STD * math.sqrt(width / 2)
    trunk.wpe.weight.copy_(torch.cat([rows, columns], 1) @ place * scale)
    colors = color_features(colors_K3, len(color) // 2 * 2, generator)
    trunk.wte.weight[:-1] = colors @ color[: colors.shape[1]] * scale
    trunk.wte.weight[-1] = torch.randn(width, generator=generator) * EMBEDDING_STD / 2
    model.lm_head.weight.copy_(colors @ color[: colors.shape[1]])

    blocks: list[Any] = list(trunk.h)
    for index, block in enumerate(blocks):
        std = 1 / math.sqrt(width)
        block.attn.c_attn.weight.normal_(0, std, generator=generator)
        block.mlp.c_fc.weight.normal_(0, std, generator=generator)
        block.attn.c_proj.weight.zero_()
        block.mlp.c_proj.weight.zero_()
        if heads:
            first = index * config.n_head
            for head, shift in enumerate(neighbours[first : first + config.n_head]):
                _look_at(block, head, shift, place, frequencies, sharpness, width, head_width)


def _look_at(block, head, shift, place, frequencies, sharpness, width, head_width) -> None:
    # Row, column and colour features have norm 1 each, so after the norm (length sqrt(width)) each has length
    # sqrt(width / 3), and an exact hit of row and column scores gain^2 * 2 width / 3 / sqrt(head_width).
    gain = math.sqrt(sharpness * math.sqrt(head_width) / (2 * width / 3))
    shifted = torch.block_diag(rotation(frequencies, shift[0]), rotation(frequencies, shift[1]))
    span = slice(head * head_width, (head + 1) * head_width)
    qkv = block.attn.c_attn.weight
    qkv[:, span] = place.T @ shifted * gain
    qkv[:, width + span.start : width + span.stop] = place.T * gain
