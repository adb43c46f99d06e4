"""Features: what the middle of the network says about a picture (Chen et al. 2020, section 2.4).

The features f^l of layer l are the states after l blocks, normalised by the norm that follows, and averaged over the
ids: f^l = mean over the T positions of LN(h^l). Layer 0 is the embedding, layer L what the head sees. In the terms of
transformers' `output_hidden_states` f^l is `h[l].ln_1(hidden_states[l]).mean(1)` for l < L, and
`hidden_states[L].mean(1)`, which is normalised already. The inputs are SOS and all ids but the last, as in OpenAI's
code; a bidirectional (BERT) model reads the ids themselves.

Shape suffixes: B pictures, T ids, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.sequence import with_sos

Pool = Literal["mean", "none"]
Layer = int | Sequence[int] | Literal["all"] | None


class Extractor(Protocol):
    """Features of chosen layers, by one backend."""

    rows: int  # pictures that are run together

    def __call__(self, inputs_BT: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """For each layer that was asked for (B, D), or (B, T, D) without pooling."""
        ...


def layers_of(layer: Layer, blocks: int) -> list[int]:
    """The layers that are meant, in the order given.

    Args:
        layer: a number from 0 to `blocks`, several of them, "all", or `None` for the middle one.
        blocks: L, how many blocks the model has.

    Raises:
        InputError: no such layer, the same one twice, or none at all.

    Example:
        >>> layers_of("all", 3), layers_of(None, 8), layers_of([4, 2], 8)
        ([0, 1, 2, 3], [4], [4, 2])
    """
    if layer is None:
        return [blocks // 2]
    if isinstance(layer, str) and layer == "all":
        return list(range(blocks + 1))
    layers: list[Any] = list(layer) if isinstance(layer, Iterable) else [layer]
    for number in layers:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 0 <= number <= blocks:
            raise InputError(f"layer must be 0 to {blocks}, several of these, or 'all', not {number!r}.")
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"layer must name at least one layer, and none twice, not {layers}.")
    return [int(number) for number in layers]


def is_one(layer: Layer) -> bool:
    """Whether this names one layer, and not several."""
    return layer is None or isinstance(layer, (int, np.integer))


def check_pool(pool: str) -> None:
    """Refuse what is no way of pooling."""
    if pool not in get_args(Pool):
        raise InputError(f"pool must be 'mean' or 'none', not {pool!r}.")


def inputs_of(ids_BT: NDArray[np.int64], sos: int, causal: bool) -> NDArray[np.int64]:
    """What the network reads of pictures, (B, T): all ids one position on behind SOS, or as they are."""
    return with_sos(ids_BT[:, :-1], sos) if causal else ids_BT
