"""The codes of a VQ-VAE: nearest of K, moving averages of what they stand for (van den Oord et al. 2017, appendix A.1).

Shape suffixes: V vectors of a batch, K codes, C numbers of a vector, B pictures, hw a picture's grid of codes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from imagegpt.codec.vqvae.config import VQVAEConfig

AT_ONCE = 1 << 22  # distances that are in memory together


class Quantized(NamedTuple):
    """Vectors that became codes.

    Args:
        codes_BChw: the codes; their gradient is the vectors' own (straight-through).
        ids_Bhw: numbers of the codes, int64.
        commitment: mean squared distance from the vectors to their codes, which pulls the vectors alone.
    """

    codes_BChw: torch.Tensor
    ids_Bhw: torch.Tensor
    commitment: torch.Tensor


class VectorQuantizer(nn.Module):
    """K codes, each the moving average of the vectors for which it was the nearest.

    No gradient moves the codes: `update` does, by the sums that `measure` takes of a batch.

    Args:
        config: K, the width of a code, the decay of the averages and when a code is put elsewhere.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.decay, self.restart = config.decay, config.restart
        # Parameters, so that checkpoints hold them; none of them has a gradient.
        self.codebook = nn.Parameter(torch.empty(config.num_codes, config.code_width), requires_grad=False)
        self.counts = nn.Parameter(torch.empty(config.num_codes), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The first codes, which k-means replaces where there is data."""
        nn.init.normal_(self.codebook)
        nn.init.ones_(self.counts)

    def forward(self, z_BChw: torch.Tensor) -> Quantized:
        """The nearest code of each vector of (B, C, h, w)."""
        z_BhwC = z_BChw.to(self.codebook.dtype).permute(0, 2, 3, 1)
        ids_Bhw = self.nearest(z_BhwC.detach().reshape(-1, z_BhwC.shape[-1])).view(z_BhwC.shape[:3])
        codes_BhwC = self.codebook[ids_Bhw]
        commitment = (z_BhwC - codes_BhwC).square().mean()
        straight_BhwC = z_BhwC + (codes_BhwC - z_BhwC).detach()
        return Quantized(straight_BhwC.permute(0, 3, 1, 2), ids_Bhw, commitment)

    def nearest(self, z_VC: torch.Tensor) -> torch.Tensor:
        """Number of the nearest code of each vector, by squared L2, (V,) int64; ties go to the lowest.

        Half precision is compared in float32, whatever the autocasting around.
        """
        exact = torch.promote_types(self.codebook.dtype, torch.float32)
        with _exact(z_VC.device.type):
            codes_KC = self.codebook.to(exact)
            squares_K = codes_KC.square().sum(1)
            parts = z_VC.to(exact).split(max(1, AT_ONCE // len(codes_KC)))  # of no vectors, one part
            return torch.cat([torch.addmm(squares_K, part, codes_KC.T, alpha=-2).argmin(1) for part in parts])

    def measure(self, z_VC: torch.Tensor, ids_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many vectors each code stands for, (K,), and their sums, (K, C)."""
        counts_K = torch.bincount(ids_V, minlength=len(self.codebook)).to(z_VC.dtype)
        sums_KC = torch.zeros_like(self.codebook).index_add_(0, ids_V, z_VC)
        return counts_K, sums_KC

    @torch.no_grad()
    def update(self, counts_K: torch.Tensor, sums_KC: torch.Tensor) -> None:
        """Move the averages by a batch: N <- d N + (1 - d) n, and N e <- d N e + (1 - d) sum (appendix A.1, 6 to 8).

        The same as e <- e + (1 - d) (sum - n e) / N, where a code that is not used stays exactly where it is, however
        small its count has become.

        Args:
            counts_K, sums_KC: what `measure` took, of all processes.
        """
        self.counts.mul_(self.decay).add_(counts_K, alpha=1 - self.decay)
        far_KC = sums_KC - counts_K[:, None] * self.codebook
        above_0 = self.counts.clamp(min=torch.finfo(self.counts.dtype).tiny)
        self.codebook.add_(far_KC / above_0[:, None], alpha=1 - self.decay)

    @property
    def limit(self) -> torch.Tensor:
        """The count below which a code is dead."""
        return self.restart * self.counts.mean()

    @torch.no_grad()
    def revive(self, vectors_KC: torch.Tensor) -> torch.Tensor:
        """Put dead codes elsewhere; each must be used at once, or it is dead again.

        Args:
            vectors_KC: where each code would go: vectors of the latest batch, drawn at random.

        Returns:
            Which codes were dead, (K,) bool.
        """
        limit, dead_K = self.limit, self.counts < self.limit
        self.codebook.copy_(torch.where(dead_K[:, None], vectors_KC, self.codebook))
        self.counts.copy_(torch.where(dead_K, limit, self.counts))
        return dead_K


def _exact(device: str) -> AbstractContextManager[Any]:
    """No autocasting of distances; the meta device knows none."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


@torch.no_grad()
def cluster(z_VC: torch.Tensor, codes: int, seed: int, rounds: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """K-means of vectors, from a random choice of them: the codes to begin with.

    Args:
        z_VC: at least one vector.
        codes: K; more than there are vectors repeat some, which training then moves.
        seed: of the choice.
        rounds: Lloyd's iterations.

    Returns:
        (K, C) means, and (K,) how many vectors each stands for.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z_VC), generator=generator).to(z_VC.device)
    with torch.random.fork_rng(devices=[]):  # its first codes are of no use
        quantizer = VectorQuantizer(VQVAEConfig(num_codes=codes, code_width=z_VC.shape[1], decay=0.0, restart=0.0))
    quantizer = quantizer.to(z_VC.device, z_VC.dtype)
    quantizer.codebook.copy_(z_VC[order[torch.arange(codes) % len(order)]])
    for _ in range(rounds):
        quantizer.update(*quantizer.measure(z_VC, quantizer.nearest(z_VC)))
    return quantizer.codebook.detach(), quantizer.counts.detach()
