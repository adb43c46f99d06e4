"""Muon: momentum, orthogonalised (Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks").

torch has one too, but its iteration is fixed to bfloat16, which a CPU without bfloat16 units emulates slowly, and it
knows neither q, k and v in one matrix nor weights that FSDP divides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def orthogonalize(matrix: torch.Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace the singular values of a (rows, columns) matrix by about 1, with the quintic Newton-Schulz iteration.

    Args:
        matrix: of any float dtype, which stays.
        steps: of the iteration.
        dtype: of its products.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices stored input-first (Conv1D). A `parts` of 3 treats q, k and v as three matrices.

    Of weights that FSDP divides, every process orthogonalises the whole update and keeps its own part.

    Args:
        params: matrices, or groups of them with their own `parts`.
        lr: step, in units of the orthogonal update scaled by sqrt(max(1, columns / rows)).
        momentum: Nesterov's.
        weight_decay: decoupled, times `lr`.
        dtype: of the iteration.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closures here
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                step, factor = self._orthogonal(update, group["parts"])
                weight.add_(step, alpha=-group["lr"] * factor)

    def _orthogonal(self, update: torch.Tensor, parts: int) -> tuple[torch.Tensor, float]:
        """The orthogonalised update, divided as the update is, and the factor of its shape."""
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        pieces = [orthogonalize(piece, dtype=self.dtype) for piece in whole.chunk(parts, 1)]
        rows, columns = pieces[0].shape
        step = torch.cat(pieces, 1)
        if isinstance(update, DTensor):
            # Every process has the same whole already: none need be sent.
            step = distribute_tensor(step, update.device_mesh, update.placements, src_data_rank=None)
        return step, max(1.0, columns / rows) ** 0.5
