"""PaletteCodec.encode for tensors, on whatever device they are.

Shape suffixes: P pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from imagegpt.codec.pictures import as_array

if TYPE_CHECKING:
    from imagegpt.codec.palette import PaletteCodec

CHUNK = 1 << 14  # float pixels at once: 32 MiB of distances to 512 colours


_tables: dict[tuple[str, torch.device], torch.Tensor] = {}


def encode_tensor(codec: PaletteCodec, pixels: torch.Tensor) -> torch.Tensor:
    """Ids of (..., 3) uint8 or float RGB, on the tensor's device; see `PaletteCodec.encode`.

    On a CPU the numpy paths run. Elsewhere uint8 is looked up in the table, which is copied to the device once, and
    floats are compared in pieces, so that no more than 2^14 x K distances exist at a time.
    """
    if pixels.device.type == "cpu":
        return torch.from_numpy(codec.encode(as_array(pixels)))
    return encode_on_device(codec, pixels)


def encode_on_device(codec: PaletteCodec, pixels: torch.Tensor) -> torch.Tensor:
    """What `encode_tensor` does where the tensor is not on a CPU."""
    if pixels.shape[-1:] != (3,) or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ValueError(f"Pixels are uint8 or float RGB, shape (..., 3), not {pixels.dtype} {tuple(pixels.shape)}.")
    if pixels.dtype == torch.uint8:
        red, green, blue = pixels.int().unbind(-1)
        return _table_on(codec, pixels.device)[(red << 16) | (green << 8) | blue].long()
    flat_P3 = pixels.detach().float().reshape(-1, 3)
    if not flat_P3.isfinite().all():
        raise ValueError("The pixels hold a number that is not finite.")
    colors = torch.from_numpy(codec.clusters).to(pixels.device)
    ids_P = flat_P3.new_empty(len(flat_P3), dtype=torch.long)
    for start in range(0, len(flat_P3), CHUNK):
        red, green, blue = (flat_P3[start : start + CHUNK, None, :] - colors).square().unbind(-1)
        ids_P[start : start + CHUNK] = (red + green + blue).argmin(1)
    return ids_P.view(pixels.shape[:-1])


def _table_on(codec: PaletteCodec, device: torch.device) -> torch.Tensor:
    """The codec's table on a device, 64 MiB; that of the latest codec alone is kept."""
    key = (codec.fingerprint, device)
    if key not in _tables:
        table = torch.from_numpy(codec.table.astype(np.int32)).to(device)
        _tables.clear()
        _tables[key] = table
    return _tables[key]
