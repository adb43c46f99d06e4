"""What a run must cost, from the model's numbers alone: floating-point operations and bytes.

A product of (m, k) and (k, n) counts 2 m k n operations. Norms, activations and softmax are left out: they are limited
by memory and small beside the products.
"""

from __future__ import annotations

from imagegpt.spec import ModelSpec

PROMPT_IDS = 4096  # ids of prompts that are run at once


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
    return blocks_flops(spec, spec.n_layer, length) + 2 * length * spec.num_colors * spec.n_embd


def blocks_flops(spec: ModelSpec, blocks: int, length: int | None = None) -> int:
    """Operations of one sequence through the first `blocks` blocks; of all positions where no length is given."""
    length = spec.n_positions if length is None else length
    pairs, operations = length * (length + 1) // 2, 0
    for layer in range(blocks):
        attended = spec.heads(layer) * spec.head_width
        operations += 2 * length * (4 * spec.n_embd * attended + 2 * spec.n_embd * spec.inner_width)
        operations += 4 * pairs * attended  # q k, and probabilities times v
    return operations


def weight_numbers(spec: ModelSpec) -> int:
    """Numbers of the weights that every step reads: all but the embeddings, of which it looks up one row."""
    head = spec.num_colors * spec.n_embd if spec.tie_word_embeddings else 0
    return spec.num_parameters + head - (spec.vocab_size + spec.n_positions) * spec.n_embd


def cache_numbers(spec: ModelSpec) -> int:
    """Numbers that one id of one row leaves in the cache: keys and values of all layers."""
    return sum(2 * spec.heads(layer) * spec.head_width for layer in range(spec.n_layer))


def step_bytes(
    spec: ModelSpec, rows: int, position: float, bytes_per_number: float = 4, bytes_per_cached: float | None = None
) -> float:
    """What one decoding step reads at least: the weights less the embeddings, and keys and values so far.

    Args:
        spec: the model's numbers.
        rows: sequences that are decoded together.
        position: ids in the cache.
        bytes_per_number: 4 for float32, 1 for int8.
        bytes_per_cached: the same of the cache's numbers; default `bytes_per_number`.
    """
    cached = bytes_per_number if bytes_per_cached is None else bytes_per_cached
    return bytes_per_number * weight_numbers(spec) + cached * cache_numbers(spec) * position * rows


def weight_memory(spec: ModelSpec, bytes_per_number: float = 4) -> int:
    """Bytes of the weights in memory: the products' in `bytes_per_number`, the embeddings in float32."""
    embeddings = (spec.vocab_size + spec.n_positions) * spec.n_embd
    return int(4 * embeddings + bytes_per_number * weight_numbers(spec))


def rows_that_fit(spec: ModelSpec, prompt: int, bytes_per_cached: float, memory: int) -> int:
    """How many rows, each with a prompt of its own of so many ids, so much memory has room for; at least one."""
    one, two = (decode_memory(spec, rows, rows, prompt, bytes_per_cached) for rows in (1, 2))
    return max(1, int((memory - one) / (two - one)) + 1)


def decode_memory(spec: ModelSpec, rows: int, prompts: int, prompt: int, bytes_per_cached: float) -> int:
    """Bytes that decoding needs at most beside the weights: the cache of all positions, and the run of the prompts.

    Args:
        spec: the model's numbers.
        rows: sequences that are decoded together.
        prompts: different ones among them, which are run once each.
        prompt: ids of a prompt, without SOS.
        bytes_per_cached: 4 for float32, 1 for int8.
    """
    ids = prompt + 1
    together = min(prompts, max(1, PROMPT_IDS // ids)) * ids
    heads = max(spec.heads(layer) for layer in range(spec.n_layer))
    # Of one layer: the input, its norm, and the larger of the MLP's two inner states and attention with all its scores.
    widest = max(2 * spec.inner_width, 4 * heads * spec.head_width + heads * ids)
    run = together * (4 * (2 * spec.n_embd + widest) + bytes_per_cached * cache_numbers(spec))
    return int(rows * spec.n_positions * bytes_per_cached * cache_numbers(spec) + run)
