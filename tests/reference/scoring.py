"""Likelihoods the obvious way: float64, one id after another."""

import numpy as np

from reference.network import logits


def log_probs(logits_K):
    shifted = np.asarray(logits_K, np.float64) - np.max(logits_K)
    return shifted - np.log(np.exp(shifted).sum())


def scores(state, config, ids, sos):
    """Surprise and entropy at each id of one picture, of an autoregressive network."""
    told = logits(state, config, np.concatenate([[sos], ids[:-1]]))
    return _costs([log_probs(row) for row in told], ids)


def pseudo_scores(state, config, ids, groups):
    """The same of a bidirectional network, each group (T,) of ids hidden in turn, the others seen."""
    rows = [None] * len(ids)
    for hidden in groups:
        told = logits(state, config, ids, hidden=hidden, causal=False)
        for place in np.flatnonzero(hidden):
            assert rows[place] is None
            rows[place] = log_probs(told[place])
    return _costs(rows, ids)


def _costs(rows, ids):
    surprise = [-row[id_] for row, id_ in zip(rows, ids, strict=True)]
    entropy = [-sum(np.exp(value) * value for value in row) for row in rows]
    return np.array(surprise), np.array(entropy)
