"""What the forward calls accept, brought into one form; every refusal is a sentence that says what is wrong.

Shape suffixes: B batch, T tokens of this call, S tokens attended to, D width, N heads, L layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

# Read by flash attention, and by the attention functions of transformers' continuous batching (`generate_batch`).
ATTENTION_KEYWORDS = {
    *FlashAttentionKwargs.__annotations__,
    *("block_table", "cache", "is_causal", "logits_indices", "logits_processor_args"),
    *("max_seqlen_k", "max_seqlen_q", "read_index", "write_index"),
}


def without_old_name(input_ids: torch.Tensor | None, pixel_values: torch.Tensor | None) -> torch.Tensor | None:
    """`input_ids`, under that name or its first one, `pixel_values`."""
    if pixel_values is None:
        return input_ids
    if input_ids is not None:
        raise ValueError("pixel_values is the old name of input_ids: give one of them.")
    warnings.warn("pixel_values is deprecated; use input_ids instead.", FutureWarning, stacklevel=3)
    return pixel_values


def behind_start(ids_BT: torch.Tensor, sos: int) -> torch.Tensor:
    """What predicts pictures' ids: SOS and all ids but the last, (B, T)."""
    # Shortened last: a part that could have no ids would fix the length of exported programs.
    return torch.cat([torch.full_like(ids_BT[:, :1], sos), ids_BT], 1)[:, :-1]


def check_keywords(kwargs: dict[str, Any]) -> None:
    """Refuse keywords that nothing would read; attention functions read those of flash attention."""
    unknown = [name for name in kwargs if name not in ATTENTION_KEYWORDS]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, width: int) -> None:
    """Refuse none, both, wrong shapes and empty batches; `width` is that of embeddings."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
    given: Any = input_ids if input_ids is not None else inputs_embeds
    name, shape = ("input_ids", "(batch, length)")
    if input_ids is None:
        name, shape = ("inputs_embeds", "(batch, length, width)")
    if given.ndim != (2 if input_ids is not None else 3):
        raise ValueError(f"{name} must have the shape {shape}, not {tuple(given.shape)}.")
    if 0 in given.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(given.shape)}.")
    if inputs_embeds is not None and inputs_embeds.shape[2] != width:
        raise ValueError(f"inputs_embeds must have the model's width, {width}, not {inputs_embeds.shape[2]}.")
    if input_ids is not None and input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be whole numbers, int64 or int32, not {input_ids.dtype}.")


def one_each(values: torch.Tensor, given: torch.Tensor, name: str) -> torch.Tensor:
    """Numbers that go with inputs, as (B or 1, T).

    Args:
        values: (B, T), (1, T) or (T,).
        given: (B, T) ids, or (B, T, D) embeddings.
        name: what the numbers are called.

    Raises:
        ValueError: another shape.
    """
    batch, length = given.shape[:2]
    if not torch.compiler.is_compiling() and tuple(values.shape) not in ((batch, length), (1, length), (length,)):
        raise ValueError(f"{name} must have the shape ({batch}, {length}), not {tuple(values.shape)}.")
    return values.view(-1, length)


def embed(table: nn.Module, ids: torch.Tensor, size: int, what: str, training: bool) -> torch.Tensor:
    """Look ids up, and say which range they must be in.

    A CPU checks each id as it looks it up. Elsewhere a bad id ends the process or reads other memory, so there the
    check comes first, except where it would hold up training, compiling or single steps.
    """
    if torch.compiler.is_compiling():
        return table(ids)
    if ids.device.type not in ("cpu", "meta") and ids.shape[-1] > 1 and not training and _outside(ids, size):
        raise IndexError(_range_message(ids, size, what))
    try:
        return table(ids)
    except IndexError:
        raise IndexError(_range_message(ids, size, what)) from None


def _outside(ids: torch.Tensor, size: int) -> bool:
    return bool(((ids < 0) | (ids >= size)).any())


def _range_message(ids: torch.Tensor, size: int, what: str) -> str:
    return f"{what} must be 0..{size - 1}; these are {int(ids.min())}..{int(ids.max())}."


def positions_from_mask(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Positions of the last `length` ids of rows that may start with padding.

    A row's positions count from its first id that is no padding. Zeros later in the mask hide ids, but the pixels
    after them stay where they are.

    Args:
        mask: (B, S), 0 for padding.
        length: T.

    Returns:
        (B, T) int64; 0 at the padding in front.
    """
    padding_B1 = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    last_T = torch.arange(mask.shape[-1] - length, mask.shape[-1], device=mask.device)
    return (last_T - padding_B1).clamp(min=0)


def head_masks(head_mask: torch.Tensor | None, config: PreTrainedConfig) -> Sequence[torch.Tensor | None]:
    """One factor per layer, broadcastable to (B, N, T, S), from a mask of (N,), (L, N) or (L, B, N, T, S)."""
    layers, heads = config.n_layer, config.n_head
    if head_mask is None:
        return [None] * layers
    shape = tuple(head_mask.shape)
    if head_mask.ndim == 1:
        head_mask = head_mask.expand(layers, -1)
    if head_mask.ndim == 2:
        head_mask = head_mask[:, None, :, None, None]
    if head_mask.ndim != 5 or len(head_mask) != layers or head_mask.shape[2] != heads:
        raise ValueError(f"head_mask must have the shape ({heads},) or ({layers}, {heads}), not {shape}.")
    pruned = config.pruned_heads or {}
    return [
        mask[:, [head for head in range(heads) if head not in pruned[layer]]] if layer in pruned else mask
        for layer, mask in enumerate(head_mask)
    ]


def check_mask(mask: torch.Tensor, x_BTD: torch.Tensor, past: Any) -> None:
    """Refuse masks that are not (B, past + T), or longer for a cache of fixed size, and not ready (B, N, T, S) ones."""
    if torch.compiler.is_compiling():
        return
    past_length = 0 if past is None else past.get_seq_length()
    needed = x_BTD.shape[1] + (past_length if isinstance(past_length, int) else 0)
    longer = past is not None and past.is_compileable and mask.shape[1] > needed
    fits = mask.ndim == 2 and mask.shape[0] == x_BTD.shape[0] and (mask.shape[1] == needed or longer)
    if not fits and mask.ndim != 4:
        raise ValueError(f"attention_mask must have the shape ({x_BTD.shape[0]}, {needed}), not {tuple(mask.shape)}.")


def as_cache(past: Any, config: PreTrainedConfig, needed: bool) -> Any:
    """The cache to use: the one given, one made of old-style tuples, or a new one if it is `needed`.

    Args:
        past: `None`, a transformers cache, or a tuple with (key, value) per layer, or (key, value, key, value of the
            encoder) with cross-attention.
        config: the model's.
        needed: make one where none was given.
    """
    if past is None and not needed:
        return None
    if isinstance(past, (tuple, list)):
        past = EncoderDecoderCache(past) if past and len(past[0]) >= 4 else DynamicCache(past or None)
    if past is None:
        past = DynamicCache(config=config)
    if not isinstance(past, Cache):
        raise TypeError(f"past_key_values must be a cache or tuples of keys and values, not {type(past).__name__}.")
    if getattr(config, "add_cross_attention", False) and not isinstance(past, EncoderDecoderCache):
        past = EncoderDecoderCache(past, DynamicCache(config=config))
    return past


def as_tuples(cache: Any) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The old form of a cache: plain tensors (key, value) per layer, with cross-attention (key, value, key, value)."""
    if isinstance(cache, EncoderDecoderCache):
        both = zip(as_tuples(cache.self_attention_cache), as_tuples(cache.cross_attention_cache), strict=False)
        return tuple(own + encoder for own, encoder in both)
    return tuple((layer.keys, layer.values) for layer in cache.layers)
