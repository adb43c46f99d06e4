"""The likelihood of pictures in torch, on any device and in any dtype; its arithmetic is float32.

Shape suffixes: B pictures, S rows of a part, T ids, D width, K colours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.engine.torch_features import Network, rows_of
from imagegpt.model.heads import ImageGPTForCausalImageModeling

CPU_LOGITS, GPU_LOGITS = 1 << 19, 1 << 27  # at a time: on a CPU they stay in the caches


class TorchScorer:
    """What each id costs; see `imagegpt.engine.score.Scorer`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in; a network with a class head may
            bring its other head.
        head_KD: that draws; default: the model's own.
    """

    def __init__(self, model: Network, head_KD: NDArray[np.float32] | None = None) -> None:
        self.model, self.rows = model, rows_of(model)
        if head_KD is None:
            assert isinstance(model, ImageGPTForCausalImageModeling)
            self._logits = model.logits
        else:
            head_DK = torch.from_numpy(np.array(head_KD)).to(model.device, model.dtype).T
            self._logits = lambda states_SD: states_SD @ head_DK
        self._logits_at_a_time = CPU_LOGITS if model.device.type == "cpu" else GPU_LOGITS

    @torch.inference_mode()
    def __call__(
        self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """-log p of each id, and the entropy of its place, (B, T) nats each."""
        inputs, targets = (torch.from_numpy(rows).to(self.model.device) for rows in (inputs_BT, ids_BT))
        states_BTD = self._states(inputs)
        step = max(1, self._logits_at_a_time // self.model.config.spec.num_colors)
        parts = zip(states_BTD.flatten(0, 1).split(step), targets.flatten().split(step), strict=True)
        found = [torch.cat(each) for each in zip(*(self._part(*part) for part in parts), strict=True)]
        surprise_BT, entropy_BT = (each.view(targets.shape).cpu().numpy() for each in found)
        return surprise_BT, entropy_BT

    def _states(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        trunk, x_BTD = self.model.transformer, embedded(self.model, inputs_BT)
        for block in trunk.h:
            x_BTD, *_ = block(x_BTD)  # no mask: plainly causal, or bidirectional if the model is
        return trunk.ln_f(x_BTD)

    def _part(self, states_SD: torch.Tensor, ids_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs_SK = self._logits(states_SD).float().log_softmax(1)
        surprise_S = -log_probs_SK.gather(1, ids_S[:, None])[:, 0]
        # A colour that can't be has probability 0 and a log of minus infinity, whose product is no number.
        return surprise_S, -(log_probs_SK.exp() * log_probs_SK.clamp(min=torch.finfo(torch.float32).min)).sum(1)


def embedded(model: Network, inputs_BT: torch.Tensor) -> torch.Tensor:
    """What the first block reads of inputs, (B, T, D), from the first position on.

    To a bidirectional network SOS stands for a hidden id, of which nothing but its position is seen.
    """
    trunk = model.transformer
    x_BTD = trunk.wte(inputs_BT)
    if not getattr(model.config, "is_causal", True):
        x_BTD = x_BTD.masked_fill((inputs_BT == model.config.spec.sos)[..., None], 0)
    return x_BTD + trunk.wpe.weight[: inputs_BT.shape[1]]
