"""The numbers of a model, and the known sizes. No torch, no transformers: everything may import this."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# HF's general names -> this model's names, as in every published config.json.
ATTRIBUTE_MAP = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@dataclass(frozen=True)
class ModelSpec:
    """What the shape and the function of an ImageGPT depend on.

    The field names and defaults are those of `config.json`; the defaults are ImageGPT-small.
    `ImageGPTConfig` is the Hugging Face face of the same numbers.

    Args:
        vocab_size: K + 1: the colours (or codes) and SOS, which is the last id.
        n_positions: T, the number of ids of a picture.
        n_embd: D, the width.
        n_layer: L, the number of blocks.
        n_head: N, the number of attention heads; divides `n_embd`.
        n_inner: width of the MLP; `None` means 4 D.
        activation_function: name of the MLP's activation.
        layer_norm_epsilon: added to the mean square in the norms.
        scale_attn_weights: divide the scores by the square root of the head width.
        scale_attn_by_inverse_layer_idx: divide them by the layer's number (from 1) too.
        tie_word_embeddings: the head is the embedding of the colours.
        pruned_heads: layer -> attention heads that were cut out of it; `None` is none.

    Raises:
        ValueError: a number that no model can have, with the field's name.

    Example:
        >>> SIZES["small"].head_width
        64
        >>> SIZES["small"].num_parameters / 1e6
        76.68224
    """

    vocab_size: int = 513
    n_positions: int = 1024
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    n_inner: int | None = None
    activation_function: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = False
    pruned_heads: Mapping[int, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if self.vocab_size < 2:
            raise ValueError("vocab_size must be at least 2: one colour and the start token.")
        epsilon: Any = self.layer_norm_epsilon
        if not isinstance(epsilon, (int, float)) or isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
            raise ValueError(f"layer_norm_epsilon must be a number of at least 0, not {epsilon!r}.")
        object.__setattr__(self, "layer_norm_epsilon", float(epsilon))
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head}).")
        for layer, heads in (self.pruned_heads or {}).items():
            if not 0 <= layer < self.n_layer or not set(heads) < set(range(self.n_head)):
                raise ValueError(f"pruned_heads names layer {layer}, heads {heads}, of {self.n_layer} x {self.n_head}.")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelSpec:
        """Read the fields out of a `config.json`'s dictionary; other keys are other people's business."""
        names = {field.name for field in dataclasses.fields(cls)}
        renamed = {ATTRIBUTE_MAP.get(key, key): value for key, value in config.items()}
        numbers = {key: value for key, value in renamed.items() if key in names}
        if numbers.get("pruned_heads"):  # the keys of JSON are strings
            numbers["pruned_heads"] = {int(layer): heads for layer, heads in dict(numbers["pruned_heads"]).items()}
        return cls(**numbers)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelSpec:
        """Read a `config.json`."""
        return cls.from_config(json.loads(Path(path).read_text(encoding="utf-8")))

    @property
    def num_colors(self) -> int:
        """K: the colours of the palette, and the outputs of the head."""
        return self.vocab_size - 1

    @property
    def sos(self) -> int:
        """The start token's id, K."""
        return self.vocab_size - 1

    @property
    def inner_width(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_width(self) -> int:
        """H, the width of one attention head."""
        return self.n_embd // self.n_head

    def heads(self, layer: int) -> int:
        """How many attention heads layer `layer` has left."""
        return self.n_head - len(set((self.pruned_heads or {}).get(layer, ())))

    def attention_scale(self, layer: int) -> float:
        """Factor of a layer's attention scores."""
        scale = 1 / math.sqrt(self.head_width) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def square_grid(self) -> tuple[int, int]:
        """The grid `(height, width)` where nothing else names one: a square of `n_positions` ids."""
        side = math.isqrt(self.n_positions)
        if side * side != self.n_positions:
            raise ValueError(f"{self.n_positions} positions do not make a square grid; the processor's size must say.")
        return side, side

    @property
    def num_parameters(self) -> int:
        """Parameters of the generative model in HF's layout (with biases), head included."""
        width, inner = self.n_embd, self.inner_width
        heads = sum(self.heads(layer) for layer in range(self.n_layer))
        attention = heads * self.head_width * (4 * width + 3) + self.n_layer * width
        mlp = 2 * width * inner + inner + width
        head = 0 if self.tie_word_embeddings else self.num_colors
        embeddings = (self.vocab_size + self.n_positions + head) * width
        return embeddings + attention + self.n_layer * (mlp + 2 * width) + width


# small, medium, large, xl: Chen et al. 2020, "Generative Pretraining from Pixels", section 4, and OpenAI's released
# command lines. The counts are `num_parameters`: HF's layout has biases that OpenAI's linear layers lack. xl was never
# released and its heads are not published: 16 is our choice. nano is ours: the embedded model (recipe cifar10-nano).
SIZES: dict[str, ModelSpec] = {
    "nano": ModelSpec(n_embd=192, n_layer=8, n_head=3),  # 3.9 M
    "small": ModelSpec(n_embd=512, n_layer=24, n_head=8),  # 76.7 M; the paper says 76 M
    "medium": ModelSpec(n_embd=1024, n_layer=36, n_head=8),  # 455 M; 455 M
    "large": ModelSpec(n_embd=1536, n_layer=48, n_head=16),  # 1.363 G; 1.4 G
    "xl": ModelSpec(n_embd=3072, n_layer=60, n_head=16),  # 6.803 G; 6.8 G
}


def size_spec(name: str) -> ModelSpec:
    """The spec of a named size; an unknown name is a ValueError that lists the names."""
    try:
        return SIZES[name]
    except KeyError:
        raise ValueError(f"unknown size {name!r}; known sizes: {', '.join(SIZES)}.") from None
