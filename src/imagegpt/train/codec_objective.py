"""What a VQ-VAE learns: to give pictures back through its codes (van den Oord et al. 2017, equation 3).

The codes are moving averages (appendix A.1): what the batches put into each is summed up while an update's forwards
run, over all processes, and the codes move once, after the weights.

Shape suffixes: B pictures, T pixels of a picture as ids, HW its pixels, C channels, V vectors, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812 - its usual name

from imagegpt.codec.network import WHITE
from imagegpt.codec.quality import perplexity
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.train.codec_recipe import Codes
from imagegpt.train.objectives import Loss
from imagegpt.train.processes import Processes

LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss}


class Reconstruction(Loss):
    """The losses of a VQ-VAE: pixels, edges, commitment.

    Args:
        model: the network.
        codes: weights and kind of the losses.
        size: (height, width) of the pictures in pixels.
        group: the processes, which share the codes.
    """

    masked = False

    def __init__(self, model: VQVAE, codes: Codes, size: tuple[int, int], group: Processes) -> None:
        super().__init__()
        self.model, self._codes, self._size, self._group = model, codes, size, group
        self._vectors: list[torch.Tensor] = []  # of the forwards since the codes moved, (V, C) each
        self._ids: list[torch.Tensor] = []

    def describe(self, losses: Sequence[float]) -> dict[str, float]:
        """The losses by their names, without their weights."""
        told = {"reconstruction": losses[0], "commitment": losses[1] / max(self._codes.commitment, 1e-30)}
        if self._codes.edge:
            told["edge"] = losses[2] / self._codes.edge
        return told

    def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Losses of pictures whose ids are colours (`LevelsCodec`), (2,) or (3,) float32; see `describe`."""
        pixels_BCHW = self.pixels(ids_BT)
        output = self.model(pixels_BCHW)
        made_BCHW = output.reconstruction.float()
        losses = [LOSSES[self._codes.loss](made_BCHW, pixels_BCHW), self._codes.commitment * output.commitment]
        if self._codes.edge:
            losses.append(self._codes.edge * edges_differ(made_BCHW, pixels_BCHW))
        if self.model.training:
            vectors = output.vectors.detach().float().permute(0, 2, 3, 1)
            self._vectors.append(vectors.reshape(-1, vectors.shape[-1]))
            self._ids.append(output.ids.reshape(-1))
        return torch.stack([loss.float() for loss in losses])

    def pixels(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Ids that are colours as pixels in [-1, 1], (B, 3, H, W), channels last in memory."""
        levels_BTC = torch.stack([ids_BT >> 16, ids_BT >> 8 & 255, ids_BT & 255], -1)
        pixels_BHWC = (levels_BTC.float() / WHITE - 1).unflatten(1, self._size)
        return pixels_BHWC.permute(0, 3, 1, 2)

    @torch.no_grad()
    def settle(self, key: tuple[int, ...]) -> dict[str, float]:
        """Move the codes by what the update's forwards put into them, and put dead ones elsewhere.

        Args:
            key: decides where; the same whatever the number of processes.

        Returns:
            `perplexity`, of the codes of the update's pictures, and `revived`, how many were put elsewhere.
        """
        vectors_VC, ids_V = torch.cat(self._vectors), torch.cat(self._ids)
        quantizer = self.model.quantizer
        counts_K, sums_KC = quantizer.measure(vectors_VC, ids_V)
        self._sum(counts_K, sums_KC)
        quantizer.update(counts_K, sums_KC)
        places_K = np.random.default_rng(key).integers(0, len(vectors_VC) * self._group.count, len(counts_K))
        dead_K = quantizer.revive(self._at(vectors_VC, places_K))
        return {"perplexity": perplexity(counts_K.cpu().numpy()), "revived": float(dead_K.sum())}

    def forget(self) -> None:
        """Drop what the forwards since then put in."""
        self._vectors, self._ids = [], []

    def _at(self, vectors_VC: torch.Tensor, places_K: np.ndarray) -> torch.Tensor:
        """Vectors by their places among those of all processes, (K, C)."""
        own_K = torch.from_numpy(places_K).to(vectors_VC.device) - self._group.rank * len(vectors_VC)
        here_K = (own_K >= 0) & (own_K < len(vectors_VC))
        found_KC = vectors_VC[own_K.clamp(0, len(vectors_VC) - 1)] * here_K[:, None]
        self._sum(found_KC)
        return found_KC

    def _sum(self, *tensors: torch.Tensor) -> None:
        """Add the other processes' tensors to these."""
        if self._group.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)


def edges_differ(made_BCHW: torch.Tensor, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """The mean absolute error of the differences between neighbouring pixels, down and to the right."""
    errors_BCHW = made_BCHW - pixels_BCHW
    down, right = errors_BCHW.diff(dim=2).abs(), errors_BCHW.diff(dim=3).abs()
    return (down.sum() + right.sum()) / max(1, down.numel() + right.numel())
