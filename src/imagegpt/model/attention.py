"""Self- and cross-attention, through any of transformers' attention functions.

Shape suffixes: B batch, T tokens of this call, S tokens attended to, D width, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from imagegpt.config import ImageGPTConfig
from imagegpt.model.dropout import dropped_attention
from imagegpt.model.layers import ResidualProjection, without_autocast


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
    head_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for its probabilities; scores and softmax are in float32, under autocast too.

    Args:
        module: the attention that calls; its training flag rules dropout.
        q_BNTH, k_BNSH, v_BNSH: queries, keys, values.
        mask: broadcastable to (B, N, T, S): bool, True where a key is seen, or numbers that are added to the scores.
            `None` means causal where T is above 1. A query that sees no key gets zeros, as in sdpa.
        dropout: on the probabilities, while training.
        scaling: factor of the scores; default one over the square root of H.
        head_mask: factor of the probabilities, broadcastable to (B, N, T, S).

    Returns:
        The output (B, T, N, H), and the probabilities (B, N, T, S) in the values' dtype.
    """
    factor = q_BNTH.shape[-1] ** -0.5 if scaling is None else scaling
    with without_autocast(q_BNTH):
        wide = torch.promote_types(q_BNTH.dtype, torch.float32)
        scores_BNTS = (q_BNTH.to(wide) * factor) @ k_BNSH.to(wide).transpose(-1, -2)
    if mask is None and module.is_causal and scores_BNTS.shape[-2] > 1:
        mask = torch.ones_like(scores_BNTS[0, 0], dtype=torch.bool).tril()
    if mask is None:
        probs_BNTS = scores_BNTS.softmax(-1)
    else:
        if mask.dtype != torch.bool:
            scores_BNTS = scores_BNTS + mask
            # In half precision the lowest number need not outweigh a score.
            mask = mask > torch.finfo(mask.dtype).min
        probs_BNTS = scores_BNTS.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
    probs_BNTS = nn.functional.dropout(probs_BNTS.to(v_BNSH.dtype), dropout, module.training)
    if head_mask is not None:
        probs_BNTS = probs_BNTS * head_mask.to(probs_BNTS.dtype)
    return (probs_BNTS @ v_BNSH).transpose(1, 2), probs_BNTS


class ImageGPTAttention(nn.Module):
    """Multi-head attention: causal over the sequence itself, or from it to the states of an encoder.

    There is no causal buffer: causality is the mask's, or, where the mask is `None` and several ids come at once,
    the attention function's own.

    Args:
        config: the model's configuration; `config._attn_implementation` names the attention function.
        layer_idx: number of the block, from 0: the key of its cache.
        is_cross_attention: attend to an encoder's states.
    """

    def __init__(self, config: ImageGPTConfig, layer_idx: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        spec = config.spec
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.num_heads = spec.n_head
        self.head_dim = spec.head_width
        self.scaling = spec.attention_scale(layer_idx)
        self.c_attn = Conv1D((2 if is_cross_attention else 3) * spec.n_embd, spec.n_embd)
        if is_cross_attention:
            self.q_attn = Conv1D(spec.n_embd, spec.n_embd)
        self.c_proj = ResidualProjection(spec.n_embd, spec.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.register_load_state_dict_pre_hook(_drop_old_masks)

    @property
    def is_causal(self) -> bool:
        """Whether ids see only those before them; `config.is_causal = False` makes a bidirectional (BERT) model."""
        return not self.is_cross_attention and getattr(self.config, "is_causal", True)

    def forward(
        self,
        x_BTD: torch.Tensor,
        past: KeyValueCache | None = None,
        mask: torch.Tensor | None = None,
        encoder_BSD: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            x_BTD: normalised states of the T new ids.
            past: keys and values of the ids before, to which the new ones are added; in cross-attention the
                encoder's, computed once.
            mask: as the attention function wants it; `None` means causal from the first key on.
            encoder_BSD: the states that cross-attention attends to.
            head_mask: factor of the probabilities; asks for eager attention.
            output_attentions: return probabilities; asks for eager attention.
            kwargs: for the attention function.

        Returns:
            The sublayer's output (B, T, D), and the probabilities (B, N, T, S) where the function gives them.
        """
        if self.is_cross_attention:
            q_BNTH = self._heads(self.q_attn(x_BTD))
            k_BNSH, v_BNSH = self._encoder_states(encoder_BSD, past)
        else:
            q_BNTH, k_BNSH, v_BNSH = (self._heads(part) for part in self.c_attn(x_BTD).chunk(3, dim=-1))
            if isinstance(past, EncoderDecoderCache):
                past = past.self_attention_cache
            if past is not None:
                k_BNSH, v_BNSH = past.update(k_BNSH, v_BNSH, self.layer_idx)
        eager = output_attentions or head_mask is not None
        name = "eager" if eager else self.config._attn_implementation or "eager"
        if name == "flex_attention" and mask is None and self.is_causal:
            name = "sdpa"  # flex attention without a mask is not causal
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        if head_mask is not None:
            kwargs["head_mask"] = head_mask
        dropout = self.attn_dropout.p if self.training else 0.0
        if dropout and name == "sdpa":
            fused = x_BTD.is_cuda or torch.compiler.is_compiling() or (mask is not None and mask.dtype != torch.bool)
            attend = attend if fused else dropped_attention
        out_BTNH, probs = attend(self, q_BNTH, k_BNSH, v_BNSH, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.resid_dropout(self.c_proj(out_BTNH.flatten(-2))), probs

    def _heads(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _encoder_states(self, encoder_BSD: Any, past: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's states; with a cache they are computed at the first call alone."""
        if past is not None and past.is_updated.get(self.layer_idx):
            layer = past.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        k_BNSH, v_BNSH = (self._heads(part) for part in self.c_attn(encoder_BSD.contiguous()).chunk(2, dim=-1))
        if past is not None:
            k_BNSH, v_BNSH = past.cross_attention_cache.update(k_BNSH, v_BNSH, self.layer_idx)
            past.is_updated[self.layer_idx] = True
        return k_BNSH, v_BNSH

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Cut heads out of the weights for good.

        Args:
            heads: counted among those that are left, and not all of them: the model's own `prune_heads` and its
                configuration check that.
        """
        gone = set(heads)
        if not gone:
            return  # the parameters stay the same objects
        kept = [head for head in range(self.num_heads) if head not in gone]
        width = self.num_heads * self.head_dim
        columns = torch.arange(width).view(self.num_heads, self.head_dim)[kept].flatten()
        self.c_attn = _keep(self.c_attn, torch.cat([columns + part * width for part in range(3)]), dim=1)
        self.c_proj = _keep(self.c_proj, columns, dim=0)
        self.num_heads = len(kept)


def _drop_old_masks(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Files of old releases carry their causal masks; a mask is no weight."""
    for name in ("bias", "masked_bias"):
        state_dict.pop(prefix + name, None)


def _keep(layer: Conv1D, index: torch.Tensor, dim: int) -> Any:
    """The same layer with some of its inputs (`dim` 0) or outputs (1) alone."""
    index = index.to(layer.weight.device)
    weight = layer.weight.detach().index_select(dim, index)
    bias = layer.bias.detach().index_select(0, index) if dim == 1 else layer.bias.detach()
    small = type(layer)(weight.shape[1], weight.shape[0])
    small.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    small.bias = nn.Parameter(bias.clone(), requires_grad=layer.bias.requires_grad)
    return small.train(layer.training)
