"""Where a classifier may begin: at the linear probe of the states that it reads (Kumar et al. 2022, LP-FT).

A head that begins at 0 sends gradients through the network that say nothing yet, and features are lost while it learns;
one that knows the classes as well as a probe does moves features less and needs fewer pictures.

Shape suffixes: N pictures, D width, C outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor, distribute_tensor

from imagegpt.train.batches import Batches
from imagegpt.train.dataset import Dataset, Working
from imagegpt.train.evaluation import shares
from imagegpt.train.joint import Criterion
from imagegpt.train.training import Training

STRENGTH = 1e-3  # of the squared weights, of standardised states
STEPS = 300  # at most, of L-BFGS


def fit_head(
    states_ND: NDArray[np.float32], targets: NDArray[np.float32] | NDArray[np.int64], outputs: int, criterion: Criterion
) -> NDArray[np.float32]:
    """The weights (C, D) of a linear classifier without bias: mean loss + strength / 2 times the squared weights.

    Args:
        states_ND: pooled states.
        targets: as the criterion takes them.
        outputs: C.
        criterion: the loss.
    """
    x_ND = torch.from_numpy(states_ND)
    scale_D = x_ND.std(0).clamp(min=1e-6)
    x_ND, wanted = x_ND / scale_D, torch.from_numpy(targets)
    weight_CD = torch.zeros(outputs, x_ND.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight_CD], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = criterion(x_ND @ weight_CD.T, wanted).mean() + STRENGTH / 2 * weight_CD.square().sum()
        value.backward()
        return value

    solver.step(loss)  # pyright: ignore[reportArgumentType]
    return (weight_CD.detach() / scale_D).numpy()


def begin_at_probe(training: Training, dataset: Dataset, count: int, working: Working | None = None) -> None:
    """Give the classifier the weights of a probe, fitted to the first pictures as training will see them.

    Args:
        training: whose objective is joint; the processes share the work.
        dataset: labelled pictures.
        count: of pictures; at most an epoch's.
        working: told of what takes time.
    """
    group, labels = training.group, dataset.labels
    assert labels is not None
    options = training.recipe.optimization
    batches = dataset.batches(training.recipe, None)
    ids_NT, targets = _first(batches, dataset, min(count, batches.per_epoch * options.batch), options.batch)
    found: list[tuple[int, NDArray[np.float32]]] = []
    with training.evaluating():
        for start, rows_BT, counted in shares(ids_NT, group):
            found.append((start, training.outputs(rows_BT)[2].float().cpu().numpy()[:counted]))
            if working is not None:
                working("states for the classifier's start", min(start + len(rows_BT), len(ids_NT)), len(ids_NT))
    whole = sorted((piece for pieces in group.gather(found) for piece in pieces), key=lambda piece: piece[0])
    states_ND = np.concatenate([states_BD for _, states_BD in whole])
    criterion = training.objective.criterion
    weight_CD = group.once(lambda: fit_head(states_ND, targets, len(labels.classes), criterion))
    _put(training.parameters["score.weight"], torch.from_numpy(weight_CD))
    if training.ema is not None:
        _put(training.ema["score.weight"], torch.from_numpy(weight_CD))


def _first(batches: Batches, dataset: Dataset, count: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and targets of the first pictures."""
    assert dataset.labels is not None
    parts = [batches.at(position) for position in range(-(-count // size))]
    ids_NT = np.concatenate([part.ids_BT for part in parts])[:count]
    targets = [dataset.labels.targets(part.labels or [], part.numbers) for part in parts]
    return ids_NT, np.concatenate(targets)[:count]


@torch.no_grad()
def _put(weight: torch.Tensor, whole: torch.Tensor) -> None:
    whole = whole.to(weight.device)
    if isinstance(weight, DTensor):
        whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
    weight.copy_(whole)
