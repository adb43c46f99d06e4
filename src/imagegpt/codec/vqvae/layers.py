"""Encoder and decoder of a VQ-VAE: convolutions and residual blocks (van den Oord et al. 2017, section 4.1).

Shape suffixes: B pictures, C channels, HW a picture's pixels, hw its grid of codes.
"""

from __future__ import annotations

import torch
from torch import nn

from imagegpt.codec.vqvae.config import VQVAEConfig

KERNEL, STRIDE, PADDING = 4, 2, 1  # halves or doubles both sides


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))).

    Args:
        width: channels.
        inner: channels between the two.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(width, inner, 3, padding=1)
        self.narrow = nn.Conv2d(inner, width, 1)

    def forward(self, x_BChw: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return x_BChw + self.narrow(torch.relu(self.widen(torch.relu(x_BChw))))


def encoder(config: VQVAEConfig) -> nn.Sequential:
    """(B, 3, H, W) pixels in [-1, 1] to (B, code_width, h, w) vectors."""
    halvings = config.factor.bit_length() - 1
    # Early convolutions see many pixels: half the channels each time the sides double.
    widths = [max(1, config.width >> (halvings - number)) for number in range(1, halvings + 1)]
    layers: list[nn.Module] = []
    for before, after in zip([3, *widths[:-1]], widths, strict=True):
        layers += [nn.Conv2d(before, after, KERNEL, STRIDE, PADDING), nn.ReLU()]
    layers.append(nn.Conv2d(config.width, config.width, 3, padding=1))
    layers += [ResidualBlock(config.width, config.block_width) for _ in range(config.blocks)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(config.width, config.code_width, 1))


def decoder(config: VQVAEConfig) -> nn.Sequential:
    """(B, code_width, h, w) codes to (B, 3, H, W) pixels in [-1, 1], or a little outside."""
    halvings = config.factor.bit_length() - 1
    widths = [max(1, config.width >> number) for number in range(halvings)]
    layers: list[nn.Module] = [nn.Conv2d(config.code_width, config.width, 3, padding=1)]
    layers += [ResidualBlock(config.width, config.block_width) for _ in range(config.blocks)]
    for before, after in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, KERNEL, STRIDE, PADDING)]
    return nn.Sequential(*layers)
