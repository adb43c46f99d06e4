"""What a classifier that has kept its other head still knows of pictures: the likelihood of their ids, in torch.

Shape suffixes: B pictures, T ids, K colours, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - its usual name

from imagegpt.engine.torch_features import rows_of
from imagegpt.model.heads import ImageGPTForImageClassification


class TorchLikelihood:
    """nats/token of pictures.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
        head_KD: the head that draws.
    """

    def __init__(self, model: ImageGPTForImageClassification, head_KD: NDArray[np.float32]) -> None:
        self.model, self.rows = model, rows_of(model)
        self.head_KD = torch.from_numpy(np.array(head_KD)).to(model.device, model.dtype)

    @torch.inference_mode()
    def __call__(
        self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64], counted_BT: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """The mean negative log-likelihood of each picture's ids, (B,), a few rows at a time.

        Args:
            inputs_BT: what the network reads.
            ids_BT: what it must say at each place.
            counted_BT: where that counts; default: everywhere. A picture of which nothing counts has 0.
        """
        counted_BT = np.ones(ids_BT.shape, bool) if counted_BT is None else counted_BT
        parts = [slice(start, start + self.rows) for start in range(0, len(ids_BT), self.rows)]
        losses_BT = np.concatenate([self._losses(inputs_BT[part], ids_BT[part]) for part in parts])
        return (losses_BT * counted_BT).sum(1) / np.maximum(counted_BT.sum(1), 1)

    def _losses(self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64]) -> NDArray[np.float64]:
        inputs, targets = (torch.from_numpy(rows).to(self.model.device) for rows in (inputs_BT, ids_BT))
        states_BTD = self.model.transformer(inputs, use_cache=False, return_dict=True).last_hidden_state
        logits_BTK = (states_BTD @ self.head_KD.T).float()
        losses_BT = F.cross_entropy(logits_BTK.transpose(1, 2), targets, reduction="none")
        return losses_BT.cpu().double().numpy()
