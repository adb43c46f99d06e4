"""A slow, obvious sampler: one row at a time, the whole prefix recomputed for each id, plain Python numbers."""

from __future__ import annotations

import math

import torch


def choose(logits, temperature, top_k, top_p, uniform, min_p=None):
    """The next id from a list of logits; the same rules as `imagegpt.engine.warp.Sampling`, written out."""
    ids = range(len(logits))
    if temperature == 0:
        return max(ids, key=lambda i: (logits[i], -i))
    kept = set(ids)
    if top_k is not None and top_k < len(logits):
        kth = sorted(logits, reverse=True)[top_k - 1]
        kept = {i for i in ids if logits[i] >= kth}
    highest = max(logits)
    weights = [math.exp((logits[i] - highest) / temperature) if i in kept else 0.0 for i in ids]
    if top_p is not None:
        total, reached, best = math.fsum(weights), 0.0, set()
        for i in sorted(ids, key=lambda i: (-weights[i], i)):
            if reached >= top_p:
                break
            best.add(i)
            reached += weights[i] / total
        weights = [weights[i] if i in best else 0.0 for i in ids]
    if min_p is not None:
        weights = [weight if weight >= min_p * max(weights) else 0.0 for weight in weights]
    target, reached = uniform * math.fsum(weights), 0.0
    for i in ids:
        reached += weights[i]
        if reached > target:
            return i
    raise AssertionError("a number this close to 1 is a matter of rounding; give one below")


@torch.no_grad()
def sample(model, prompts, noise_BT, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Complete each row's prompt (a list of ids); lists of n_positions ids."""
    sos, length = model.config.vocab_size - 1, model.config.n_positions
    rows = []
    for prompt, noise in zip(prompts, noise_BT, strict=True):
        row = [int(i) for i in prompt]
        for position in range(len(row), length):
            logits = model(torch.tensor([[sos, *row]]), use_cache=False).logits[0, -1].double().tolist()
            row.append(choose(logits, temperature, top_k, top_p, float(noise[position]), min_p))
        rows.append(row)
    return rows
