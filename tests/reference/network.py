"""ImageGPT in numpy and float64, one head and one query at a time, from a checkpoint's names (Chen et al. 2020)."""

from __future__ import annotations

import math

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": silu,
    "swish": silu,
    "relu": lambda x: np.maximum(x, 0),
}


def norm(x, weight, eps):
    """No centring, no bias."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def attention(q_TH, k_TH, v_TH, scale, causal=True):
    """One head: id t sees ids 0..t, or all of them."""
    out = np.empty_like(v_TH)
    for t in range(len(q_TH)):
        seen = t + 1 if causal else len(k_TH)
        scores = k_TH[:seen] @ q_TH[t] * scale
        weights = np.exp(scores - scores.max())
        out[t] = weights @ v_TH[:seen] / weights.sum()
    return out


def content(state, ids, hidden=None):
    """(T, D) embeddings of ids without their positions; 0 where `hidden` is True."""
    rows = np.asarray(state["transformer.wte.weight"], np.float64)[ids]
    if hidden is not None:
        rows[hidden] = 0
    return rows


def streams(state, config, content_TD, causal=True):
    """L + 1 arrays (T, D): what the first block reads, and what it and each one after it has added to."""
    w = {name: np.asarray(value, np.float64) for name, value in state.items()}
    eps = config["layer_norm_epsilon"]
    x = content_TD + w["transformer.wpe.weight"][: len(content_TD)]
    found = [x]
    head_width = x.shape[1] // config["n_head"]
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        scale = 1 / math.sqrt(head_width) if config["scale_attn_weights"] else 1.0
        if config["scale_attn_by_inverse_layer_idx"]:
            scale /= layer + 1
        normed = norm(x, w[at + "ln_1.weight"], eps)
        q, k, v = np.split(normed @ w[at + "attn.c_attn.weight"] + w[at + "attn.c_attn.bias"], 3, axis=1)
        heads = q.shape[1] // head_width  # those that are not pruned
        parts = [slice(n * head_width, (n + 1) * head_width) for n in range(heads)]
        attended = np.concatenate(
            [attention(q[:, part], k[:, part], v[:, part], scale, causal) for part in parts], axis=1
        )
        x = x + attended @ w[at + "attn.c_proj.weight"] + w[at + "attn.c_proj.bias"]
        inner = norm(x, w[at + "ln_2.weight"], eps) @ w[at + "mlp.c_fc.weight"] + w[at + "mlp.c_fc.bias"]
        inner = ACTIVATIONS[config["activation_function"]](inner)
        x = x + inner @ w[at + "mlp.c_proj.weight"] + w[at + "mlp.c_proj.bias"]
        found.append(x)
    return found


def normed(state, config, x_TD, name="transformer.ln_f.weight"):
    """Behind one of the state's norms."""
    return norm(x_TD, np.asarray(state[name], np.float64), config["layer_norm_epsilon"])


def head(state, states_TD):
    """(T, K) logits; a head that is the embedding has none for SOS."""
    tied = np.asarray(state["transformer.wte.weight"], np.float64)[:-1]
    return states_TD @ np.asarray(state.get("lm_head.weight", tied), np.float64).T


def logits(state, config, ids, hidden=None, causal=True):
    """(T, K) logits of one row of ids; `state` maps a checkpoint's names to arrays.

    Where `hidden` is True an id has no content, only its position.
    """
    last = streams(state, config, content(state, ids, hidden), causal)[-1]
    return head(state, normed(state, config, last))
