"""`generate` for pictures: transformers' own, with the defaults and limits of a model that paints n pixels.

Shape suffixes: B batch, P ids of the prompt, K colours.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    WatermarkLogitsProcessor,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_masks_for_generate

from imagegpt.model.inputs import as_cache, positions_from_mask, without_old_name

# They look up scores by id, or count ids by `vocab_size`: the start token needs a score there.
LOOK_UP = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    WatermarkLogitsProcessor,
)


class ImageGPTGenerationMixin(GenerationMixin):
    """transformers' `generate`, that starts with SOS, ends with the last pixel and knows the number of positions."""

    def _get_static_cache_init_shape(self) -> Any:
        """Called before a prompt is read in pieces; `None`: the first keys say how many heads a layer has here."""
        model: Any = self
        if model.config.pruned_heads or (model._tp_size or 1) > 1:
            return None
        return super()._get_static_cache_init_shape()  # pyright: ignore

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
            inputs: (B, P) ids, SOS first; default: SOS alone, one row, or one for each of the encoder's states.
            generation_config: transformers' object; its values and `kwargs` rule. Where they name no length, whole
                pictures are made: SOS and `n_positions` ids.
            args: further positional arguments of transformers' `generate`.
            pixel_values: deprecated name of `inputs`.
            kwargs: strategy (`do_sample`, `num_beams`, `assistant_model`, `cache_implementation` ...), lengths and
                the model's own keywords.

        Returns:
            (B, length) ids with the prompt, or transformers' output object with `return_dict_in_generate`.

        Raises:
            ValueError: a prompt without a batch axis, a length that the model's positions do not hold, or a
                bidirectional (BERT) model, which can't; said before the first step.

        Example:
            >>> from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
            >>> config = ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=32, n_layer=2, n_head=2)
            >>> model = ImageGPTForCausalImageModeling(config).eval()
            >>> model.generate(do_sample=True, num_return_sequences=3).shape
            torch.Size([3, 17])
        """
        if not getattr(_untyped(self).config, "is_causal", True):
            raise ValueError("A bidirectional (BERT) model guesses hidden ids from all others; it can't generate.")
        inputs = without_old_name(inputs, pixel_values)
        model, parent = _untyped(self), _untyped(super())
        past = kwargs.get("past_key_values")
        if isinstance(past, (tuple, list)):
            kwargs["past_key_values"] = as_cache(past, model.config, needed=True)
        settings = [kwargs, *(vars(config) for config in (generation_config, self.generation_config) if config)]
        prompt = _first_given(kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
        if prompt is not None and prompt.ndim < 2:
            raise ValueError(f"A prompt must have the shape (batch, length), not {tuple(prompt.shape)}.")
        if (prompt is None or prompt.shape[1] == 0) and _setting("bos_token_id", settings) is None:
            kwargs.pop("input_ids", None)
            rows = _first_given(prompt, kwargs.get("encoder_hidden_states"), kwargs.get("attention_mask"), [None])
            prompt = inputs = torch.full((len(rows), 1), model.config.vocab_size - 1, device=model.device)
        length = 1 if prompt is None else prompt.shape[1]
        longest = self._longest(length, kwargs.get("attention_mask"))
        new = _setting("max_new_tokens", settings)
        asked = _setting("max_length", settings) if new is None else length + new
        if asked is None and generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            generation_config.max_length = longest
        elif asked is None:
            kwargs["max_length"] = longest
        elif asked > longest:
            raise ValueError(
                f"The model has {model.config.n_positions} positions: from the start token or the padding on, these "
                f"rows are at most {longest} ids long, but max_length or max_new_tokens ask for {asked}."
            )
        return parent.generate(inputs, generation_config, *args, **kwargs)

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, ...],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The scores of the ids that were chosen, (B, new ids), from the `scores` that `generate` returned.

        Args:
            sequences: (B, length) ids.
            scores: (B x beams, K) for each new id.
            beam_indices: what beam search returned with them.
            normalize_logits: make log-probabilities of scores that are not normalised.
        """
        scores = tuple(_with_start(scores_BK) for scores_BK in scores)
        return _untyped(super()).compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def create_masks_for_generate(self, *, config: Any, attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        """Called by `generate` with a static cache: make the masks before the step, unless they are BlockMasks.

        transformers copies a mask there, and a BlockMask can't be copied: the step then makes it.
        """
        if config._attn_implementation == "flex_attention":
            return attention_mask
        return create_masks_for_generate(config=config, attention_mask=attention_mask, **kwargs)

    def _longest(self, prompt: int, mask: torch.Tensor | None) -> int:
        """Ids that the positions hold, the prompt's included: the last id is drawn and never read."""
        longest = _untyped(self).config.n_positions + 1
        if mask is None or mask.ndim != 2:
            return longest
        padding = int((mask.cumsum(-1) == 0).sum(-1).min())
        return longest + padding - max(mask.shape[1] - prompt, 0)  # a longer mask: those ids are in the past alone

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict) -> torch.Tensor:
        mask = model_kwargs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return positions_from_mask(mask, mask.shape[1])

    def _expand_inputs_for_generation(self, *args: Any, head_mask: Any = None, **kwargs: Any) -> tuple[Any, dict]:
        """Repeat the rows, for beams or several sequences; a head mask has none."""
        ids, repeated = _untyped(super())._expand_inputs_for_generation(*args, **kwargs)
        return ids, repeated if head_mask is None else {**repeated, "head_mask": head_mask}

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = _Processors(_untyped(super())._get_logits_processor(*args, **kwargs))
        processors.colors = _untyped(self).config.vocab_size - 1
        return processors

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """Prompt lookup proposes ids beyond the last one to be drawn; there are no positions for them."""
        generator = _untyped(super())._get_candidate_generator(*args, **kwargs)
        if type(generator) is PromptLookupCandidateGenerator:
            propose, end = generator.get_candidates, generator.max_length - 1
            shortened: Any = lambda ids, **rest: (propose(ids, **rest)[0][:, :end], None)  # noqa: E731
            generator.get_candidates = shortened
        return generator


class _Processors(LogitsProcessorList):
    """Processors that see the start token as an id without a chance, where they look scores up by id."""

    colors = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore
        for processor in self:
            if isinstance(processor, LOOK_UP) and scores.shape[-1] == self.colors:
                scores = processor(input_ids, _with_start(scores))[:, : self.colors]  # pyright: ignore
            else:
                scores = LogitsProcessorList([processor])(input_ids, scores, **kwargs)  # pyright: ignore
        return scores


def _with_start(scores_BK: torch.Tensor) -> torch.Tensor:
    """Scores with a column for the start token, which the head does not have."""
    return nn.functional.pad(scores_BK, (0, 1), value=float("-inf"))


def _untyped(part: Any) -> Any:
    """transformers types its mixin's `self` as a whole model, which a mixin is not."""
    return part


def _first_given(*candidates: Any) -> Any:
    return next((given for given in candidates if given is not None), None)


def _setting(name: str, settings: list[dict[str, Any]]) -> Any:
    """The first value that is set: of the call, its configuration, the model's configuration."""
    return _first_given(*(values.get(name) for values in settings))
