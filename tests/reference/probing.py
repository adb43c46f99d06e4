"""Probes by their definitions, in float64 and by loops."""

from __future__ import annotations

import math

import numpy as np


def logistic_objective(weight, bias, x, y, strength):
    """Mean cross-entropy + strength / 2 * ||W||^2, one picture at a time; weight (C, D)."""
    total = 0.0
    for features, label in zip(x, y, strict=True):
        logits = [float(np.dot(row, features)) + b for row, b in zip(weight, bias, strict=True)]
        highest = max(logits)
        total += highest + math.log(sum(math.exp(logit - highest) for logit in logits)) - logits[label]
    return total / len(y) + strength / 2 * float(np.sum(np.square(weight)))


def by_cosine(x, query):
    """(cosine, row) of all rows, the nearest first; zeros are at a right angle to all."""
    cosines = []
    for row, features in enumerate(x):
        lengths = math.sqrt(sum(f * f for f in features)) * math.sqrt(sum(q * q for q in query))
        cosines.append((sum(f * q for f, q in zip(features, query, strict=True)) / (lengths or 1.0), row))
    return sorted(cosines, key=lambda pair: -pair[0])


def knn_votes(x, y, queries, classes, k, temperature):
    """Wu et al. 2018, section 3.4: a neighbour of cosine s votes for its class with weight exp(s / temperature)."""
    votes = np.zeros((len(queries), classes))
    for number, query in enumerate(queries):
        for cosine, row in by_cosine(x, query)[:k]:
            votes[number, y[row]] += math.exp(cosine / temperature)
    return votes / votes.sum(1, keepdims=True)


def confusion(scores, y, classes):
    counts = [[0] * classes for _ in range(classes)]
    for row, label in zip(scores, y, strict=True):
        counts[label][max(range(classes), key=lambda c: (row[c], -c))] += 1
    return counts


def top(scores, y, n):
    """Part of the labels among the n highest scores; of equal ones the lower class first."""
    right = 0
    for row, label in zip(scores, y, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        right += label in order[:n]
    return right / len(y)
