"""Fine-tuning: a classifier on a pretrained network, by the same loop (Chen et al. 2020, sections 2.2 and 3.4).

Shape suffixes: B pictures of a forward, V validation pictures, T ids, C outputs of the classifier.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.data.targets import read_targets
from imagegpt.errors import InputError
from imagegpt.metrics import average_precision, evaluate
from imagegpt.sequence import parse_grid
from imagegpt.train.batches import Batch
from imagegpt.train.checks import CHECKPOINTS, lacks_validations
from imagegpt.train.dataset import Dataset, Working, make_ids, open_sources
from imagegpt.train.evaluation import draw_samples, fixed_masks, shares
from imagegpt.train.finetune_recipe import FinetuneRecipe
from imagegpt.train.joint import Criterion, draw_mixtures
from imagegpt.train.labels import MULTI, REGRESSION, SINGLE, Labels, read_labels
from imagegpt.train.network import Network
from imagegpt.train.objectives import EVALUATION_MASKS
from imagegpt.train.processes import Processes
from imagegpt.train.task import Metric
from imagegpt.train.training import Training
from imagegpt.train.transfer import Pretrained, network_of

TOLD = 10  # names in a message
EPOCHS = 20  # at most, where nothing is said: validations that get no better end a run before


class Finetuning:
    """Learn to tell what pictures are labelled with.

    Args:
        recipe: everything that decides the run; what it leaves open follows from the model.

    Raises:
        InputError: no model, no validation pictures to stop by, or options that exclude one another.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self.backbone = Pretrained.open(recipe.head.model)
        self.recipe = _completed(recipe, self.backbone)
        self._made: Network | None = None

    def open(self, out: Path, group: Processes, working: Working | None = None) -> Dataset:
        """The pictures and their labels, which are looked at before ids are made."""
        head, options = self.recipe.head, self.recipe.optimization
        if head.mixup and options.batch // (group.count * options.accumulate) % 2:
            raise InputError("--mixup mixes pairs of pictures: give a --batch that is even in every forward.")
        sources = open_sources(self.recipe.data)
        labels: Labels = group.once(lambda: read_labels(*sources, head.problem, head.least))
        group.once(lambda: _check_same_classes(labels, out, sources[0].path))
        self._made = self._new_network(labels, group)  # before ids are made, since it says what can't be
        dataset = make_ids(sources, self.recipe, self.backbone.codec, out, group, working)
        return replace(dataset, labels=labels, more=partial(self._more, labels, group))

    def _more(self, labels: Labels, group: Processes, batch: Batch) -> dict[str, NDArray[Any]]:
        """A batch's targets, and the parts of its mixtures."""
        found = {"targets": labels.targets(batch.labels or [], batch.numbers)}
        if self.recipe.head.mixup:
            key = (self.recipe.optimization.seed, 4, batch.position)
            whole = draw_mixtures(key, self.recipe.optimization.batch // 2, self.recipe.head.mixup)
            found["mixed_B"] = whole[group.rank * len(batch) : (group.rank + 1) * len(batch)]
        return found

    def network(self, dataset: Dataset, group: Processes) -> Network:
        """The model with a classifier."""
        assert dataset.labels is not None
        made, self._made = self._made, None
        return made or self._new_network(dataset.labels, group)

    def _new_network(self, labels: Labels, group: Processes) -> Network:
        seed = self.recipe.optimization.seed
        made = network_of(self.backbone, self.recipe.head, labels, self.recipe.grid, seed, group.device)
        middle = self.recipe.head.layer is not None and self.recipe.head.layer < made.config.n_layer
        if self.recipe.watch.sample_every and (middle or not hasattr(made.model, "lm_head")):
            raise InputError("The classifier that comes of this run has no head that draws: leave --sample-every out.")
        return made

    def metric(self, dataset: Dataset) -> Metric:
        """Accuracy, of several classes a picture the mean average precision, of numbers the squared error."""
        assert dataset.labels is not None
        return METRICS[dataset.labels.problem]

    def validate(self, training: Training, dataset: Dataset) -> dict[str, Any]:
        """What the classifier is worth on the validation pictures, and nats/token."""
        validation, labels = dataset.validation, dataset.labels
        assert validation is not None and validation.ids_NT is not None and labels is not None
        logits_VC, nats = _predict(training, validation.ids_NT[: len(validation)])
        targets = labels.as_targets(read_targets(validation, labels.classes, labels.problem))
        return {**_worth(logits_VC, targets, labels), "nats_per_token": nats, "pictures": len(validation)}

    def draw(self, folder: Path, path: Path, dataset: Dataset, device: str) -> None:
        """A sheet of samples."""
        draw_samples(folder, path, self.recipe.watch.samples, device)


METRICS = {
    SINGLE: Metric("accuracy", rises=True),
    MULTI: Metric("average_precision", rises=True),
    REGRESSION: Metric("squared_error", rises=False),
}


def _check_same_classes(labels: Labels, out: Path, train: str) -> None:
    """Refuse a folder with the checkpoints of a run whose classifier tells something else."""
    for path in (out / CHECKPOINTS).glob(f"step-*/{checkpoint.CONFIG}"):
        there = checkpoint.read_classes(path.parent)
        if there != labels.classes:
            theirs, ours = (
                ", ".join(names[:TOLD]) + (", ..." if len(names) > TOLD else "") for names in (there, labels.classes)
            )
            raise InputError(
                f"{out} holds a run with the classes {theirs}; those of {train} are {ours}: choose another --out."
            )


def _completed(recipe: FinetuneRecipe, backbone: Pretrained) -> FinetuneRecipe:
    """The recipe with nothing left open."""
    data, options = recipe.data, recipe.optimization
    if lacks_validations(recipe):
        raise InputError(
            "Fine-tuning stops by pictures that it is not trained on: give --validation DATA and leave "
            "--validate-every 0 out, or give --patience 0 --publish last."
        )
    height, width = backbone.grid if data.grid is None else parse_grid(data.grid)
    if options.steps is None and options.epochs is None:
        options = replace(options, epochs=float(EPOCHS))
    return replace(recipe, data=replace(data, grid=f"{height}x{width}"), optimization=options)


def _predict(training: Training, ids_VT: NDArray[Any]) -> tuple[NDArray[np.float32], float | None]:
    """Logits of all pictures, which the processes share, and the mean nats/token, if the network predicts ids."""
    group, masked, part = training.group, training.objective.masked, training.recipe.mask
    found: list[tuple[int, NDArray[np.float32]]] = []
    total, draws = 0.0, True
    with training.evaluating():
        for start, rows_BT, counted in shares(ids_VT, group):
            logits_BC, nats_B = training.outputs(rows_BT)
            found.append((start, logits_BC.cpu().numpy()[:counted]))
            draws = nats_B is not None
            if not draws:
                continue
            if masked:
                copies = [fixed_masks(rows_BT, copy, start, part) for copy in range(EVALUATION_MASKS)]
                nats_B = np.mean([training.outputs(rows_BT, copy)[1].cpu().numpy() for copy in copies], 0)
            total += float(nats_B.sum()) if counted else 0.0
    whole = sorted((piece for pieces in group.gather(found) for piece in pieces), key=lambda piece: piece[0])
    logits_VC = np.concatenate([logits for _, logits in whole])
    [total] = group.total(total)
    return logits_VC, total / len(ids_VT) if draws else None


def _worth(logits_VC: NDArray[np.float32], targets: NDArray[Any], labels: Labels) -> dict[str, Any]:
    loss = Criterion(labels.problem)(torch.from_numpy(logits_VC), torch.from_numpy(targets)).mean().item()
    if labels.problem == REGRESSION:
        return {"squared_error": loss}
    if labels.problem == MULTI:
        return {"average_precision": float(np.nanmean(average_precision(logits_VC, targets))), "class_loss": loss}
    found = evaluate(logits_VC, targets, len(labels.classes))
    top5 = {} if found.top5 is None else {"top5": found.top5}
    return {"accuracy": found.top1, **top5, "class_loss": loss}
