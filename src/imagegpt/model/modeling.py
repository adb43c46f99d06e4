"""The network: blocks, and the trunk that turns ids into hidden states.

Shape suffixes: B batch, T tokens of this call, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D

from imagegpt.config import ImageGPTConfig
from imagegpt.model.attention import ImageGPTAttention, KeyValueCache
from imagegpt.model.layers import ImageGPTMLP, ImageGPTRMSNorm, ResidualProjection


class ImageGPTBlock(GradientCheckpointingLayer):
    """One pre-norm block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = ImageGPTAttention(config, layer_idx)
        self.ln_2 = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = ImageGPTMLP(config)

    def forward(
        self,
        x_BTD: torch.Tensor,
        past: KeyValueCache | None = None,
        mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the block's output (B, T, D) and the attention's probabilities, if it gives them."""
        attended, probs = self.attn(self.ln_1(x_BTD), past, mask, **kwargs)
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.ln_2(x_BTD)), probs


class ImageGPTPreTrainedModel(PreTrainedModel):
    """What all ImageGPT models share: loading, saving, initialisation."""

    config_class = ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ImageGPTBlock"]
    _supports_sdpa = True
    # Files of old releases carry their causal masks; a mask is no weight.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.bias$", r"\.attn\.masked_bias$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """HF's rule: normal(0, initializer_range), the residual projections divided by sqrt(2 L) (GPT-2)."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Conv1D):
            residual = isinstance(module, ResidualProjection)
            init.normal_(module.weight, mean=0.0, std=std / math.sqrt(2 * self.config.n_layer) if residual else std)
            init.zeros_(module.bias)


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The trunk: ids to hidden states.

    Args:
        config: the configuration; new weights follow its `initializer_range`.

    Example:
        >>> import torch
        >>> model = ImageGPTModel(ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16))
        >>> model(torch.zeros(1, 16, dtype=torch.long)).last_hidden_state.shape
        torch.Size([1, 16, 32])
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        if config.add_cross_attention:
            raise NotImplementedError("add_cross_attention=True is not supported yet.")
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(ImageGPTBlock(config, i) for i in range(config.n_layer))
        self.ln_f = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
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
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple:
        """Run the network.

        Args:
            input_ids: (B, T) int64, 0..vocab_size-1; a picture starts with SOS, `config.vocab_size - 1`.
            past_key_values: cache of the ids before these.
            attention_mask: (B, past + T), 1 where an id counts, 0 for padding.
            position_ids: (B, T); default: counted on from the cache's length.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            use_cache: return a cache; default `config.use_cache`, and off while training.
            output_attentions: also the probabilities of each layer, (B, N, T, S); needs eager attention.
            output_hidden_states: also the input of each block and the output of the final norm: L + 1 entries.
            return_dict: False for a tuple.

        Returns:
            `last_hidden_state` (B, T, D) after the final norm, `past_key_values`, `hidden_states`, `attentions`.

        Raises:
            ValueError: none or both of `input_ids` and `inputs_embeds`; more ids than positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError('output_attentions needs attn_implementation="eager"; see set_attn_implementation.')
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False  # recomputing would append to the cache a second time
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        x_BTD = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            self._check_length(past_length, x_BTD.shape[1])
            position_ids = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None] + past_length
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        x_BTD = self.drop(x_BTD + self.wpe(position_ids))
        hidden_states, attentions = [], []
        for block in self.h:
            hidden_states.append(x_BTD)
            x_BTD, probs = block(x_BTD, past_key_values, mask)
            attentions.append(probs)
        x_BTD = self.ln_f(x_BTD)
        output = BaseModelOutputWithPast(
            last_hidden_state=x_BTD,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states, x_BTD) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _check_length(self, past: int | torch.Tensor, new: int) -> None:
        if isinstance(past, int) and past + new > self.config.n_positions:
            raise ValueError(f"{past + new} ids do not fit into the model's {self.config.n_positions} positions.")
