"""The optimisers of a recipe, and the step size at each update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
    parameters: Mapping[str, torch.nn.Parameter],
    recipe: Optimization,
    dtype: torch.dtype,
    rate: Callable[[str], float] = lambda name: 1.0,
) -> list[torch.optim.Optimizer]:
    """Adam for all, or Muon for the blocks' matrices and Adam for the rest; weights that are frozen have none.

    Each group keeps its highest step size as `peak`, of which `set_rates` takes a part.

    Args:
        parameters: by their names in a checkpoint.
        recipe: kind, step sizes, weight decay.
        dtype: of Muon's iteration.
        rate: factor of the step size, by name.
    """
    named = {name: weight for name, weight in parameters.items() if weight.requires_grad}
    matrices = {name for name, weight in named.items() if _is_for_muon(name, weight)}
    if recipe.optimizer != "muon":
        matrices = set()
    found: list[torch.optim.Optimizer] = []
    groups = [
        {"params": weights, "lr": recipe.muon_lr * factor, **({"parts": 3} if joined else {})}
        for (factor, joined), weights in _grouped(named, matrices, lambda name: (rate(name), "c_attn" in name))
    ]
    if groups:
        found.append(Muon(groups, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, dtype=dtype))
    rest = [name for name in named if name not in matrices]
    groups = [
        {"params": weights, "lr": recipe.lr * factor, **({"weight_decay": 0.0} if flat else {})}
        for (factor, flat), weights in _grouped(named, rest, lambda name: (rate(name), named[name].ndim < 2))
    ]
    if groups:
        found.append(
            torch.optim.AdamW(
                groups,
                lr=recipe.lr,
                betas=(recipe.beta1, recipe.beta2),
                eps=recipe.eps,
                weight_decay=recipe.weight_decay,
                fused=_can_fuse(named.values()),
            )
        )
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def _is_for_muon(name: str, weight: torch.Tensor) -> bool:
    """Whether it is a matrix between states; an adapter's two factors are none."""
    return ".h." in name and weight.ndim == 2 and "lora_" not in name


def _grouped(
    named: Mapping[str, Any], names: Iterable[str], key: Callable[[str], tuple[float, bool]]
) -> list[tuple[tuple[float, bool], list[Any]]]:
    """Weights by what their names have in common, each group in the order of `named`."""
    chosen, groups = set(names), {}
    for name, weight in named.items():
        if name in chosen:
            groups.setdefault(key(name), []).append(weight)
    return list(groups.items())


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Give every group its part of its highest step size."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _can_fuse(weights: Iterable[Any]) -> bool:
    """Whether torch has its one-kernel Adam for where the weights are."""
    return all(weight.device.type in ("cpu", "cuda", "mps") for weight in weights)
