"""What a run must cost, from the model's numbers alone: floating-point operations and bytes.

A product of (m, k) and (k, n) counts 2 m k n operations. Norms, activations and softmax are left out: they are limited
by memory and small beside the products.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from imagegpt.checkpoint import expected_shapes
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


def training_flops(spec: ModelSpec, rows: int, checkpointing: bool = False, length: int | None = None) -> int:
    """Operations of a training step of `rows` sequences: the forward, and twice as much in the backward pass.

    Each product has two gradients, of its input and of its weight, and each costs as much as the product.

    Args:
        spec: the model's numbers.
        rows: sequences of the step.
        checkpointing: the blocks run once more in the backward pass.
        length: ids of a sequence; default all positions.
    """
    again = blocks_flops(spec, spec.n_layer, length) if checkpointing else 0
    return rows * (3 * forward_flops(spec, length) + again)


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


@dataclass(frozen=True)
class Training:
    """What the memory of one process of a training run depends on, beside the model.

    Args:
        rows: sequences of one forward.
        half: autocast to bf16 or fp16; the weights stay float32.
        checkpointing: keep the blocks' inputs alone, and run a block again for its backward pass.
        ranks: processes of the run.
        strategy: of several processes: "ddp", each with all weights, or "fsdp", which divides them (FSDP2).
        accumulate: forwards of a step.
        ema: keep a float32 average of the weights.
        optimizer: "adamw", two moments; "muon", one moment for the blocks' matrices and two for the rest.
        dropout: above 0 its masks are kept too.
        cpu: torch keeps a number for each element that may be dropped on a CPU, and a byte elsewhere.
    """

    rows: int
    half: bool = False
    checkpointing: bool = False
    ranks: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate: int = 1
    ema: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    dropout: float = 0.0
    cpu: bool = False

    @property
    def shards(self) -> int:
        """Processes among which a weight is divided."""
        return self.ranks if self.strategy == "fsdp" else 1

    @property
    def number(self) -> int:
        """Bytes of a number that a product reads or writes."""
        return 2 if self.half else 4


def held_numbers(spec: ModelSpec, shards: int = 1, blocks_matrices: bool = False) -> int:
    """Numbers of the parameters that the first of `shards` processes holds, which has most.

    FSDP2 divides each parameter along its first dimension; where that does not divide, the last processes have less.

    Args:
        spec: the model's numbers.
        shards: processes.
        blocks_matrices: only of the blocks' matrices, which are Muon's.
    """
    shapes = expected_shapes(spec).items()
    chosen = [shape for name, shape in shapes if not blocks_matrices or (".h." in name and len(shape) == 2)]
    return sum(-(-shape[0] // shards) * prod(shape[1:]) for shape in chosen)


def block_numbers(spec: ModelSpec) -> list[int]:
    """Numbers of each block's parameters."""
    shapes = expected_shapes(spec).items()
    return [
        sum(prod(shape) for name, shape in shapes if name.startswith(f"transformer.h.{layer}."))
        for layer in range(spec.n_layer)
    ]


def block_activations(spec: ModelSpec, layer: int, run: Training) -> int:
    """Bytes that one id leaves in a block for its backward pass; measured in docs/planning.md.

    The inputs of both norms stay float32, as the residual stream is. In the products' own type: the norms' outputs,
    queries, keys, values and the attention's output, and the MLP's inner states before and after the activation (quick
    GELU; other activations may keep more). Attention keeps one float32 a head, the logarithm of its sum.
    """
    width, heads = spec.n_embd, spec.heads(layer)
    products = 2 * width + 4 * heads * spec.head_width + 2 * spec.inner_width
    dropped = 2 * width * _mask_bytes(run)
    return 4 * 2 * width + run.number * products + 4 * heads + dropped


def _mask_bytes(run: Training) -> int:
    return 0 if not run.dropout else run.number if run.cpu else 1


def training_memory(spec: ModelSpec, run: Training, length: int | None = None) -> dict[str, int]:
    """Bytes that one process of a training run holds at its fullest moment, by part.

    Four moments are compared: the loss, when all activations are there; the first blocks of the backward pass, with
    its temporary results; its end, when all gradients are there; the optimiser's step (AdamW's is fused, and needs
    nothing). Steps after the first count: the optimiser's moments are there.

    Args:
        spec: the model's numbers.
        run: how it is trained.
        length: ids of a sequence; default all positions.

    Returns:
        weights, optimizer, ema (float32; of FSDP2 the first process's part), gradients (that are there then),
        activations, copies (autocast's, of the weights), logits (with their logarithms and gradients), gathered
        (FSDP2's blocks, and gradients on their way), temporary.
    """
    moments = [_loss(spec, run, length), _backward(spec, run, length), _backward_end(spec, run, length)]
    moments += [_update(spec, run), *([_backward(spec, run, length, sending=True)] if run.shards > 1 else [])]
    return _state(spec, run) | max(moments, key=lambda parts: sum(parts.values()))


def _state(spec: ModelSpec, run: Training) -> dict[str, int]:
    """What is always there."""
    held = held_numbers(spec, run.shards)
    matrices = held_numbers(spec, run.shards, True) if run.optimizer == "muon" else 0
    return {"weights": 4 * held, "optimizer": 4 * (2 * held - matrices), "ema": 4 * held if run.ema else 0}


def _parts(gradients: int, **others: int) -> dict[str, int]:
    names = ("activations", "copies", "logits", "gathered", "temporary")
    return {"gradients": gradients} | {name: others.get(name, 0) for name in names}


def _gradients(spec: ModelSpec, run: Training, end: bool) -> int:
    """At the beginning or the end of a step's last backward pass.

    DDP's buckets, of which the gradients are views, are never given back. FSDP2 adds up whole gradients until the last
    forward of a step, when they are sent.
    """
    if run.accumulate > 1:
        return 4 * held_numbers(spec)
    buckets = run.ranks > 1 and run.strategy == "ddp"
    return 4 * held_numbers(spec, run.shards) if end or buckets else 0


def _activations(spec: ModelSpec, run: Training, blocks: int, ids: int) -> int:
    """Of the first `blocks` blocks, of the embeddings' dropout, and of the final norm."""
    kept = [4 * spec.n_embd if run.checkpointing else block_activations(spec, layer, run) for layer in range(blocks)]
    return ids * (sum(kept) + _mask_bytes(run) * spec.n_embd) + _of_final_norm(spec, run, ids)


def _of_final_norm(spec: ModelSpec, run: Training, ids: int) -> int:
    """Its input and its output, which are gone before the blocks' backward passes."""
    return ids * (4 + run.number) * spec.n_embd


def _copies(spec: ModelSpec, run: Training, blocks: int) -> int:
    """Autocast's, of the first blocks and of the head, without the norms; FSDP2 gathers blocks in half precision."""
    head = spec.num_colors * spec.n_embd
    if run.shards > 1:
        return 2 * head if run.half else 0
    return 2 * (sum(block_numbers(spec)[:blocks]) - 2 * blocks * spec.n_embd + head) if run.half else 0


def _ids(spec: ModelSpec, run: Training, length: int | None) -> int:
    return run.rows * (spec.n_positions if length is None else length)


def _gathered(spec: ModelSpec, run: Training, blocks: int, sent: int = 0) -> int:
    """FSDP2's buffers: the root's parameters, which stay until the end, so many blocks, and gradients being sent."""
    if run.shards == 1:
        return 0
    numbers = block_numbers(spec)
    return 4 * (spec.num_parameters - sum(numbers)) + (run.number * blocks + 4 * sent) * max(numbers)


def _loss(spec: ModelSpec, run: Training, length: int | None) -> dict[str, int]:
    ids = _ids(spec, run, length)
    return _parts(
        _gradients(spec, run, end=False),
        activations=_activations(spec, run, spec.n_layer, ids),
        copies=_copies(spec, run, spec.n_layer),  # of checkpointed blocks too: autocast forgets them after the loss
        logits=3 * 4 * ids * spec.num_colors,
        gathered=_gathered(spec, run, 1),
    )


def _temporary(spec: ModelSpec, run: Training, ids: int) -> int:
    """The gradients of the residual stream and of the MLP's inner states, and a matrix's gradient in both types."""
    inner, width = spec.inner_width, spec.n_embd
    matrix = inner * width * (6 if run.half else 4)
    return ids * (2 * inner * run.number + (4 + run.number) * width) + matrix


def _backward(spec: ModelSpec, run: Training, length: int | None, sending: bool = False) -> dict[str, int]:
    """Within the last block; or, of FSDP2, in the one before, when the last one's gradients are on their way."""
    ids, blocks = _ids(spec, run, length), spec.n_layer - sending
    again = ids * block_activations(spec, blocks - 1, run) if run.checkpointing else 0
    return _parts(
        _gradients(spec, run, end=False),
        activations=_activations(spec, run, blocks, ids) - _of_final_norm(spec, run, ids) + again,
        copies=_copies(spec, run, 1 if run.checkpointing else blocks),
        gathered=_gathered(spec, run, 2, sent=int(sending)),
        temporary=_temporary(spec, run, ids),
    )


def _backward_end(spec: ModelSpec, run: Training, length: int | None) -> dict[str, int]:
    """Within the first block, whose own gradients are not there yet where there are no buckets."""
    ids = _ids(spec, run, length)
    to_come = 4 * block_numbers(spec)[0] if run.ranks == run.accumulate == 1 else 0
    return _parts(
        _gradients(spec, run, end=True) - to_come,
        activations=ids * block_activations(spec, 0, run),
        copies=_copies(spec, run, 1),
        gathered=_gathered(spec, run, 2),
        temporary=_temporary(spec, run, ids),
    )


def _update(spec: ModelSpec, run: Training) -> dict[str, int]:
    """Muon's iteration holds about four matrices of the largest kind."""
    matrix = 4 * spec.n_embd * max(spec.inner_width, 3 * spec.n_embd)
    return _parts(_gradients(spec, run, end=True), temporary=4 * matrix if run.optimizer == "muon" else 0)
