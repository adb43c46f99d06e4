"""The optimisers of a recipe, and the step size at each update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from imagegpt.errors import InputError
from imagegpt.train.muon import Muon
from imagegpt.train.recipe import Optimization


@dataclass(frozen=True)
class Schedule:
    """The factor of the step sizes at each update: a linear warm-up, then the recipe's form.

    Args:
        steps: updates in all.
        warmup: updates until the full step.
        form: "cosine" to 0 (the paper's), "linear" (constant, then linear to 0) or "constant".
        decay: last part of the run, of "linear".

    Example:
        >>> [round(Schedule(8, 2, "cosine").factor(step), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """

    steps: int
    warmup: int
    form: str = "cosine"
    decay: float = 0.4

    def factor(self, step: int) -> float:
        """Of update number `step`, from 0."""
        if step < self.warmup:
            return min((step + 1) / self.warmup, self._after(step))
        return self._after(step)

    def _after(self, step: int) -> float:
        if self.form == "linear" and self.decay > 0:
            return min(1.0, (self.steps - step) / (self.decay * self.steps))
        if self.form == "cosine" and step > self.warmup:
            return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
        return 1.0


def schedule_of(recipe: Optimization, per_epoch: int) -> Schedule:
    """The schedule of a recipe.

    Args:
        recipe: steps or epochs, warm-up, form.
        per_epoch: updates of an epoch.

    Raises:
        InputError: neither steps nor epochs.
    """
    if recipe.steps is None and recipe.epochs is None:
        raise InputError("Give --steps or --epochs: how long to train.")
    steps = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * per_epoch))
    warmup = min(per_epoch, steps // 10) if recipe.warmup is None else recipe.warmup
    if 0 < warmup < 1:
        warmup = warmup * steps
    return Schedule(steps, round(warmup), recipe.schedule, recipe.decay)


def optimizers_of(
    parameters: Mapping[str, torch.nn.Parameter], recipe: Optimization, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Adam for all, or Muon for the blocks' matrices and Adam for the rest.

    Each group keeps its highest step size as `peak`, of which `set_rates` takes a part.

    Args:
        parameters: by their names in a checkpoint.
        recipe: kind, step sizes, weight decay.
        dtype: of Muon's iteration.
    """
    named = [(name, weight) for name, weight in parameters.items() if weight.requires_grad]
    matrices = [(name, weight) for name, weight in named if ".h." in name and weight.ndim == 2]
    found: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        joined = [weight for name, weight in matrices if "c_attn" in name]
        single = [weight for name, weight in matrices if "c_attn" not in name]
        groups = [{"params": joined, "parts": 3}, {"params": single}]
        found.append(Muon(groups, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, dtype=dtype))
        taken = {name for name, _ in matrices}
        named = [(name, weight) for name, weight in named if name not in taken]
    flat = [weight for _, weight in named if weight.ndim < 2]
    deep = [weight for _, weight in named if weight.ndim >= 2]
    groups = [{"params": deep}, {"params": flat, "weight_decay": 0.0}]
    betas, fused = (recipe.beta1, recipe.beta2), _can_fuse(named)
    found.append(
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=recipe.lr,
            betas=betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    )
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Give every group its part of its highest step size."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _can_fuse(named: list[tuple[str, Any]]) -> bool:
    """Whether torch has its one-kernel Adam for where the weights are."""
    return all(weight.device.type in ("cpu", "cuda", "mps") for _, weight in named)
