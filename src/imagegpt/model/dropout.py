"""Attention with dropout where torch has no fused kernel for it: anywhere but on CUDA.

torch would write out the T x S probabilities, and several relatives of theirs, and keep them for the backward pass:
134 MiB each for 4 pictures and 8 heads. Here rows of queries go through in blocks that fit into the cache, causal
blocks end at the diagonal, and the backward pass computes the probabilities again: FlashAttention's plan (Dao et al.
2022, "FlashAttention", section 3.1 and appendix B.4) with dropout, in plain tensor operations.

Shape suffixes: B batch, T queries, S keys, N heads, H head width, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from imagegpt.model.layers import without_autocast

BLOCK_NUMBERS = 1 << 21  # scores of a block: 8 MiB
LEVELS = 1 << 16  # a random 16-bit number decides on each probability


def dropped_attention(
    module: nn.Module,
    q_BNTH: torch.Tensor,
    k_BNSH: torch.Tensor,
    v_BNSH: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' form; scores and softmax are in float32.

    Args:
        module: the attention that calls.
        q_BNTH, k_BNSH, v_BNSH: queries, keys, values.
        mask: bool, broadcastable to (B, N, T, S), True where a key is seen; `None` means causal where the module is.
        dropout: part of the probabilities that is set to 0, to the nearest 1/65536; the rest is scaled up.
        scaling: factor of the scores.

    Returns:
        The output (B, T, N, H) and no probabilities. Which of them are dropped follows torch's global seed.
    """
    if q_BNTH.device.type == "meta":  # there are no random numbers without storage
        return torch.empty_like(q_BNTH).transpose(1, 2), None
    causal = bool(module.is_causal) and mask is None and q_BNTH.shape[2] > 1
    seed = int(torch.randint(2**63 - 1, ()))
    with without_autocast(q_BNTH):
        out_BNTH: Any = _DroppedAttention.apply(q_BNTH, k_BNSH, v_BNSH, mask, dropout, scaling, causal, seed)
    return out_BNTH.transpose(1, 2), None


class _DroppedAttention(torch.autograd.Function):
    """Keeps its inputs, its output and the seed."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, dropout: float, scaling: float, *rest: Any) -> Any:
        blocks = _Blocks(q, k, mask, dropout, scaling, *rest)
        values, out = v.float(), torch.empty_like(q)
        for rows, end, probs, kept in blocks:
            out[:, :, rows] = (probs.mul_(kept) @ values[:, :, :end]).mul_(blocks.scale)
        ctx.save_for_backward(q, k, v, mask, out)
        ctx.settings = (dropout, scaling, *rest)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, mask, out = ctx.saved_tensors
        blocks = _Blocks(q, k, mask, *ctx.settings)
        grad, values = grads[0].float(), v.float()
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
        for rows, end, probs, kept in blocks:
            grad_rows = grad[:, :, rows]
            # sum over S of probability times its gradient: the row of the output times its gradient.
            shift = (grad_rows * out[:, :, rows]).sum(-1, keepdim=True)
            grad_probs = (grad_rows @ values[:, :, :end].transpose(-1, -2)).mul_(kept).mul_(blocks.scale)
            grad_scores = grad_probs.sub_(shift).mul_(probs)
            grad_q[:, :, rows] = (grad_scores @ blocks.keys[:, :, :end]).mul_(blocks.scaling)
            grad_k[:, :, :end] += grad_scores.transpose(-1, -2) @ blocks.queries[:, :, rows]
            grad_v[:, :, :end] += probs.mul_(kept).transpose(-1, -2) @ grad_rows
        grad_v.mul_(blocks.scale)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), *[None] * 5


class _Blocks:
    """Blocks of rows, each with its probabilities before dropout and with those that are kept; the same every time."""

    def __init__(
        self,
        q_BNTH: torch.Tensor,
        k_BNSH: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        scaling: float,
        causal: bool,
        seed: int,
    ) -> None:
        self.queries, self.keys = q_BNTH.float() * scaling, k_BNSH.float()
        self.mask, self.scaling, self.causal, self.seed = mask, scaling, causal, seed
        self.dropped = round(dropout * LEVELS)
        self.scale = LEVELS / (LEVELS - self.dropped) if self.dropped < LEVELS else 0.0

    def __iter__(self) -> Iterator[tuple[slice, int, torch.Tensor, torch.Tensor]]:
        """Yield rows, the number of keys they may see, probabilities and what is kept (bool), both (B, N, R, keys)."""
        batch, heads, length, _ = self.queries.shape
        keys = self.keys.shape[2]
        size = max(1, BLOCK_NUMBERS // (batch * heads * keys))
        generator = torch.Generator(self.queries.device).manual_seed(self.seed)
        for first in range(0, length, size):
            rows = slice(first, min(first + size, length))
            end = rows.stop if self.causal else keys
            scores = self.queries[:, :, rows] @ self.keys[:, :, :end].transpose(-1, -2)
            seen = self._seen(rows, end)
            if seen is not None:
                scores.masked_fill_(~seen, float("-inf"))
            probs = scores.softmax(-1)
            if self.mask is not None:
                probs.masked_fill_(~seen, 0.0)  # rows that see nothing  # pyright: ignore[reportOptionalOperand]
            yield rows, end, probs, self._kept(probs, generator)

    def _seen(self, rows: slice, end: int) -> torch.Tensor | None:
        if self.mask is not None:
            return self.mask[:, :, rows] if self.mask.shape[2] > 1 else self.mask
        if not self.causal:
            return None
        places = torch.arange(end, device=self.keys.device)
        return places[None] <= places[rows, None]

    def _kept(self, probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        words = torch.empty((probs.numel() + 3) // 4, dtype=torch.int64, device=probs.device)
        words.random_(-(2**63), None, generator=generator)  # four 16-bit numbers at once
        levels = words.view(torch.int16)[: probs.numel()].view(probs.shape)
        return levels >= self.dropped - LEVELS // 2
