"""The small parts of a block: norm and MLP.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from imagegpt.config import ImageGPTConfig


class ImageGPTRMSNorm(nn.Module):
    """Divide by the root of the mean square, then scale: no centring and no bias, as in OpenAI's code.

    The statistics are computed in float32 whatever the input's dtype: squares of a few hundred overflow float16.

    Args:
        width: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension; dtype and shape stay."""
        x32 = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x_BTD.dtype)

    def extra_repr(self) -> str:
        """Width and eps, for printing the model."""
        return f"{self.weight.numel()}, eps={self.eps}"


class ResidualProjection(Conv1D):
    """The linear layer that ends a sublayer: new ones start smaller, so the sum over all layers stays in bounds."""


class ImageGPTMLP(nn.Module):
    """D -> inner -> D with the configured activation: quick GELU, x sigmoid(1.702 x), in every published model."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        inner = config.spec.inner_width
        self.c_fc = Conv1D(inner, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, inner)
        if config.activation_function not in ACT2FN:
            raise ValueError(f"activation_function {config.activation_function!r} is unknown to transformers.")
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Apply the two layers; shape stays."""
        return self.dropout(self.c_proj(self.act(self.c_fc(x_BTD))))
