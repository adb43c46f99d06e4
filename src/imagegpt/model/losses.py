"""Losses of the heads, in float32 whatever the model's dtype.

Shape suffixes: B batch, T tokens, K colours, C classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

IGNORED_LABEL = -100


def next_ids(labels_BT: torch.Tensor, inputs_BT: torch.Tensor | None, sos: int) -> torch.Tensor:
    """What each position must predict, from `labels` in either of two forms, row by row.

    The documented form repeats the inputs, so the label of the next position is the one to predict. The other form
    is the next ids themselves: the input is SOS and the first ids, the labels are all ids; such a row is taken as it
    stands. Which of them a row has is told by its labels that count: whether more of them, and more than half, are the
    input one position on than are the input of their own position. Where as many are, a colour as the label of SOS
    decides for the next ids.

    Args:
        labels_BT: labels, of the inputs' length.
        inputs_BT: ids; `None` where the caller gave embeddings, and labels are in the documented form.
        sos: the start token's id.

    Returns:
        (B, T) ids; `IGNORED_LABEL` where there is nothing to predict.
    """
    shifted_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)
    if inputs_BT is None:
        return shifted_BT
    first_B, early_BT = labels_BT[:, 0], labels_BT[:, :-1]
    counted_BT = early_BT != IGNORED_LABEL
    next_B = ((early_BT == inputs_BT[:, 1:]) & counted_BT).sum(-1)
    same_B = ((early_BT == inputs_BT[:, :-1]) & counted_BT).sum(-1)
    first_is_next_B = (inputs_BT[:, 0] == sos) & (first_B >= 0) & (first_B < sos)
    as_they_are_B = ((next_B > same_B) & (2 * next_B > counted_BT.sum(-1))) | ((next_B == same_B) & first_is_next_B)
    return torch.where(as_they_are_B[:, None], labels_BT, shifted_BT)


def check_labels(labels: torch.Tensor, given: torch.Tensor, name: str = "labels") -> None:
    """Refuse labels that have not one id for each input.

    Args:
        labels: of a call.
        given: (B, T) ids, or (B, T, D) embeddings.
        name: what the labels are called.

    Raises:
        ValueError: they have another shape.
    """
    if not torch.compiler.is_compiling() and labels.shape != given.shape[:2]:
        shape = tuple(given.shape[:2])
        raise ValueError(f"{name} must have the inputs' shape, {shape}, not {tuple(labels.shape)}.")


def without_padding(targets_BT: torch.Tensor, mask_BS: torch.Tensor | None) -> torch.Tensor:
    """Ignore the targets that are padding, and those that a position of padding would have to predict.

    Args:
        targets_BT: the id after each position.
        mask_BS: 0 for padding; its last T + 1 columns are those of the first position and of each target.
    """
    if mask_BS is None or mask_BS.ndim != 2:
        return targets_BT
    real_BS = mask_BS[:, -targets_BT.shape[1] - 1 :].to(targets_BT.device) != 0
    return targets_BT.masked_fill(~(real_BS[:, :-1] & real_BS[:, 1:]), IGNORED_LABEL)


def id_loss(
    logits_BTK: torch.Tensor, targets_BT: torch.Tensor, sos: int, num_items: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Cross-entropy of ids: the mean over the targets that count, or their sum over `num_items`.

    Args:
        logits_BTK: of the positions that have targets.
        targets_BT: ids; `IGNORED_LABEL` and SOS, which is never predicted, do not count.
        sos: the start token's id, K.
        num_items: how many targets count in all the batches of one update, as transformers' Trainer passes it.

    Returns:
        A float32 scalar in nats; 0, with a gradient of 0, if no target counts.

    Raises:
        ValueError: a target that is no id.
    """
    targets = targets_BT.to(logits_BTK.device).flatten()
    targets = targets.masked_fill(targets == sos, IGNORED_LABEL)
    logits = logits_BTK.float().flatten(0, -2)
    total = _cross_entropy_sum(logits, targets, f"labels must be ids, 0..{sos - 1}, {sos} (SOS) or {IGNORED_LABEL}")
    return _divide(total, (targets != IGNORED_LABEL).sum() if num_items is None else num_items)


def class_loss(
    logits_BC: torch.Tensor, labels: torch.Tensor, problem_type: str, num_items: torch.Tensor | float | None = None
) -> torch.Tensor:
    """The loss of a classifier, as transformers defines it for each `problem_type`.

    Args:
        logits_BC: (B, C).
        labels: (B,) class numbers for "single_label_classification", cross-entropy; (B, C) of 0 and 1 for
            "multi_label_classification", binary cross-entropy; (B,) or (B, C) numbers for "regression", squared
            error.
        problem_type: one of the three.
        num_items: how many labels count in all the batches of one update, as transformers' Trainer passes it.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: an unknown problem type, labels of a wrong shape, or a class that is not there.
    """
    labels, logits = labels.to(logits_BC.device), logits_BC.float()
    if problem_type == "single_label_classification":
        if labels.shape not in (logits.shape[:1], (logits.shape[0], 1)):
            raise ValueError(f"labels must have the shape ({logits.shape[0]},), not {tuple(labels.shape)}.")
        labels = labels.flatten()
        total = _cross_entropy_sum(logits, labels, f"labels must be class numbers, 0..{logits.shape[-1] - 1}")
        counted = (labels != IGNORED_LABEL).sum()
    elif problem_type in ("multi_label_classification", "regression"):
        numbers = problem_type == "regression" and logits.shape[-1] == 1 and labels.shape == logits.shape[:1]
        if not numbers and labels.shape != logits.shape:
            raise ValueError(f"{problem_type} needs labels of shape {tuple(logits.shape)}, not {tuple(labels.shape)}.")
        labels = labels.reshape(logits.shape).float()
        measure = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
        total, counted = measure(logits, labels, reduction="sum"), logits.numel()
    else:
        raise ValueError(
            f"problem_type is {problem_type!r}; it must be single_label_classification, "
            "multi_label_classification or regression."
        )
    return _divide(total, counted if num_items is None else num_items)


def _cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, rule: str) -> torch.Tensor:
    try:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    except IndexError as error:  # only on a CPU, where the check costs nothing
        raise ValueError(f"{rule}; {error}.") from None


def _divide(total: torch.Tensor, items: torch.Tensor | float) -> torch.Tensor:
    """The sum over the items; over 0 of them it is 0."""
    return total / (items.to(total.device).clamp(min=1) if isinstance(items, torch.Tensor) else max(items, 1))
