"""What a run must cost, from the model's numbers alone: floating-point operations and bytes.

A product of (m, k) and (k, n) counts 2 m k n operations. Norms, activations and softmax are left out: they are limited
by memory and small beside the products.
"""

from __future__ import annotations

from imagegpt.spec import ModelSpec


def forward_flops(spec: ModelSpec, length: int | None = None) -> int:
    """Operations of one sequence's forward, logits of all positions included; causal attention counts half.

    Args:
        spec: the model's numbers.
        length: ids of the sequence; default all positions.

    Example:
        >>> from imagegpt.spec import SIZES
        >>> round(forward_flops(SIZES["small"]) / 1e9)
        181
    """
    length = spec.n_positions if length is None else length
    weights = spec.num_colors * spec.n_embd
    pairs = length * (length + 1) // 2
    scores = 0
    for layer in range(spec.n_layer):
        attended = spec.heads(layer) * spec.head_width
        weights += 4 * spec.n_embd * attended + 2 * spec.n_embd * spec.inner_width
        scores += 4 * pairs * attended  # q k, and probabilities times v
    return 2 * length * weights + scores


def step_bytes(spec: ModelSpec, rows: int, position: float, bytes_per_number: float = 4) -> float:
    """What one decoding step reads at least: the weights less the embeddings, and keys and values so far.

    Args:
        spec: the model's numbers.
        rows: sequences that are decoded together.
        position: ids in the cache.
        bytes_per_number: 4 for float32.
    """
    weights = spec.num_parameters - (spec.vocab_size + spec.n_positions) * spec.n_embd
    cache = sum(2 * spec.heads(layer) * spec.head_width for layer in range(spec.n_layer)) * position * rows
    return bytes_per_number * (weights + cache)
