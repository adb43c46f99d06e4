"""Fine-tuning in numpy and float64, slowly: the two losses of each picture (Chen et al. 2020, section 2.2)."""

from __future__ import annotations

import numpy as np

from reference import network
from reference.training import negative_log_likelihood


def class_loss(logits_C, target, problem, weights_C=None, smoothing=0.0):
    """Of one picture: cross-entropy (nats), binary cross-entropies' mean, or squared errors' mean."""
    if problem == "regression":
        return np.mean([(logit - wanted) ** 2 for logit, wanted in zip(logits_C, target, strict=True)])
    if problem == "multi_label_classification":
        losses = []
        for number, (logit, wanted) in enumerate(zip(logits_C, target, strict=True)):
            wanted = wanted * (1 - smoothing) + 0.5 * smoothing
            p = 1 / (1 + np.exp(-logit))
            weight = 1.0 if weights_C is None else weights_C[number]
            losses.append(-weight * wanted * np.log(p) - (1 - wanted) * np.log(1 - p))
        return np.mean(losses)
    log_p = logits_C - np.log(np.exp(logits_C).sum())
    wanted_C = np.full(len(logits_C), smoothing / len(logits_C))
    wanted_C[target] += 1 - smoothing
    return -(wanted_C * log_p).sum() * (1.0 if weights_C is None else weights_C[target])


def class_logits(state, config, content_TD, causal=True, layer=None):
    """(C,): the score of the mean of the states, behind the last norm, or after `layer` blocks behind their own."""
    streams = network.streams(state, config, content_TD, causal)
    if layer is None:
        states_TD = network.normed(state, config, streams[-1])
    else:
        states_TD = network.normed(state, config, streams[layer], "ln_score.weight")
    return np.asarray(state["score.weight"], np.float64) @ states_TD.mean(0)


def inputs(state, ids, causal=True, hidden=None):
    """(T, D): what the network reads of a picture: SOS and all ids but the last, or the ids that are not hidden."""
    sos = len(state["transformer.wte.weight"]) - 1
    return network.content(state, np.array([sos, *ids[:-1]]) if causal else np.asarray(ids), hidden)


def losses(
    state,
    config,
    ids_BT,
    targets,
    problem="single_label_classification",
    *,
    causal=True,
    hidden_BT=None,
    mixed_B=None,
    weights_C=None,
    smoothing=0.0,
    layer=None,
):
    """(L_clf, L_gen), means over the pictures; with `mixed_B` pictures 2 k and 2 k + 1 are mixed."""
    classes, nats = [], []
    for b, ids in enumerate(ids_BT):
        hidden = None if hidden_BT is None else hidden_BT[b]
        part, other = (1.0, b) if mixed_B is None else (float(mixed_B[b]), b + 1 if b % 2 == 0 else b - 1)
        mixed_TD = part * inputs(state, ids, causal) + (1 - part) * inputs(state, ids_BT[other], causal)
        if hidden is not None:
            mixed_TD[hidden] = 0
        logits_C = class_logits(state, config, mixed_TD, causal, layer)
        logits_TK = network.head(
            state, network.normed(state, config, network.streams(state, config, mixed_TD, causal)[-1])
        )
        class_of, nats_of = [], []
        for number in (b, other):
            class_of.append(class_loss(logits_C, targets[number], problem, weights_C, smoothing))
            each = negative_log_likelihood(logits_TK, ids_BT[number])
            if hidden is not None:
                each = each[hidden] if hidden.any() else np.zeros(1)
            nats_of.append(each.mean())
        classes.append(part * class_of[0] + (1 - part) * class_of[1])
        nats.append(part * nats_of[0] + (1 - part) * nats_of[1])
    return float(np.mean(classes)), float(np.mean(nats))
