"""Generation by hand: plain loops that read every sequence anew, without caches, for `generate` to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling

K, T, LAYERS, HEADS, WIDTH = 16, 64, 2, 2, 32  # of the fixture tiny_model too
SOS = K


def make(seed: int = 0, **numbers: Any) -> ImageGPTForCausalImageModeling:
    """A tiny model with large weights, of tiny_model's numbers unless told otherwise."""
    sizes = {"vocab_size": K + 1, "n_positions": T, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**{**sizes, **numbers})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("ln_" in name))
    return model


def prompt(rows: int = 2, colors: int = 6, seed: int = 1) -> torch.Tensor:
    """(rows, 1 + colors) ids: SOS and random colours."""
    ids = torch.randint(K, (rows, colors), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.full((rows, 1), SOS), ids], 1)


def left_padded(*rows: torch.Tensor, filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, each (1, length), as one batch with padding in front; and its mask."""
    longest = max(row.shape[1] for row in rows)
    pads = [(longest - row.shape[1], 0) for row in rows]
    ids = [torch.nn.functional.pad(row, pad, value=filler) for row, pad in zip(rows, pads, strict=True)]
    mask = [torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
    return torch.cat(ids), torch.cat(mask)


@torch.no_grad()
def greedy(model: Any, ids: torch.Tensor, new: int, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest id each time: (B, length + new) ids, and the (B, new, K) logits that led to them."""
    logits = []
    for _ in range(new):
        logits.append(model(ids, use_cache=False, **inputs).logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return ids, torch.stack(logits, 1)


@torch.no_grad()
def sample(model: Any, ids: torch.Tensor, new: int, warp: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Ids drawn from the softmax of warped logits, from torch's global seed."""
    for _ in range(new):
        probs = warp(model(ids, use_cache=False).logits[:, -1]).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1)], 1)
    return ids


@torch.no_grad()
def beams(model: Any, ids: torch.Tensor, new: int, width: int, **inputs: Any) -> list[tuple[float, list[int]]]:
    """Beam search for one row of ids: (sum of log-probabilities, all ids) of the final beams, the best first."""
    running = [(0.0, ids[0].tolist())]
    for _ in range(new):
        candidates = []
        for total, row in running:
            log_p = model(torch.tensor([row]), use_cache=False, **inputs).logits[0, -1].log_softmax(-1).tolist()
            candidates += [(total + value, [*row, color]) for color, value in enumerate(log_p)]
        running = sorted(candidates, reverse=True)[:width]
    return running
