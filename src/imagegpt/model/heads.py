"""Heads on the trunk: generation and classification.

Shape suffixes: B batch, T tokens, D width, K colours, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, SequenceClassifierOutputWithPast

from imagegpt.checkpoint import OLD_MASKS
from imagegpt.config import ImageGPTConfig
from imagegpt.model.generation import ImageGPTGenerationMixin
from imagegpt.model.inputs import behind_start, without_old_name
from imagegpt.model.losses import check_labels, class_loss, id_loss, next_ids, without_padding
from imagegpt.model.modeling import ImageGPTModel, ImageGPTPreTrainedModel


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, ImageGPTGenerationMixin):
    """ImageGPT with the head that predicts the next id: K outputs, SOS is never predicted.

    Args:
        config: the configuration. With `tie_word_embeddings` the head is the embedding without SOS's row.

    Example:
        >>> import torch
        >>> from imagegpt import ImageGPTConfig
        >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16)
        >>> model = ImageGPTForCausalImageModeling(config)
        >>> model(torch.full((1, 1), config.vocab_size - 1)).logits.shape
        torch.Size([1, 1, 512])
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _tp_plan = {"lm_head": "imagegpt_head"}
    accepts_loss_kwargs = True  # transformers' Trainer then passes num_items_in_batch
    _keys_to_ignore_on_load_unexpected = [OLD_MASKS, r"^score\."]  # of a fine-tuned network

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size - 1, bias=False)
        self.loss_type = "ForCausalLM"  # Trainer then counts the labels that a shifted loss counts
        self.post_init()

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
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache_position: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """Run the network and its head; the arguments are those of `ImageGPTModel.forward`, and:

        Args:
            labels: (B, T) ids in either form. As documented by Hugging Face: equal to the inputs, and shifted inside,
                so T inputs give the loss of T - 1 ids. Or the next ids: inputs SOS and the first T - 1 ids, labels
                all T ids: the paper's loss, as `image_loss` gives it. Each row's form is told by whether its labels
                are rather its inputs or the next of them; with `inputs_embeds` it is the first. -100, SOS and padding
                are ignored. With labels the inputs may be SOS and all T ids: the last one is then only a label.
            logits_to_keep: only the last so many positions' logits, or those at these indices; 0 for all.
            num_items_in_batch: labels that count in all batches of one update; the loss is then the sum over it.
            kwargs: `shift_labels`, (B, T) targets that are aligned with the positions already; they replace `labels`.
                Not named above: Trainer evaluates only with all arguments that it finds called something with "label".

        Returns:
            `loss` (with labels; a float32 scalar in nats, the mean over the labels that count, 0 if none does),
            `logits` (B, T, K), and what the trunk returns.

        Example:
            >>> import torch
            >>> from imagegpt import ImageGPTConfig
            >>> config = ImageGPTConfig(vocab_size=17, n_embd=32, n_layer=2, n_head=2, n_positions=16)
            >>> model = ImageGPTForCausalImageModeling(config).eval()
            >>> ids = torch.randint(16, (2, 16))
            >>> inputs = torch.cat([torch.full((2, 1), 16), ids[:, :-1]], 1)
            >>> torch.allclose(model(inputs, labels=ids).loss, model.image_loss(ids))
            True
        """
        input_ids, shift_labels = without_old_name(input_ids, pixel_values), kwargs.pop("shift_labels", None)
        for name, each in {"labels": labels, "shift_labels": shift_labels}.items():
            if each is not None and (given := input_ids if input_ids is not None else inputs_embeds) is not None:
                check_labels(each, given, name)
        targets, mask_BS = shift_labels, attention_mask
        if targets is None and labels is not None and self._is_picture_with_start(input_ids, past_key_values):
            targets = labels[:, 1:]
            input_ids, token_type_ids, position_ids = (
                None if given is None else given[..., :-1] for given in (input_ids, token_type_ids, position_ids)
            )
            if attention_mask is not None:  # a ready one has its queries and its keys last
                attention_mask = attention_mask[..., :-1, :-1] if attention_mask.ndim == 4 else attention_mask[:, :-1]
        trunk = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache_position=cache_position,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTK = self.logits(trunk.last_hidden_state[:, kept])
        sos = self.config.vocab_size - 1
        if shift_labels is None and labels is not None:
            if targets is None:
                targets = next_ids(labels, input_ids, sos)
                mask_BS = None if mask_BS is None else nn.functional.pad(mask_BS, (0, 1), value=1)
            targets = without_padding(targets, mask_BS)
        if targets is not None:
            targets = targets[:, kept]
        output = CausalLMOutputWithCrossAttentions(
            loss=None if targets is None else id_loss(logits_BTK, targets, sos, num_items_in_batch),
            logits=logits_BTK,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
            cross_attentions=trunk.cross_attentions,
        )
        return self._as_asked(output, return_dict)

    def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The head: states after the final norm to (B, T, K) logits. A tied head's row for SOS is cut off."""
        return self.lm_head(x_BTD)[..., : self.config.vocab_size - 1]

    def gather_sharded_state_dict_for_save(
        self, model_to_save: Any, state_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by `save_pretrained`: put together, a head that is the embedding would look like another weight."""
        if self.lm_head.weight is self.transformer.wte.weight:
            state_dict = {name: value for name, value in state_dict.items() if name != "lm_head.weight"}
        return super().gather_sharded_state_dict_for_save(model_to_save, state_dict, *args, **kwargs)

    def image_loss(self, ids_BT: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """The paper's loss (section 2.1): the mean negative log-likelihood of all T ids, SOS first.

        `labels` as Hugging Face documents them leave the first id out: T inputs predict T - 1 of them.

        Args:
            ids_BT: (B, T) int64, whole pictures of 0..K-1; T at most `n_positions`.
            num_items_in_batch: the loss is the sum over so many ids instead of the mean.

        Returns:
            A float32 scalar in nats per token.
        """
        inputs_BT = behind_start(ids_BT, self.config.vocab_size - 1)
        options: Any = {"shift_labels": ids_BT, "num_items_in_batch": num_items_in_batch}
        return self(inputs_BT, use_cache=False, return_dict=True, **options).loss

    def _is_picture_with_start(self, ids: torch.Tensor | None, past: Any) -> bool:
        return ids is not None and past is None and ids.ndim == 2 and ids.shape[1] == self.config.n_positions + 1


# Its name in the first releases of transformers.
ImageGPTForCausalLM = ImageGPTForCausalImageModeling


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """ImageGPT with a classifier: the mean of the final norm's states (section 2.2), then a linear layer, no bias.

    Args:
        config: the configuration; `num_labels` or `id2label` name the classes, `problem_type` the loss.

    Example:
        >>> import torch
        >>> from imagegpt import ImageGPTConfig
        >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16, num_labels=10)
        >>> ImageGPTForImageClassification(config)(torch.zeros(3, 16, dtype=torch.long)).logits.shape
        torch.Size([3, 10])
    """

    accepts_loss_kwargs = True
    # A network that was fine-tuned with both losses keeps the head that draws.
    _keys_to_ignore_on_load_unexpected = [OLD_MASKS, r"^lm_head\."]

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Cache | tuple | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache_position: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple:
        """Classify; the arguments are those of `ImageGPTModel.forward`, and:

        Args:
            attention_mask: (B, T), 0 for padding, which neither is attended to nor counts in the mean.
            labels: (B,) classes; (B, C) of 0 and 1 for multi-label; numbers for regression. `config.problem_type`
                decides; where it is not set, one output is a regression, whole numbers are classes, and other
                numbers are multi-label.
            num_items_in_batch: labels that count in all batches of one update; the loss is then the sum over it.

        Returns:
            `loss` (with labels; a float32 scalar), `logits` (B, C), and what the trunk returns.
        """
        input_ids = without_old_name(input_ids, pixel_values)
        if self.config.classifier_start:
            if past_key_values is not None or attention_mask is not None or input_ids is None:
                raise ValueError("This classifier reads whole pictures: input_ids alone, no mask, past or embeddings.")
            input_ids = behind_start(input_ids, self.config.vocab_size - 1)
        trunk = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache_position=cache_position,
            **kwargs,
        )
        logits_BC = self.score(trunk.pooler_output)
        loss = None
        if labels is not None:
            loss = class_loss(logits_BC, labels, self._problem_type(labels), num_items_in_batch)
        output = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits_BC,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return self._as_asked(output, return_dict)

    def _problem_type(self, labels: torch.Tensor) -> str:
        """The configured one, or, at the first labels, the one they show; it stays, as in transformers."""
        if self.config.problem_type is None:
            if self.config.num_labels == 1:
                kind = "regression"
            elif labels.is_floating_point():
                kind = "multi_label_classification"
            else:
                kind = "single_label_classification"
            self.config.problem_type = kind
        return self.config.problem_type
