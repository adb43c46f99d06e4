"""The objective of fine-tuning: L = L_clf + w L_gen (Chen et al. 2020, section 2.2).

Shape suffixes: B batch, T tokens, D width, K colours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from imagegpt.model.inputs import behind_start
from imagegpt.train.labels import MULTI, REGRESSION
from imagegpt.train.objectives import Loss


class Criterion:
    """The classifier's loss of each picture.

    Args:
        problem: transformers' name of what is told.
        weights_C: of the classes; of several classes a picture, of the positive ones.
        smoothing: this part of the target is spread evenly over the classes (Szegedy et al. 2016, section 7).
    """

    def __init__(self, problem: str, weights_C: np.ndarray | None = None, smoothing: float = 0.0) -> None:
        self.problem, self.smoothing = problem, smoothing
        self.weights_C = None if weights_C is None else torch.from_numpy(weights_C)

    def __call__(self, logits_BC: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,) float32; several outputs of a picture are averaged."""
        weights_C = None if self.weights_C is None else self.weights_C.to(logits_BC.device)
        if self.problem == REGRESSION:
            return (logits_BC - targets).square().mean(1)
        if self.problem == MULTI:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
            options: dict[str, Any] = {"reduction": "none", "pos_weight": weights_C}
            return F.binary_cross_entropy_with_logits(logits_BC, targets, **options).mean(1)
        losses_B = F.cross_entropy(logits_BC, targets, reduction="none", label_smoothing=self.smoothing)
        return losses_B if weights_C is None else losses_B * weights_C[targets]


class Joint(Loss):
    """Classify from the mean of the states, and predict ids.

    The network reads what it reads in pretraining: SOS and all ids but the last, or, bidirectional, the ids without
    those that are masked. With mixup (Zhang et al. 2018; of embeddings, as Guo et al. 2019) pictures 2 k and 2 k + 1
    are mixed, and both losses are the mixture of both targets'.

    Args:
        model: with `transformer` and `score`; with `lm_head`, if there is to be a generative loss; with `ln_score` if
            the head reads a middle layer.
        criterion: the classifier's loss.
        generative: w.
        layer: blocks below the head; `None` for all.
    """

    def __init__(self, model: Any, criterion: Criterion, generative: float = 1.0, layer: int | None = None) -> None:
        super().__init__()
        self.model, self.criterion, self.generative, self.layer = model, criterion, generative, layer
        self.masked: bool = not getattr(model.config, "is_causal", True)

    def describe(self, losses: Sequence[float]) -> dict[str, float]:
        """The two losses by their names, the generative one without its weight."""
        told = {"class_loss": losses[0]}
        return {**told, "generative_loss": losses[1] / self.generative} if self.generative else told

    def forward(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        mixed_B: torch.Tensor | None = None,
    ) -> Any:
        """Losses for training, or predictions for evaluation.

        Args:
            ids_BT: (B, T) int64.
            mask_BT: (B, T) bool, True where an id is hidden.
            targets: (B,) int64 of single classes, else (B, C) float32.
            mixed_B: the part of each picture itself in a mixture, float32; the same for both of a pair.

        Returns:
            With targets (2,) float32: L_clf and w L_gen, means over the pictures. Without them logits (B, C) float32
            and nats/token (B,), which are `None` for a network that has no head to predict ids.
        """
        states_BTD, pooled_BD = self._states(ids_BT, mask_BT, mixed_B)
        with torch.autocast(ids_BT.device.type, enabled=False):
            logits_BC = F.linear(pooled_BD.float(), self.model.score.weight.float())
        if targets is None:
            nats_B = self._nats(states_BTD, ids_BT, mask_BT) if hasattr(self.model, "lm_head") else None
            return logits_BC, nats_B
        class_B = _of_both(lambda wanted: self.criterion(logits_BC, wanted), targets, mixed_B)
        if not self.generative:
            return class_B.mean()[None]
        nats_B = _of_both(lambda wanted: self._nats(states_BTD, wanted, mask_BT), ids_BT, mixed_B)
        return torch.stack([class_B.mean(), self.generative * nats_B.mean()])

    def _states(
        self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None, mixed_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the two heads read: (B, T, D), and (B, D)."""
        model = self.model
        inputs_BT = ids_BT if self.masked else behind_start(ids_BT, model.config.vocab_size - 1)
        given: dict[str, torch.Tensor] = {"input_ids": inputs_BT}
        if mask_BT is not None or mixed_B is not None:
            x_BTD = model.get_input_embeddings()(inputs_BT)
            if mixed_B is not None:
                part_B11 = mixed_B[:, None, None]
                x_BTD = part_B11 * x_BTD + (1 - part_B11) * _partners(x_BTD)
            if mask_BT is not None:
                x_BTD = x_BTD.masked_fill(mask_BT[..., None], 0.0)
            given = {"inputs_embeds": x_BTD}
        middle = self.layer is not None
        trunk = model.transformer(**given, use_cache=False, output_hidden_states=middle, return_dict=True)
        if not middle:
            return trunk.last_hidden_state, trunk.last_hidden_state.mean(1)
        return trunk.last_hidden_state, model.ln_score(trunk.hidden_states[self.layer]).mean(1)

    def _nats(self, states_BTD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Mean over the ids of each picture that count, (B,) float32."""
        logits_BTK = self.model.logits(states_BTD)
        losses = F.cross_entropy(logits_BTK.float().flatten(0, 1), ids_BT.flatten(), reduction="none")
        losses_BT = losses.view(ids_BT.shape)
        if mask_BT is None:
            return losses_BT.mean(1)
        return (losses_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def _of_both(loss: Any, wanted: torch.Tensor, mixed_B: torch.Tensor | None) -> torch.Tensor:
    """The losses (B,) of the pictures themselves, or their mixture with those of their partners."""
    if mixed_B is None:
        return loss(wanted)
    return mixed_B * loss(wanted) + (1 - mixed_B) * loss(_partners(wanted))


def _partners(rows: torch.Tensor) -> torch.Tensor:
    """Each row's neighbour in its pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def draw_mixtures(key: tuple[int, ...], pairs: int, alpha: float) -> np.ndarray:
    """The part of each picture in a mixture, of a whole global batch, (2 * pairs,) float32: a number a pair."""
    return np.random.default_rng(key).beta(alpha, alpha, pairs).repeat(2).astype(np.float32)
