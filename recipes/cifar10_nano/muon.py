"""Muon: momentum, orthogonalised (Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks").

torch has one too, but its iteration is fixed to bfloat16, which a CPU without bfloat16 units emulates slowly.
"""

from __future__ import annotations

import torch


def orthogonalize(matrix: torch.Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace the singular values of a (rows, columns) matrix by about 1, with the quintic Newton-Schulz iteration."""
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

    Args:
        params: matrices, or groups of them with their own `parts`.
        lr: step, in units of the orthogonal update scaled by sqrt(max(1, columns / rows)).
        momentum: Nesterov's.
        weight_decay: decoupled, times `lr`.
        dtype: of the iteration.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0, dtype=torch.float32) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closures here
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                buffer = state.setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                pieces = [orthogonalize(piece, dtype=self.dtype) for piece in update.chunk(group["parts"], 1)]
                rows, columns = pieces[0].shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(torch.cat(pieces, 1), alpha=-group["lr"] * max(1.0, columns / rows) ** 0.5)
