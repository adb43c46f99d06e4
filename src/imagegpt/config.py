"""ImageGPTConfig: the Hugging Face face of `ModelSpec`."""

import dataclasses
import math
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from imagegpt.spec import ATTRIBUTE_MAP, ModelSpec, size_spec

# What becomes of each module where a model is divided among processes; the styles are in `imagegpt.model.parallel`.
_TP_PLAN = {
    "wte": "imagegpt_embedding",
    "wpe": "imagegpt_replicated",
    "h.*.ln_1": "imagegpt_replicated",
    "h.*.attn": "imagegpt_attention",
    "h.*.attn.c_attn": "imagegpt_packed_qkv",
    "h.*.attn.c_proj": "imagegpt_rows",
    "h.*.ln_2": "imagegpt_replicated",
    "h.*.mlp.c_fc": "imagegpt_columns",
    "h.*.mlp.c_proj": "imagegpt_rows",
    "ln_f": "imagegpt_replicated",
}
_CROSS_ATTENTION_TP_PLAN = {
    "h.*.ln_cross_attn": "imagegpt_replicated",
    "h.*.crossattention": "imagegpt_attention",
    "h.*.crossattention.q_attn": "imagegpt_columns",
    "h.*.crossattention.c_attn": "imagegpt_packed_kv",
    "h.*.crossattention.c_proj": "imagegpt_rows",
}


@strict
class ImageGPTConfig(PreTrainedConfig):
    """Configuration of an ImageGPT; the defaults are ImageGPT-small.

    Args:
        vocab_size (int, default 513): colours of the palette and the start token.
        n_positions (int, default 1024): ids of a picture.
        n_embd (int, default 512): width; also `hidden_size`.
        n_layer (int, default 24): number of blocks; also `num_hidden_layers`.
        n_head (int, default 8): attention heads; also `num_attention_heads`.
        n_inner (int, optional): width of the MLP; `None` means four times `n_embd`.
        activation_function (str, default "quick_gelu"): any name transformers knows.
        resid_pdrop, embd_pdrop, attn_pdrop (float, default 0.1): dropout of the sublayers' outputs, of the
            embeddings and of the attention probabilities, while training.
        layer_norm_epsilon (float, default 1e-5): added to the mean square in the norms.
        initializer_range (float, default 0.02): standard deviation of new weights.
        scale_attn_weights (bool, default True): divide the scores by the square root of the head width.
        use_cache (bool, default True): return keys and values for the next step.
        tie_word_embeddings (bool, default False): the head is the embedding of the colours; the paper unties them.
        scale_attn_by_inverse_layer_idx (bool, default False): divide the scores by the layer's number too.
        reorder_and_upcast_attn (bool, default False): scores in float32 under mixed precision. They always are here:
            the old flag is kept for its file format.
        add_cross_attention (bool, default False): a cross-attention sublayer in each block.
        pruned_heads (dict, optional): layer -> attention heads that `prune_heads` cut out.
        classifier_start (bool, default False): the classifier puts SOS before the ids and leaves the last one out, as
            the network was pretrained; `imagegpt finetune` sets it. transformers' own class knows nothing of it.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a value of a wrong type, or numbers that no model can have.

    Example:
        >>> config = ImageGPTConfig.from_size("medium")
        >>> config.hidden_size, config.num_hidden_layers
        (1024, 36)
    """

    model_type = "imagegpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = ATTRIBUTE_MAP
    base_model_tp_plan = _TP_PLAN
    # No fields: a file shows them only where they are not so.
    pruned_heads = None
    classifier_start = False

    vocab_size: int = ModelSpec.vocab_size
    n_positions: int = ModelSpec.n_positions
    n_embd: int = ModelSpec.n_embd
    n_layer: int = ModelSpec.n_layer
    n_head: int = ModelSpec.n_head
    n_inner: int | None = ModelSpec.n_inner
    activation_function: str = ModelSpec.activation_function
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = ModelSpec.layer_norm_epsilon
    initializer_range: float = 0.02
    scale_attn_weights: bool = ModelSpec.scale_attn_weights
    use_cache: bool = True
    tie_word_embeddings: bool = ModelSpec.tie_word_embeddings
    scale_attn_by_inverse_layer_idx: bool = ModelSpec.scale_attn_by_inverse_layer_idx
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Give `pruned_heads` whole numbers as keys again: JSON has made strings of them."""
        pruned = kwargs.pop("pruned_heads", None)
        if pruned:
            self.pruned_heads = {int(layer): list(heads) for layer, heads in pruned.items()}
        if self.add_cross_attention:
            self.base_model_tp_plan = {**_TP_PLAN, **_CROSS_ATTENTION_TP_PLAN}  # pyright: ignore[reportAttributeAccessIssue]
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a named size: "nano", "small", "medium", "large" or "xl".

        Args:
            name: the size; `imagegpt.spec.SIZES` is the table, with its sources.
            overrides: any other argument of the configuration.

        Raises:
            ValueError: an unknown name.
        """
        return cls(**{**dataclasses.asdict(size_spec(name)), **overrides})

    @property
    def spec(self) -> ModelSpec:
        """The same numbers as a frozen `ModelSpec`."""
        names = (field.name for field in dataclasses.fields(ModelSpec))
        return ModelSpec(**{name: getattr(self, name) for name in names})

    def validate_architecture(self) -> None:
        """Refuse numbers that no model can have; called by transformers when a configuration is made."""
        self.spec  # noqa: B018 - building it is the check
        if self.activation_function not in ACT2FN:
            raise ValueError(f"activation_function {self.activation_function!r} is unknown to transformers.")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)!r}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must be a number of at least 0, not {self.initializer_range!r}.")
