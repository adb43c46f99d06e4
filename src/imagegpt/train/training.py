"""A network in training: its objective, its optimisers, and one update.

Shape suffixes: B this process's pictures, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from imagegpt.errors import InputError
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.guard import LossScale
from imagegpt.train.network import alike
from imagegpt.train.objectives import Objective, draw_masks, objective_of
from imagegpt.train.optimizers import optimizers_of, set_rates
from imagegpt.train.processes import Processes
from imagegpt.train.strategy import HALF, gather_again, spread, syncing

foreach: Any = torch  # whose functions over lists of tensors have no types


@dataclass(frozen=True)
class Gradient:
    """What an update's forward and backward gave, over all processes.

    Args:
        loss: mean nats per id.
        norm: of the whole gradient, before it is cut.
        overflowed: whether float16's range was left, so that the update is skipped.
        told: what else the objective says of the losses.
    """

    loss: float
    norm: float
    overflowed: bool = False
    told: Mapping[str, float] = field(default_factory=dict)


class Training:
    """A network with all that an update needs.

    Args:
        model: the network; it is moved to the process's device and spread over the processes in place.
        recipe: optimisation, machine.
        group: the processes.
        objective: of this network; default: the generative one that its configuration means.
        rate: factor of the step size, by a parameter's name.

    Raises:
        InputError: a batch that does not divide among processes and forwards, or a precision that can't be had.
    """

    def __init__(
        self,
        model: Any,
        recipe: FlatRecipe,
        group: Processes,
        objective: Objective | None = None,
        rate: Callable[[str], float] = alike,
    ) -> None:
        self.recipe, self.group, self.device = recipe, group, group.device
        self.rows = rows_per_forward(recipe.optimization.batch, group.count, recipe.optimization.accumulate)
        check_precision(recipe.compute.precision, self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if recipe.compute.precision == "tf32" else "highest")
        self._autocast = HALF.get(recipe.compute.precision)
        self.model = model
        self.config: Any = model.config
        torch.nn.Module.to(model, self.device)  # transformers types its own `to` as a method without self
        model.train()
        self.objective: Any = objective or objective_of(model)
        self._ready = spread(self.objective, recipe.compute, group)
        # Taken now: between a forward and its backward FSDP puts others in their places.
        self.parameters: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
        half = torch.bfloat16 if self._autocast else torch.float32
        self.optimizers = optimizers_of(self.parameters, recipe.optimization, half, rate)
        self._position = 0
        self.scale = LossScale(recipe.compute.precision == "fp16")
        self.ema: dict[str, torch.Tensor] | None = None
        if recipe.optimization.ema:
            self.ema = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def gradient(self, ids_BT: np.ndarray, position: int, more: Mapping[str, np.ndarray] | None = None) -> Gradient:
        """Forward and backward of one global batch, of which this process has its rows.

        Args:
            ids_BT: this process's rows, int64.
            position: number of the batch, which decides on masks and dropout.
            more: what else the objective asks for, one row for each picture.
        """
        self._position = position
        if self.recipe.dropout:
            key = [self.recipe.optimization.seed, 2, position, self.group.rank]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        ids = self._put(ids_BT)
        inputs = {name: self._put(rows) for name, rows in (more or {}).items()}
        if self.objective.masked:
            inputs["mask_BT"] = self._put(self._masks(position, *ids_BT.shape))
        parts = self.recipe.optimization.accumulate
        total: Any = 0
        for number in range(parts):
            rows = slice(number * self.rows, (number + 1) * self.rows)
            with syncing(self._ready, last=number == parts - 1):
                with self._casting():
                    losses = self._ready(ids[rows], **{name: value[rows] for name, value in inputs.items()}) / parts
                (losses.sum() * self.scale.factor).backward()
            total = total + losses.detach()
        norm = self._unscaled_norm()
        means = [part / self.group.count for part in self.group.total(*total.reshape(-1).tolist())]
        return Gradient(sum(means), norm, self.scale.overflowed(norm), self.objective.describe(means))

    def step(self, gradient: Gradient, factor: float) -> dict[str, float]:
        """Move the weights by the gradient at hand.

        Args:
            gradient: what `gradient` returned.
            factor: of the step sizes, from the schedule.

        Returns:
            What the objective says of its own part in it.
        """
        told: dict[str, float] = {}
        if not gradient.overflowed:
            limit = self.recipe.optimization.clip
            if limit:
                norm = torch.tensor(gradient.norm, device=self.device)
                clip_grads_with_norm_(self.parameters.values(), limit, norm)  # pyright: ignore[reportPrivateImportUsage]
            set_rates(self.optimizers, factor)
            for optimizer in self.optimizers:
                optimizer.step()
            told = self.objective.settle((self.recipe.optimization.seed, 5, self._position))
            self._average()
        self.forget()
        return told

    def forget(self) -> None:
        """Drop the gradient at hand, and what the objective kept."""
        self.objective.forget()
        for weight in self.parameters.values():
            weight.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it the network has the averaged weights, if there are any, no dropout, and keeps no gradients."""
        weights = list(self.parameters.values())
        kept = None
        self.model.eval()
        with torch.no_grad():
            if self.ema is not None:
                kept = [weight.detach().clone() for weight in weights]
                copy_all(weights, self.ema.values())
            try:
                yield
            finally:
                gather_again(self.objective)
                if kept is not None:
                    copy_all(weights, kept)
                self.model.train()

    def loss(self, ids_BT: np.ndarray, masks_BT: np.ndarray | None = None) -> float:
        """This process's loss of some pictures, for evaluation."""
        return self.outputs(ids_BT, masks_BT).item()

    def outputs(self, ids_BT: np.ndarray, masks_BT: np.ndarray | None = None) -> Any:
        """What the objective gives for some pictures, for evaluation."""
        masks = None if masks_BT is None else self._put(masks_BT)
        with self._casting():
            return self.objective(self._put(ids_BT), masks)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The weights that count: averaged ones, where there are."""
        return self.parameters if self.ema is None else self.ema

    def _masks(self, position: int, rows: int, length: int) -> np.ndarray:
        key = (self.recipe.optimization.seed, 1, position)
        whole = draw_masks(key, rows * self.group.count, length, self.recipe.mask)
        return whole[self.group.rank * rows : (self.group.rank + 1) * rows]

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _casting(self) -> Any:
        return torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None)

    @torch.no_grad()
    def _unscaled_norm(self) -> float:
        gradients = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        if self.scale.used:
            foreach._foreach_mul_(gradients, 1 / self.scale.factor)
        norm = get_total_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    @torch.no_grad()
    def _average(self) -> None:
        if self.ema is not None:
            weights = [weight.detach() for weight in self.parameters.values()]
            foreach._foreach_lerp_(list(self.ema.values()), weights, 1 - self.recipe.optimization.ema)


def copy_all(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    """Copy tensors into others; torch's own function for that knows none that FSDP divides."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def rows_per_forward(batch: int, processes: int, accumulate: int) -> int:
    """Pictures of one forward of one process.

    Raises:
        InputError: the batch does not divide; the message names the nearest that do.
    """
    share = processes * accumulate
    if batch % share:
        near = sorted({max(1, batch // share) * share, -(-batch // share) * share})
        raise InputError(
            f"A batch of {batch} does not divide among {processes} processes x {accumulate} forwards: "
            f"take --batch {' or '.join(map(str, near))}, or another --accumulate."
        )
    return batch // share


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device lacks."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; a CPU computes in bf16 or fp32.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("This GPU has no bfloat16 units: take --precision fp16.")
