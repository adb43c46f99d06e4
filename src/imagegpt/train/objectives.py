"""What is learnt: each id from those before it (AR), or masked ids from all others (BERT).

Shape suffixes: B batch, T tokens, D width, K colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from imagegpt.errors import InputError
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.model.inputs import behind_start

EVALUATION_MASKS = 5  # of BERT's validation (Chen et al. 2020, section 3.3)


class Objective(Protocol):
    """A loss of a batch, a torch module: what the loop calls.

    Attributes:
        model: the network.
        masked: whether it hides ids, so that it wants to be told which.
    """

    model: Any
    masked: bool

    def __call__(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None, **more: Any) -> Any:
        """The mean over the pictures of the mean over their ids that count: a float32 scalar in nats.

        An objective of several losses gives one number for each, whose sum counts; `more` are its own inputs, one row
        for each picture.
        """
        ...

    def describe(self, losses: Sequence[float]) -> dict[str, float]:
        """What a log says of an update's losses besides their sum."""
        ...

    def settle(self, key: tuple[int, ...]) -> dict[str, float]:
        """Called once an update, after the weights have moved; random numbers are drawn by `key`.

        What it returns goes into the log.
        """
        ...

    def forget(self) -> None:
        """Drop what was kept of an update's forwards, which is over, or was given up."""
        ...


class Loss(nn.Module):
    """What most objectives do: one loss, by gradients alone."""

    def describe(self, losses: Sequence[float]) -> dict[str, float]:
        """Nothing: there is one loss."""
        return {}

    def settle(self, key: tuple[int, ...]) -> dict[str, float]:
        """Nothing: gradients have moved all there is."""
        return {}

    def forget(self) -> None:
        """Nothing was kept."""


class Autoregressive(Loss):
    """The negative log-likelihood of all T ids of a picture, SOS first (Chen et al. 2020, section 2.1).

    Args:
        model: the network.
    """

    masked = False

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """nats/token of ids (B, T) int64; there is no mask."""
        inputs_BT = behind_start(ids_BT, self.model.config.vocab_size - 1)
        options: Any = {"shift_labels": ids_BT}
        return self.model(inputs_BT, use_cache=False, return_dict=True, **options).loss


class Masked(Loss):
    """BERT: some ids' embeddings are zeroed, their positions stay, and the loss is theirs (section 2.1).

    There is no SOS and attention is bidirectional. The loss is the mean over the masked ids of each picture, then over
    the pictures; a picture without any counts 0.

    Args:
        model: the network; its configuration says `is_causal = False`.
    """

    masked = True

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        super().__init__()
        if getattr(model.config, "is_causal", True):
            raise InputError("The masked objective needs a bidirectional model: config.is_causal = False.")
        self.model = model

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """nats per masked id; `mask_BT` (B, T) bool is True where an id is hidden."""
        assert mask_BT is not None
        embedded_BTD = self.model.get_input_embeddings()(ids_BT).masked_fill(mask_BT[..., None], 0.0)
        logits_BTK = self.model(inputs_embeds=embedded_BTD, use_cache=False, return_dict=True).logits
        losses_BT = F.cross_entropy(logits_BTK.float().transpose(1, 2), ids_BT, reduction="none")
        return ((losses_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).mean()


def objective_of(model: ImageGPTForCausalImageModeling) -> Autoregressive | Masked:
    """The objective that a network's configuration means: causal or bidirectional."""
    return Autoregressive(model) if getattr(model.config, "is_causal", True) else Masked(model)


def draw_masks(key: tuple[int, ...], rows: int, length: int, part: float) -> NDArray[np.bool_]:
    """Which ids of a global batch are hidden: each with probability `part` by itself, (rows, length) bool.

    Args:
        key: decides; the same whatever the number of processes.
        rows: pictures of the global batch.
        length: T.
        part: 0.15 in the paper.
    """
    return np.random.default_rng(key).random((rows, length)) < part
