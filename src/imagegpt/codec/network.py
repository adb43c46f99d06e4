"""What codecs that are networks share: checks, parts that fit into memory, arrays and tensors alike.

Shape suffixes: B pictures, C channels, HW a picture's pixels, hw its grid of codes, K codes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import nn

from imagegpt.codec.codec import in_rows

PIXELS = 1 << 18  # of a forward: its largest states take 512 bytes a pixel or so
WHITE = 127.5  # levels x are x / 127.5 - 1


class NetworkCodec(nn.Module):
    """A codec that is a network: `factor` x `factor` pixels become one of K codes, and codes pixels.

    Who inherits from it gives `_ids`, `_pixels` and what `Codec` asks for besides.
    """

    factor: int
    table = None  # a pixel's code depends on those around it

    def __len__(self) -> int:
        """K, the number of codes."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What results call it."""
        raise NotImplementedError

    def _ids(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) of pixels in [-1, 1]."""
        raise NotImplementedError

    def _pixels(self, ids_Bhw: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1], or a little outside, of codes."""
        raise NotImplementedError

    @property
    def colors(self) -> NDArray[np.float32]:
        """The mean colour of each code in the midst of its like, (K, 3) in [-1, 1]."""
        return (self._blocks().mean((1, 2)) / WHITE - 1).astype(np.float32)

    def encode(self, pixels: Any) -> Any:
        """The codes of pictures.

        Args:
            pixels: (..., H, W, 3) RGB, an array or a torch tensor on any device: uint8, or floats in [-1, 1]. H and W
                are multiples of the factor.

        Returns:
            (..., H / factor, W / factor) int64 ids: an array, or a tensor on the same device.

        Raises:
            ValueError: another dtype or shape, or a number that is not finite.
        """
        given = hasattr(pixels, "detach")
        levels = pixels.detach() if given else _tensor(pixels)
        self._check_pixels(levels)
        *leading, height, width, _ = levels.shape
        pictures_BHWC = levels.reshape(math.prod(leading), height, width, 3)
        ids = self._in_parts(self._encode, pictures_BHWC, height * width)
        ids = ids.reshape(*leading, height // self.factor, width // self.factor).to(levels.device)
        return ids if given else ids.numpy()

    def decode(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """The pictures that codes stand for.

        Args:
            ids: (..., h, w) whole numbers, 0..K-1.

        Returns:
            (..., h * factor, w * factor, 3) uint8 RGB.

        Raises:
            ValueError: an id that is no code (the start token K included), no whole numbers, or no grid.
        """
        grids = np.asarray(ids)
        self._check_ids(grids)
        *leading, height, width = grids.shape
        flat_Bhw = torch.from_numpy(grids.astype(np.int64).reshape(math.prod(leading), height, width))
        levels = self._in_parts(self._decode, flat_Bhw, height * width * self.factor**2).to(torch.uint8)
        return levels.numpy().reshape(*leading, height * self.factor, width * self.factor, 3)

    def picture(self, cell: int = 16) -> Image.Image:
        """What each code stands for in the midst of its like, in rows from code 0 at the top left."""
        return in_rows(self._blocks(), cell)

    def _blocks(self) -> NDArray[np.uint8]:
        """(K, factor, factor, 3) pixels of each code in the midst of its like."""
        ids_Khw = np.broadcast_to(np.arange(len(self))[:, None, None], (len(self), 3, 3))
        middle = slice(self.factor, 2 * self.factor)
        return self.decode(ids_Khw)[:, middle, middle]

    def _in_parts(self, work: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, pixels: int) -> torch.Tensor:
        """Results of so many rows at once as memory allows, each of so many pixels, joined."""
        if not rows.numel():
            return torch.empty(0, dtype=torch.long)
        place = next(self.parameters()).device
        with torch.inference_mode():
            parts = [work(part.to(place)) for part in rows.split(max(1, PIXELS // pixels))]
        return torch.cat(parts)  # outside of inference mode: networks that learn from it look the ids up

    def _encode(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        x_BHWC = pixels_BHWC if pixels_BHWC.is_floating_point() else pixels_BHWC.float() / WHITE - 1
        return self._ids(x_BHWC.permute(0, 3, 1, 2).to(next(self.parameters()).dtype))

    def _decode(self, ids_Bhw: torch.Tensor) -> torch.Tensor:
        x_BHWC = self._pixels(ids_Bhw).permute(0, 2, 3, 1).float()
        return ((x_BHWC + 1) * WHITE).round().clamp(0, 255).to(torch.uint8).cpu()

    def _check_pixels(self, pixels: torch.Tensor) -> None:
        shape = tuple(pixels.shape)
        if (pixels.dtype != torch.uint8 and not pixels.is_floating_point()) or len(shape) < 3 or shape[-1] != 3:
            raise _no_pixels(str(pixels.dtype).removeprefix("torch."), shape)
        if shape[-3] % self.factor or shape[-2] % self.factor:
            raise ValueError(
                f"Pictures of {shape[-3]} x {shape[-2]} can't be divided into blocks of {self.factor} x {self.factor}."
            )
        if pixels.is_floating_point() and not bool(torch.isfinite(pixels).all()):
            raise ValueError("The pixels hold a number that is not finite.")

    def _check_ids(self, grids: NDArray[Any]) -> None:
        if grids.size and grids.dtype.kind not in "iu":
            raise ValueError(f"Ids are whole numbers, not {grids.dtype}.")
        if grids.ndim < 2:
            raise ValueError(f"Codes are decoded in grids, shape (..., height, width), not {grids.shape}.")
        if grids.size and (grids.min() < 0 or grids.max() >= len(self)):
            bad = grids[(grids < 0) | (grids >= len(self))].flat[0]
            raise ValueError(f"Id {bad} is no code of this {self.name} (ids are 0 to {len(self) - 1}).")


def digest(numbers: tuple[Any, ...], weights: Mapping[str, torch.Tensor]) -> str:
    """A hex digest of numbers and of weights by name, as float32: the fingerprint of a network."""
    made = hashlib.sha256(repr(numbers).encode())
    for name, weight in sorted(weights.items()):
        made.update(f"{name} {tuple(weight.shape)}".encode())
        made.update(weight.detach().float().cpu().contiguous().numpy().data)
    return made.hexdigest()[:16]


def _tensor(pixels: Any) -> torch.Tensor:
    """Pixels of an array or of lists; floats become float32."""
    array = np.asarray(pixels)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, np.float32).copy())
    if array.dtype != np.uint8:
        raise _no_pixels(array.dtype, array.shape)
    return torch.from_numpy(np.require(array, None, ["C", "W"]))  # pictures are read-only, and torch warns of that


def _no_pixels(kind: Any, shape: tuple[int, ...]) -> ValueError:
    return ValueError(f"Pixels are uint8 or float RGB, shape (..., height, width, 3), not {kind} {shape}.")
