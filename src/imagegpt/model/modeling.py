"""The network: blocks, and the trunk that turns ids into hidden states.

Shape suffixes: B batch, T tokens of this call, S tokens attended to, D width, N heads, L layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from imagegpt.checkpoint import OLD_MASKS
from imagegpt.config import ImageGPTConfig
from imagegpt.model.attention import ImageGPTAttention, KeyValueCache
from imagegpt.model.inputs import (
    as_cache,
    as_tuples,
    check_inputs,
    check_keywords,
    check_mask,
    embed,
    head_masks,
    one_each,
    positions_from_mask,
    without_old_name,
)
from imagegpt.model.layers import ImageGPTMLP, ImageGPTRMSNorm, ResidualProjection
from imagegpt.model.quantization import is_torchao, quantize, use_linear_layers

logger = logging.get_logger(__name__)
if torch.distributed.is_available():
    from imagegpt.model.parallel import register_styles

    register_styles()


class ImageGPTBlock(GradientCheckpointingLayer):
    """One pre-norm block: x + attention(norm(x)), x + cross-attention(norm(x)) if there is any, x + MLP(norm(x))."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = ImageGPTAttention(config, layer_idx)
        self.ln_2 = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = ImageGPTAttention(config, layer_idx, is_cross_attention=True)
            self.ln_cross_attn = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = ImageGPTMLP(config)

    def forward(
        self,
        x_BTD: torch.Tensor,
        past: KeyValueCache | None = None,
        mask: torch.Tensor | None = None,
        encoder_BSD: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the block's output (B, T, D), and the two attentions' probabilities, if they give them."""
        attended, probs = self.attn(self.ln_1(x_BTD), past, mask, **kwargs)
        x_BTD, cross_probs = x_BTD + attended, None
        if encoder_BSD is not None:
            normed = self.ln_cross_attn(x_BTD)
            attended, cross_probs = self.crossattention(normed, past, encoder_mask, encoder_BSD, **kwargs)
            x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.ln_2(x_BTD)), probs, cross_probs


class ImageGPTPreTrainedModel(PreTrainedModel):
    """What all ImageGPT models share: loading, saving, initialisation, resizing."""

    config_class = ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ImageGPTBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [OLD_MASKS]

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """transformers' own; with a `TorchAoConfig` the weights are quantised, by `imagegpt.model.quantization`."""
        if not is_torchao(quantization_config):
            return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)
        loaded: Any = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not hasattr(model, "hf_quantizer"):  # else the folder's weights are quantised already
            quantize(model, quantization_config)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """HF's rule: normal(0, initializer_range), the residual projections divided by sqrt(2 L) (GPT-2)."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Conv1D):
            residual = isinstance(module, ResidualProjection)
            init.normal_(module.weight, mean=0.0, std=std / math.sqrt(2 * self.config.n_layer) if residual else std)
            init.zeros_(module.bias)

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Cut attention heads out for good; `config.pruned_heads` records them, so that the model can be saved.

        Args:
            heads_to_prune: layer -> heads, both counted from 0 in the model as it was trained; heads that are gone
                already may be named again.

        Raises:
            ValueError: a layer or a head that is not there, a layer that would have none left, or a model that is
                divided among processes or quantised.
        """
        if (self._tp_size or 1) > 1 or getattr(self, "is_quantized", False):
            raise ValueError("Prune heads before a model is divided among processes or quantised.")
        trunk: Any = self.base_model
        pruned = dict(self.config.pruned_heads or {})
        if not set(heads_to_prune) <= set(range(self.config.n_layer)):
            raise ValueError(f"layers are 0..{self.config.n_layer - 1}; can't prune heads of {sorted(heads_to_prune)}.")
        every = set(range(self.config.n_head))
        for layer, heads in heads_to_prune.items():
            pruned[layer] = sorted({*pruned.get(layer, []), *heads})
            if not set(pruned[layer]) <= every:
                unknown = sorted(set(pruned[layer]) - every)
                raise ValueError(f"heads are 0..{self.config.n_head - 1}; layer {layer} has no {unknown}.")
            if len(pruned[layer]) == len(every):
                raise ValueError(f"layer {layer} would have no head left.")
        for layer in heads_to_prune:  # all of them are right: only now is anything cut
            gone = (self.config.pruned_heads or {}).get(layer, [])
            left = sorted(every - set(gone))
            trunk.h[layer].attn.prune_heads(left.index(head) for head in set(pruned[layer]) - set(gone))
        self.config.pruned_heads = {layer: heads for layer, heads in pruned.items() if heads} or None

    def _as_asked(self, output: Any, return_dict: bool | None) -> Any:
        """A call's output, or its tuple where the caller or the configuration wants that."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Called by `resize_token_embeddings`: add or drop colours; SOS stays last, and without a row in the head."""
        embedding: Any = self.get_input_embeddings()
        old_size = embedding.weight.shape[0]
        if pad_to_multiple_of is not None and not isinstance(pad_to_multiple_of, int):
            raise ValueError(
                f"Asking to pad the embedding matrix to a multiple of `{pad_to_multiple_of}`, which is not and "
                "integer. Please make sure to pass an integer"
            )
        size = old_size if new_num_tokens is None else new_num_tokens
        if not isinstance(size, int):
            raise ValueError(f"The number of ids must be a whole number, not {size!r}.")
        if pad_to_multiple_of is not None:
            size = math.ceil(size / pad_to_multiple_of) * pad_to_multiple_of
        if size == old_size:
            return embedding
        if size < 2:
            raise ValueError(f"{size} ids are too few: at least one colour and the start token.")
        before = embedding.weight.data
        embedding.weight.data = before[:-1]
        try:
            self._get_resized_embeddings(embedding, size - 1, mean_resizing=mean_resizing)
            embedding.weight.data = torch.cat([embedding.weight.data, before[-1:]])
        except BaseException:  # such as too little memory: the model is as it was
            embedding.weight.data, embedding.num_embeddings = before, old_size
            raise
        embedding.num_embeddings = size
        head: Any = self.get_output_embeddings()
        if head is not None and head.weight is not embedding.weight:
            resized = self._get_resized_lm_head(head, size - 1, mean_resizing=mean_resizing)
            self.set_output_embeddings(resized.requires_grad_(head.weight.requires_grad))
        logger.warning(
            f"Resized from {old_size - 1} to {size - 1} colours. The start token moved from id {old_size - 1} to "
            f"{size - 1}, the last, with its weights; the head has {size - 1} outputs. The palette must follow."
        )
        return embedding


@dataclass
class ImageGPTModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """The trunk's documented output, and `pooler_output` (B, D): the mean over the ids that are no padding.

    transformers' feature-extraction pipeline asks for it. It is no entry of the tuple form, whose order is documented.
    """

    pooler_output: torch.Tensor | None = None

    def to_tuple(self) -> tuple:
        """Everything that is not `None`, in the documented order, without `pooler_output`."""
        return tuple(self[key] for key in self.keys() if key != "pooler_output")


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The trunk: ids to hidden states.

    Args:
        config: the configuration; new weights follow its `initializer_range`.

    Example:
        >>> import torch
        >>> from imagegpt import ImageGPTConfig
        >>> model = ImageGPTModel(ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16))
        >>> model(torch.zeros(1, 16, dtype=torch.long)).last_hidden_state.shape
        torch.Size([1, 16, 32])
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        blocks = [ImageGPTBlock(config, i) for i in range(config.n_layer)]
        for layer, heads in (config.pruned_heads or {}).items():
            blocks[layer].attn.prune_heads(heads)
        self.h = nn.ModuleList(blocks)
        self.ln_f = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        if is_torchao(getattr(config, "quantization_config", None)):
            use_linear_layers(self)  # as the weights in the file are
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the ids, SOS last."""
        return self.wte

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embedding of the ids."""
        self.wte = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Cache | tuple | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ImageGPTModelOutput | tuple:
        """Run the network.

        Args:
            input_ids: (B, T) int64, 0..vocab_size-1; a picture starts with SOS, `config.vocab_size - 1`.
            past_key_values: the ids before these: any transformers cache, or tuples of (key, value) per layer.
            attention_mask: (B, past + T), 1 where an id counts, 0 for padding; or a ready (B, 1, T, S) mask.
            token_type_ids: (B, T) ids whose embeddings are added.
            position_ids: (B, T); default: counted on from the past, and from the first id that is no padding.
            head_mask: (N,) or (L, N), factors of the attention probabilities. Such a call uses eager attention.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            encoder_hidden_states: (B, S, D) for cross-attention; needs `config.add_cross_attention`.
            encoder_attention_mask: (B, S), 0 for the encoder's padding.
            use_cache: return a cache; default `config.use_cache`, and off while training.
            output_attentions: also the probabilities of each layer, (B, N, T, S). Such a call uses eager attention.
            output_hidden_states: also the input of each block and the output of the final norm: L + 1 entries.
            return_dict: False for a tuple.
            cache_position: (T,) positions, where a transformers release passes them; `position_ids` go first.
            pixel_values: deprecated name of `input_ids`.
            kwargs: `cu_seq_lens_q` and what else transformers' flash attention reads; anything else is a TypeError.

        Returns:
            `last_hidden_state` (B, T, D) after the final norm, `past_key_values`, `hidden_states`, `attentions`,
            `cross_attentions`; those not asked for are `None`, or left out of a tuple. A past given as tuples comes
            back as tuples. `pooler_output` (B, D), not in a tuple: the mean over the ids that are no padding.

        Raises:
            ValueError: none or both of `input_ids` and `inputs_embeds`, wrong shapes, more ids than positions, an
                encoder's states for a model without cross-attention.
            IndexError: an id or a position that is not there.
            TypeError: an unknown keyword.
        """
        input_ids = without_old_name(input_ids, pixel_values)
        check_keywords(kwargs)
        check_inputs(input_ids, inputs_embeds, self.config.n_embd)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        plain_past = isinstance(past_key_values, (tuple, list))
        plain_past |= past_key_values is None and torch.compiler.is_exporting()
        past = self._past(past_key_values, use_cache)
        given: Any = input_ids if input_ids is not None else inputs_embeds
        positions = self._positions(given, past, attention_mask, position_ids, cache_position)
        x_BTD = inputs_embeds if inputs_embeds is not None else self._embed_ids(input_ids, "input_ids")
        maps = output_attentions or head_mask is not None
        mask, encoder_mask = self._masks(
            x_BTD, past, attention_mask, encoder_hidden_states, encoder_attention_mask, eager=maps
        )
        places = embed(self.wpe, positions, self.config.n_positions, "positions", self.training)
        x_BTD = x_BTD + places.to(x_BTD.device)
        if token_type_ids is not None:
            types = one_each(token_type_ids, given, "token_type_ids")
            x_BTD = x_BTD + self._embed_ids(types, "token_type_ids")
        x_BTD = self.drop(x_BTD)

        hidden_states, attentions, cross_attentions = [], [], []
        for block, factor in zip(self.h[: self.config.n_layer], head_masks(head_mask, self.config), strict=True):
            hidden_states.append(x_BTD) if output_hidden_states else None
            x_BTD, probs, cross_probs = block(
                x_BTD,
                past,
                mask,
                encoder_hidden_states,
                encoder_mask,
                head_mask=factor,
                output_attentions=output_attentions,
                **kwargs,
            )
            attentions.append(probs)
            cross_attentions.append(cross_probs)
        x_BTD = self.ln_f(x_BTD)
        hidden_states.append(x_BTD)

        crossed = output_attentions and encoder_hidden_states is not None
        keep_past = past is not None and self._use_cache(use_cache)
        output = ImageGPTModelOutput(
            last_hidden_state=x_BTD,
            pooler_output=_pool(x_BTD, attention_mask),
            past_key_values=(as_tuples(past) if plain_past else past) if keep_past else None,  # pyright: ignore
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if crossed else None,
        )
        return self._as_asked(output, return_dict)

    def _embed_ids(self, ids: torch.Tensor | None, what: str) -> torch.Tensor:
        assert ids is not None
        return embed(self.wte, ids, self.config.vocab_size, what, self.training)

    def _use_cache(self, use_cache: bool | None) -> bool:
        """Whether this call returns a cache; nothing reads one while training."""
        if self.gradient_checkpointing and self.training:
            return False
        return self.config.use_cache and not self.training if use_cache is None else use_cache

    def _past(self, past: Any, use_cache: bool | None) -> Any:
        if past is not None and self.gradient_checkpointing and self.training:
            raise ValueError("past_key_values can't be used with gradient checkpointing: it would be filled twice.")
        return as_cache(past, self.config, needed=self._use_cache(use_cache))

    def _positions(
        self,
        given: torch.Tensor,
        past: Any,
        mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache_position: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B or 1, T) positions, from the first of: the caller's, the padding's, the past's length."""
        if position_ids is not None:
            return one_each(position_ids, given, "position_ids")
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            return positions_from_mask(mask.to(given.device), given.shape[1])
        if cache_position is not None:
            return cache_position[None]
        past_length = 0 if past is None else past.get_seq_length()
        end = past_length + given.shape[1]
        if isinstance(end, int) and not torch.compiler.is_compiling() and end > self.config.n_positions:
            raise ValueError(f"{end} ids do not fit into the model's {self.config.n_positions} positions.")
        return torch.arange(given.shape[1], device=given.device)[None] + past_length

    def _masks(
        self,
        x_BTD: torch.Tensor,
        past: Any,
        mask: torch.Tensor | None,
        encoder_BSD: torch.Tensor | None,
        encoder_mask: torch.Tensor | None,
        eager: bool,
    ) -> tuple[Any, Any]:
        """The masks of self- and cross-attention, as this call's attention function wants them."""
        config = self.config
        if eager or config._attn_implementation == "eager":
            # Our eager attention reads the masks of sdpa: bool, and None where plainly causal.
            config = copy.copy(config)
            config._attn_implementation = "sdpa"
        if isinstance(mask, torch.Tensor):
            check_mask(mask, x_BTD, past)
            if mask.dtype == torch.bool and mask.ndim == 4 and config._attn_implementation == "flex_attention":
                # transformers adds a ready mask to flex attention's scores.
                mask = torch.zeros_like(mask, dtype=x_BTD.dtype).masked_fill(~mask, torch.finfo(x_BTD.dtype).min)
        if past is not None and config._attn_implementation == "flex_attention":
            past = _with_length_of_now(past)
        own = create_causal_mask(config=config, inputs_embeds=x_BTD, attention_mask=mask, past_key_values=past)
        if encoder_BSD is None:
            return own, None
        if not self.config.add_cross_attention:
            raise ValueError("encoder_hidden_states need cross-attention layers: config.add_cross_attention=True.")
        if encoder_BSD.ndim != 3 or encoder_BSD.shape[-1] != self.config.n_embd:
            raise ValueError(
                f"encoder_hidden_states must have the shape (batch, length, {self.config.n_embd}), "
                f"not {tuple(encoder_BSD.shape)}."
            )
        if encoder_mask is not None and encoder_mask.ndim == 2 and encoder_mask.shape != encoder_BSD.shape[:2]:
            shape = tuple(encoder_BSD.shape[:2])
            raise ValueError(f"encoder_attention_mask must have the shape {shape}, not {tuple(encoder_mask.shape)}.")
        cross = create_bidirectional_mask(
            config=config, inputs_embeds=x_BTD, attention_mask=encoder_mask, encoder_hidden_states=encoder_BSD
        )
        return own, cross


def _with_length_of_now(past: Any) -> Any:
    """A flex mask is read when a static cache has counted the new ids in place already: keep the length before."""
    past, length = copy.copy(past), past.get_seq_length() + 0
    past.get_query_offset = lambda layer_idx=0: length
    return past


def _pool(x_BTD: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
    """The mean over the ids that are no padding, (B, D)."""
    if not isinstance(mask_BS, torch.Tensor) or mask_BS.ndim != 2:
        return x_BTD.mean(1)
    weights_BT1 = mask_BS[:, -x_BTD.shape[1] :, None].to(x_BTD.device) != 0
    total_BD = (x_BTD * weights_BT1).sum(1, dtype=torch.float32)
    return (total_BD / weights_BT1.sum(1).clamp(min=1)).to(x_BTD.dtype)
