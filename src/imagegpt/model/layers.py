"""The small parts of a block: norm, activation and MLP.

Norm and activation keep their input for the backward pass and compute the rest again: written as plain operations,
autograd would keep six widths of intermediate results more per id and layer, a quarter of all that a block keeps.

Shape suffixes: B batch, T tokens, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from imagegpt.config import ImageGPTConfig

SLOPE = 1.702  # of quick GELU
ROWS = 512  # ids whose inner activations stay in a CPU's cache: an eighth of a forward's time at the small size


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
        norm = _RMSNorm.apply if torch.is_grad_enabled() else _rms_norm
        return norm(x_BTD, self.weight, self.eps)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """Width and eps, for printing the model."""
        return f"{self.weight.numel()}, eps={self.eps}"


def without_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Computes in the tensors' own dtypes; tensors without storage have no autocast to switch off."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _factor(wide_BTD: torch.Tensor, eps: float) -> torch.Tensor:
    """One over the root of the mean square, (B, T, 1)."""
    return torch.rsqrt(wide_BTD.square().mean(-1, keepdim=True) + eps)


def _rms_norm(x_BTD: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x_BTD)
    return (wide * _factor(wide, eps)).mul_(weight).to(x_BTD.dtype)


class _RMSNorm(torch.autograd.Function):
    """The norm, of which only the input is kept."""

    @staticmethod
    def forward(x_BTD: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return _rms_norm(x_BTD, weight, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x_BTD, weight, ctx.eps = inputs
        ctx.save_for_backward(x_BTD, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x_BTD, weight = ctx.saved_tensors
        grad, wide = _wide(grads[0]), _wide(x_BTD)
        factor = _factor(wide, ctx.eps)
        normed = wide * factor
        scaled = grad * weight
        grad_x = factor * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        return grad_x.to(x_BTD.dtype), grad_weight.to(weight.dtype), None


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(1.702 x), the activation of OpenAI's models; any shape and float dtype."""
    if torch.is_grad_enabled():
        return _QuickGELU.apply(x)  # pyright: ignore[reportReturnType]
    return _QuickGELU.forward(x)


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x), of which only x is kept."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return (x * SLOPE).sigmoid_().mul_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        # The function is silu(1.702 x) / 1.702, so its slope is that of silu at 1.702 x.
        (x,) = ctx.saved_tensors
        steep = x * SLOPE
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grads[0], steep)
        part = steep.sigmoid()  # that operation can't be differentiated again
        return grads[0] * part * (1 + steep * (1 - part))


class ResidualProjection(Conv1D):
    """The linear layer that ends a sublayer: new ones start smaller, so the sum over all layers stays in bounds."""


class ImageGPTMLP(nn.Module):
    """D -> inner -> D with the configured activation: quick GELU, x sigmoid(1.702 x), in every published model."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        inner = config.spec.inner_width
        self.c_fc = Conv1D(inner, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, inner)
        self.act = quick_gelu if config.activation_function == "quick_gelu" else ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Apply the two layers; shape stays."""
        parts = [x_BTD]
        if x_BTD.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            parts = x_BTD.flatten(0, -2).split(ROWS)
        done = [self.dropout(self.c_proj(self.act(self.c_fc(part)))) for part in parts]
        return done[0].view_as(x_BTD) if len(done) == 1 else torch.cat(done).view_as(x_BTD)
