"""Training in numpy and float64, slowly: losses (Chen et al. 2020, section 2.1), gradients, updates, step sizes."""

from __future__ import annotations

import math

import numpy as np

from reference import network


def negative_log_likelihood(logits_TK, ids_T):
    """Nats of each id: log sum exp of its logits, minus its own."""
    highest = logits_TK.max(1)
    log_sum = highest + np.log(np.exp(logits_TK - highest[:, None]).sum(1))
    return np.array([log_sum[t] - logits_TK[t, color] for t, color in enumerate(ids_T)])


def ar_loss(state, config, ids_BT):
    """All T ids of each picture, the first from SOS alone."""
    sos = len(state["transformer.wte.weight"]) - 1
    losses = []
    for ids in ids_BT:
        before = np.array([sos, *ids[:-1]])
        losses.append(negative_log_likelihood(network.logits(state, config, before), ids).mean())
    return float(np.mean(losses))


def bert_loss(state, config, ids_BT, mask_BT):
    """The masked ids of each picture, from the content of the others and all positions; 0 where none is masked."""
    losses = []
    for ids, hidden in zip(ids_BT, mask_BT, strict=True):
        nats = negative_log_likelihood(network.logits(state, config, ids, hidden, causal=False), ids)
        losses.append(nats[hidden].mean() if hidden.any() else 0.0)
    return float(np.mean(losses))


def slope(loss, state, name, index, h=1e-5):
    """d loss / d one weight by central differences; `loss` is a function of the state."""
    found = []
    for step in (h, -h):
        moved = {key: np.array(value, np.float64) for key, value in state.items()}
        moved[name][index] += step
        found.append(loss(moved))
    return (found[0] - found[1]) / (2 * h)


def adamw(weight, gradients, lrs, beta1, beta2, eps, weight_decay):
    """The weight after an update by each gradient (Loshchilov and Hutter 2019, algorithm 2)."""
    w, m, v = (np.array(start, np.float64) for start in (weight, 0 * weight, 0 * weight))
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        w = w - lr * weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


def orthogonalized(matrix, steps=5):
    """Newton-Schulz, by its polynomial on the singular values: 3.4445 s - 4.7750 s^3 + 2.0315 s^5, again and again."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


def muon(weight, gradients, lrs, parts=1, momentum=0.95, weight_decay=0.0):
    """The weight after an update by each gradient; `parts` matrices lie side by side in it."""
    w, m = np.array(weight, np.float64), np.zeros(weight.shape)
    for g, lr in zip(gradients, lrs, strict=True):
        m = momentum * m + (1 - momentum) * g
        update = momentum * m + (1 - momentum) * g  # Nesterov's
        w = w * (1 - lr * weight_decay)
        for part in np.split(np.arange(w.shape[1]), parts):
            wide = max(1.0, len(part) / w.shape[0])
            w[:, part] -= lr * math.sqrt(wide) * orthogonalized(update[:, part])
    return w


def cosine(step, steps, warmup):
    """Up in a straight line to 1 in `warmup` updates, then half a cosine down to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return math.cos(math.pi / 2 * (step - warmup) / (steps - warmup)) ** 2


def linear(step, steps, warmup, decay):
    """Up in a straight line, constant, and in the last `decay` of all updates down in a straight line to 0."""
    up = (step + 1) / warmup if step < warmup else 1.0
    down = (steps - step) / (decay * steps) if step > steps - decay * steps else 1.0
    return min(up, down)
