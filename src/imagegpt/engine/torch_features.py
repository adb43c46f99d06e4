"""Features in torch: the model's own blocks up to the deepest layer that is asked for, on any device, in any dtype.

Shape suffixes: B pictures, T ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.engine.features import Pool
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

CPU_IDS = 2048  # run together: states of more leave the caches, and are given back to the system and fetched again
GPU_IDS = 65536
Network = ImageGPTForCausalImageModeling | ImageGPTForImageClassification


class TorchFeatures:
    """Features of chosen layers; see `imagegpt.engine.features.Extractor`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
        layers: layers, from 0 to the number of blocks.
        pool: "mean" or "none".
    """

    def __init__(self, model: Network, layers: Sequence[int], pool: Pool) -> None:
        self.model, self.layers, self.pool = model, list(layers), pool
        self.rows = rows_of(model)

    @torch.inference_mode()
    def __call__(self, inputs_BT: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run pictures: for each layer (B, D), or (B, T, D) without pooling."""
        trunk, taps = self.model.transformer, {}
        norms = [*(block.ln_1 for block in trunk.h), trunk.ln_f]
        x_BTD = trunk.wte(torch.from_numpy(inputs_BT).to(self.model.device)) + trunk.wpe.weight
        for layer in range(max(self.layers) + 1):
            if layer:
                # No mask: plainly causal, or bidirectional if the model is.
                x_BTD, *_ = trunk.h[layer - 1](x_BTD)
            if layer in self.layers:
                normed = norms[layer](x_BTD).float()
                taps[layer] = (normed.mean(1) if self.pool == "mean" else normed).cpu().numpy()
        return [taps[layer] for layer in self.layers]


def rows_of(model: Network) -> int:
    """How many pictures a network shall run together."""
    together = CPU_IDS if model.device.type == "cpu" else GPU_IDS
    return max(1, together // model.config.n_positions)
