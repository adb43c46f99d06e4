"""`generate` for pictures: transformers' own, with the defaults and limits of a model that paints n pixels.

Shape suffixes: B batch, P ids of the prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.utils import GenerationMixin

from imagegpt.model.inputs import as_cache, positions_from_mask, without_old_name


class ImageGPTGenerationMixin(GenerationMixin):
    """transformers' `generate`, that starts with SOS, ends with the last pixel and knows the number of positions."""

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate ids; every argument of transformers' `generate` works.

        Args:
            inputs: (B, P) ids, SOS first; default: SOS alone, one row.
            generation_config: transformers' object; its values and `kwargs` rule. Where they name no length, whole
                pictures are made: SOS and `n_positions` ids.
            args: further positional arguments of transformers' `generate`.
            pixel_values: deprecated name of `inputs`.
            kwargs: strategy (`do_sample`, `num_beams`, `assistant_model`, `cache_implementation` ...), lengths and
                the model's own keywords.

        Returns:
            (B, length) ids with the prompt, or transformers' output object with `return_dict_in_generate`.

        Raises:
            ValueError: a length that the model's positions do not hold, said before the first step.

        Example:
            >>> from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
            >>> config = ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=32, n_layer=2, n_head=2)
            >>> model = ImageGPTForCausalImageModeling(config).eval()
            >>> model.generate(do_sample=True, num_return_sequences=3).shape
            torch.Size([3, 17])
        """
        inputs = without_old_name(inputs, pixel_values)
        model: Any = self
        length = _prompt_length(inputs, kwargs)
        settings = [kwargs.get, *(_getter(config) for config in (generation_config, self.generation_config) if config)]
        if length == 0 and not any(get("bos_token_id") is not None for get in settings):
            rows = next((len(kwargs[k]) for k in ("encoder_hidden_states", "attention_mask") if k in kwargs), 1)
            inputs = torch.full((rows, 1), model.config.vocab_size - 1, device=model.device)
        if isinstance(kwargs.get("past_key_values"), tuple):
            kwargs["past_key_values"] = as_cache(kwargs["past_key_values"], model.config, needed=True)
        self._choose_length(max(length, 1), settings, kwargs)
        return super().generate(inputs, generation_config, *args, **kwargs)  # pyright: ignore

    def _choose_length(self, prompt: int, settings: list[Any], kwargs: dict[str, Any]) -> None:
        """Whole pictures by default, and no more than there are positions for."""
        model: Any = self
        mask = kwargs.get("attention_mask")
        padding = int((mask.cumsum(-1) == 0).sum(-1).min()) if mask is not None and mask.ndim == 2 else 0
        limit = model.config.n_positions + 1 + padding  # the last id is drawn and never read
        new = next((get("max_new_tokens") for get in settings if get("max_new_tokens") is not None), None)
        whole = next((get("max_length") for get in settings if get("max_length") is not None), None)
        asked = prompt + new if new is not None else whole
        if asked is None:
            kwargs["max_length"] = asked = limit
        if asked > limit:
            raise ValueError(
                f"The model has {model.config.n_positions} positions: with the start token a picture is at most "
                f"{limit} ids long, but the prompt of {prompt} and max_length or max_new_tokens ask for {asked}."
            )

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict) -> torch.Tensor:
        mask = model_kwargs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return positions_from_mask(mask, mask.shape[1])

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """The start token has no score, so the processor that looks up the prompt's scores must not see it."""
        model: Any = self
        processors = super()._get_logits_processor(*args, **kwargs)  # pyright: ignore
        return LogitsProcessorList(
            _WithoutStart(processor, model.config.vocab_size - 1)
            if isinstance(processor, RepetitionPenaltyLogitsProcessor)
            else processor
            for processor in processors
        )


class _WithoutStart(LogitsProcessor):
    """Show a processor the ids of colours alone: a start token is replaced by the row's latest id."""

    def __init__(self, processor: LogitsProcessor, sos: int) -> None:
        self.processor = processor
        self.sos = sos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        colors = torch.where(input_ids == self.sos, input_ids[:, -1:], input_ids)
        bare_B = colors[:, -1:] == self.sos  # nothing but the start token
        return torch.where(bare_B, scores, self.processor(colors.clamp(max=self.sos - 1), scores))  # type: ignore


def _prompt_length(inputs: torch.Tensor | None, kwargs: dict[str, Any]) -> int:
    """Ids that are given, under any name; 0 for none."""
    embeds = kwargs.get("inputs_embeds")
    ids = inputs if inputs is not None else kwargs.get("input_ids")
    return embeds.shape[1] if embeds is not None else 0 if ids is None else ids.shape[-1]


def _getter(config: GenerationConfig) -> Any:
    return lambda name: getattr(config, name, None)
