"""Heads on the trunk. Here the generative one; classification follows.

Shape suffixes: B batch, T tokens, D width, K colours.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from imagegpt.config import ImageGPTConfig
from imagegpt.model.modeling import ImageGPTModel, ImageGPTPreTrainedModel

IGNORED_LABEL = -100


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, GenerationMixin):
    """ImageGPT with the head that predicts the next id: K outputs, SOS is never predicted.

    Args:
        config: the configuration.

    Example:
        >>> import torch
        >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16)
        >>> model = ImageGPTForCausalImageModeling(config)
        >>> model(torch.full((1, 1), config.vocab_size - 1)).logits.shape
        torch.Size([1, 1, 512])
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        if config.tie_word_embeddings:
            raise NotImplementedError("tie_word_embeddings=True is not supported yet: the head has no row for SOS.")
        self.transformer = ImageGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size - 1, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Run the network and its head; the arguments are those of `ImageGPTModel.forward`, and:

        Args:
            labels: (B, T) ids, shifted inside: position t is compared with label t + 1. -100 and SOS are ignored.

        Returns:
            `loss` (with labels; a float32 scalar, the mean over the labels that count), `logits` (B, T, K), and
            what the trunk returns.
        """
        trunk = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits_BTK = self.lm_head(trunk.last_hidden_state)
        output = CausalLMOutputWithPast(
            loss=None if labels is None else self._shifted_loss(logits_BTK, labels),
            logits=logits_BTK,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def image_loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The paper's loss (section 2.1): the mean negative log-likelihood of all T ids, SOS first.

        Args:
            ids_BT: (B, T) int64, whole pictures of 0..K-1; T at most `n_positions`.

        Returns:
            A float32 scalar in nats per token.
        """
        sos_B1 = ids_BT.new_full((len(ids_BT), 1), self.config.vocab_size - 1)
        logits_BTK = self(torch.cat([sos_B1, ids_BT[:, :-1]], 1), use_cache=False).logits
        return nn.functional.cross_entropy(logits_BTK.float().flatten(0, 1), ids_BT.flatten())

    def _shifted_loss(self, logits_BTK: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        targets = labels_BT[:, 1:].flatten()
        targets = targets.masked_fill(targets == self.config.vocab_size - 1, IGNORED_LABEL)
        logits = logits_BTK[:, :-1].float().flatten(0, 1)
        total = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")
        return total / (targets != IGNORED_LABEL).sum().clamp(min=1)
