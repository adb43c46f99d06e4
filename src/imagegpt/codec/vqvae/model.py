"""VQVAE: blocks of pixels <-> ids by a network that is learnt, in Hugging Face's layout.

Shape suffixes: B pictures, C channels, HW a picture's pixels, hw its grid of codes, K codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from imagegpt.codec.network import NetworkCodec, digest
from imagegpt.codec.stored import CONFIG, NETWORK
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.layers import decoder, encoder
from imagegpt.codec.vqvae.quantizer import VectorQuantizer
from imagegpt.errors import InputError, reason
from imagegpt.files import make_folder, write_whole
from imagegpt.tensors import map_tensors, write_tensors

WEIGHTS, FORMAT = "model.safetensors", {"format": "pt"}


@dataclass
class VQVAEOutput(ModelOutput):
    """What a VQ-VAE makes of pictures.

    Args:
        reconstruction: (B, 3, H, W) pixels in [-1, 1], or a little outside.
        commitment: the commitment loss, a scalar.
        ids: (B, h, w) int64.
        vectors: (B, C, h, w), what the encoder gave before it became codes.
    """

    reconstruction: Any = None
    commitment: Any = None
    ids: Any = None
    vectors: Any = None


class VQVAE(NetworkCodec, PreTrainedModel):
    """A VQ-VAE as a codec: `factor` x `factor` pixels become one of K codes, and codes pixels.

    Args:
        config: its numbers.

    Example:
        >>> codec = VQVAE(VQVAEConfig(factor=2, num_codes=16, width=8, code_width=4))
        >>> ids = codec.encode(np.zeros((5, 32, 32, 3), np.uint8))
        >>> ids.shape, codec.decode(ids).shape
        ((5, 16, 16), (5, 32, 32, 3))
    """

    config_class = VQVAEConfig
    base_model_prefix = "vqvae"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.encoder = encoder(config)
        self.quantizer = VectorQuantizer(config)
        self.decoder = decoder(config)
        self.factor: int = config.factor
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own first weights."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, VectorQuantizer)):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> VQVAEOutput:
        """Encode, quantise and decode pictures (B, 3, H, W), in [-1, 1]."""
        vectors = self.encoder(pixel_values)
        quantized = self.quantizer(vectors)
        return VQVAEOutput(
            self.decoder(quantized.codes_BChw.to(vectors.dtype)), quantized.commitment, quantized.ids_Bhw, vectors
        )

    def __len__(self) -> int:
        """K, the number of codes."""
        return self.config.num_codes

    @property
    def name(self) -> str:
        """What results call it."""
        return f"VQ-VAE of {len(self)} codes for {self.factor} x {self.factor} pixels"

    @property
    def fingerprint(self) -> str:
        """A hex digest of the numbers and the weights that ids and pixels depend on."""
        weights = {name: weight for name, weight in self.state_dict().items() if name != "quantizer.counts"}
        return digest((self.config.factor, self.config.blocks), weights)

    def _ids(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        z_BhwC = self.encoder(x_BCHW).permute(0, 2, 3, 1)
        return self.quantizer.nearest(z_BhwC.reshape(-1, z_BhwC.shape[-1])).view(z_BhwC.shape[:3])

    def _pixels(self, ids_Bhw: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.quantizer.codebook[ids_Bhw].permute(0, 3, 1, 2))

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Transformers' own, which gives all that it reads a gradient; codes have none."""
        loaded = super().from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # beside it, what was found in the files
        model.quantizer.requires_grad_(False)
        return loaded

    def store(self, folder: Path) -> dict[str, Any]:
        """Keep it in a folder of its own in `folder`; see `Codec.store`."""
        make_folder(folder / NETWORK)
        self.save(folder / NETWORK)
        return {NETWORK: NETWORK}

    def save(self, folder: Path) -> None:
        """Write what `load` and `from_pretrained` read into a folder that is there."""
        self.config.save_pretrained(folder)
        weights = {name: weight.detach().float().cpu().numpy() for name, weight in self.named_parameters()}
        entries = {name: (np.dtype(np.float32), array.shape) for name, array in weights.items()}
        write_whole(folder / WEIGHTS, lambda path: write_tensors(path, entries, lambda name: [weights[name]], FORMAT))

    @classmethod
    def load(cls, folder: Path) -> VQVAE:
        """Open a folder in Hugging Face's layout, in float32, on the CPU.

        Raises:
            InputError: it can't be used; the message names it.
        """
        config, stored = _read_config(folder), _read_weights(folder)
        config.dtype = torch.float32
        try:
            with torch.device("meta"):  # numbers that can't be true take no memory before they are compared
                model = cls(config)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise InputError(f"{folder / CONFIG} can't be used: {reason(error)}") from None
        _check_weights(folder / WEIGHTS, stored, dict(model.named_parameters()))
        model.load_state_dict({name: torch.tensor(array) for name, array in stored.items()}, assign=True)
        return model.eval()


def _read_config(folder: Path) -> VQVAEConfig:
    try:
        entries = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = entries.get("model_type") if isinstance(entries, dict) else None
        if kind == VQVAEConfig.model_type:
            return VQVAEConfig(**entries)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no VQ-VAE: it has no {CONFIG}.") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / CONFIG} can't be used: {reason(error)}") from None
    raise InputError(f"{folder} holds no VQ-VAE: the model_type in its {CONFIG} is {kind!r}.")


def _read_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} holds no VQ-VAE: it has no {WEIGHTS}.")
    return map_tensors(folder / WEIGHTS)


def _check_weights(path: Path, stored: dict[str, NDArray[np.float32]], wanted: dict[str, nn.Parameter]) -> None:
    for name in stored | wanted:
        there = stored[name].shape if name in stored else None
        shape = tuple(wanted[name].shape) if name in wanted else None
        if there != shape:
            raise InputError(f"{path}: {name} must have shape {shape}, not {there}.")
        if not np.isfinite(stored[name]).all():
            raise InputError(f"{path}: {name} holds a number that is not finite.")
