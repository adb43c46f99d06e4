"""Causal self-attention, through any of transformers' attention functions.

Shape suffixes: B batch, T tokens of this call, S tokens attended to, D width, N heads, H head width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from imagegpt.config import ImageGPTConfig
from imagegpt.model.layers import ResidualProjection


class KeyValueCache(Protocol):
    """What attention needs of a cache: transformers' caches and the engine's own both have it."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int) -> tuple[Any, Any]:
        """Store the new (B, N, T, H) keys and values, and return all (B, N, S, H) of that layer."""
        ...


def eager_attention(
    module: nn.Module,
    q_BNTH: torch.Tensor,
    k_BNSH: torch.Tensor,
    v_BNSH: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for its probabilities; the scores and the softmax are in float32.

    Args:
        module: the attention that calls; its training flag rules dropout.
        q_BNTH, k_BNSH, v_BNSH: queries, keys, values.
        mask: added to the scores, broadcastable to (B, N, T, S); `None` means causal where T is above 1.
        dropout: on the probabilities, while training.
        scaling: factor of the scores; default one over the square root of H.

    Returns:
        The output (B, T, N, H), and the probabilities (B, N, T, S) in the values' dtype.
    """
    factor = q_BNTH.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BNTS = (q_BNTH.float() * factor) @ k_BNSH.float().transpose(-1, -2)
    if mask is None and module.is_causal and scores_BNTS.shape[-2] > 1:
        mask = torch.full_like(scores_BNTS[0, 0], float("-inf")).triu(1)
    if mask is not None:
        scores_BNTS = scores_BNTS + mask
    probs_BNTS = scores_BNTS.softmax(-1).to(v_BNSH.dtype)
    probs_BNTS = nn.functional.dropout(probs_BNTS, dropout, module.training)
    return (probs_BNTS @ v_BNSH).transpose(1, 2), probs_BNTS


class ImageGPTAttention(nn.Module):
    """Multi-head causal self-attention.

    There is no causal buffer: causality is the mask's, or, where the mask is `None` and several ids come at once,
    the attention function's own.

    Args:
        config: the model's configuration; `config._attn_implementation` names the attention function.
        layer_idx: number of the block, from 0: the key of its cache.
    """

    is_causal = True

    def __init__(self, config: ImageGPTConfig, layer_idx: int) -> None:
        super().__init__()
        spec = config.spec
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = spec.n_head
        self.head_dim = spec.head_width
        self.scaling = spec.head_width**-0.5 if spec.scale_attn_weights else 1.0
        if spec.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.c_attn = Conv1D(3 * spec.n_embd, spec.n_embd)
        self.c_proj = ResidualProjection(spec.n_embd, spec.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        x_BTD: torch.Tensor,
        past: KeyValueCache | None = None,
        mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            x_BTD: normalised states of the T new ids.
            past: keys and values of the ids before, to which the new ones are added.
            mask: as the attention function wants it; `None` means causal from the first key on.

        Returns:
            The sublayer's output (B, T, D), and the probabilities (B, N, T, S) where the function gives them.
        """
        q_BNTH, k_BNTH, v_BNTH = (
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for part in self.c_attn(x_BTD).chunk(3, dim=-1)
        )
        if past is not None:
            k_BNTH, v_BNTH = past.update(k_BNTH, v_BNTH, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", eager_attention)
        dropout = self.attn_dropout.p if self.training else 0.0
        out_BTNH, probs = attend(self, q_BNTH, k_BNTH, v_BNTH, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.resid_dropout(self.c_proj(out_BTNH.flatten(-2))), probs
