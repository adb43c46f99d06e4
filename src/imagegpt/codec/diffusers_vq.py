"""DiffusersVQ: published VQ-VAEs and VQGANs as codecs, by diffusers' `VQModel`.

Shape suffixes: B pictures, C channels, HW a picture's pixels, hw its grid of codes, V vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from imagegpt.codec.network import NetworkCodec, digest
from imagegpt.codec.pictures import Framing
from imagegpt.codec.stored import CONFIG, PUBLISHED, holds_vqmodel
from imagegpt.codec.vqvae.quantizer import AT_ONCE
from imagegpt.errors import InputError, MissingExtra, reason
from imagegpt.files import make_folder

# What diffusers raises at files that it can't use.
BROKEN = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, ArithmeticError, SafetensorError)


class DiffusersVQ(NetworkCodec):
    """A `diffusers.VQModel` as a codec, with frozen weights.

    Args:
        model: of RGB pictures, which it makes smaller.

    Raises:
        InputError: other channels than three, or a code for each pixel.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        for name in ("in_channels", "out_channels"):
            if config[name] != 3:
                raise InputError(f"A codec is of RGB pictures, and this VQModel's {name} is {config[name]}.")
        self.factor: int = 2 ** (len(config["block_out_channels"]) - 1)
        if self.factor == 1:
            raise InputError("This VQModel has a code for each pixel; a codec that sees its surroundings has fewer.")
        self.model = model.float().eval().requires_grad_(False)
        # What ids and pixels depend on: the weights, and the numbers that these do not show.
        shown = "VQModel", self.factor, config["act_fn"], config["norm_num_groups"]
        self.fingerprint: str = digest(shown, model.state_dict())

    def __len__(self) -> int:
        """K, the number of codes."""
        return self.model.config["num_vq_embeddings"]

    @property
    def name(self) -> str:
        """What results call it."""
        return f"VQModel of {len(self)} codes for {self.factor} x {self.factor} pixels"

    @property
    def framing(self) -> Framing:
        """The whole of a picture at the size that the model names.

        Raises:
            InputError: it names none.
        """
        size = self.model.config["sample_size"]
        if type(size) is not int or size < 1:
            raise InputError(f"The sample_size of a VQModel must be a side in pixels, not {size!r}.")
        return Framing(size, size)

    def _ids(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        z_BhwC = self.model.encode(x_BCHW).latents.permute(0, 2, 3, 1)
        # The model's own quantiser holds all distances of what it is given: each vector comes as a picture by itself.
        parts_VC11 = z_BhwC.reshape(-1, z_BhwC.shape[-1], 1, 1).split(max(1, AT_ONCE // len(self)))
        ids = [self.model.quantize(part_VC11)[2][2].reshape(-1) for part_VC11 in parts_VC11]
        return torch.cat(ids).view(z_BhwC.shape[:3])

    def _pixels(self, ids_Bhw: torch.Tensor) -> torch.Tensor:
        shape, ids_V = (*ids_Bhw.shape, self.model.quantize.vq_embed_dim), ids_Bhw.reshape(-1)
        if self.model.config["lookup_from_codebook"]:
            return self.model.decode(ids_V, force_not_quantize=True, shape=shape).sample
        codes_BChw = self.model.quantize.get_codebook_entry(ids_V, shape)
        return self.model.decode(codes_BChw, force_not_quantize=True).sample

    def store(self, folder: Path) -> dict[str, Any]:
        """Keep it in a folder of its own in `folder`, as diffusers does; see `Codec.store`."""
        make_folder(folder / PUBLISHED)
        try:
            self.model.save_pretrained(folder / PUBLISHED, safe_serialization=True)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / PUBLISHED} can't be written: {reason(error)}.") from None
        return {PUBLISHED: PUBLISHED}

    @classmethod
    def load(cls, folder: Path) -> DiffusersVQ:
        """Open a folder as diffusers writes it: config.json and safetensors, never a pickle; in float32, on the CPU.

        Raises:
            InputError: it can't be used; the message names it.
            MissingExtra: diffusers is missing (extra "diffusers").
        """
        if not holds_vqmodel(folder):
            raise InputError(f"{folder} holds no VQModel: it has no {CONFIG} of one.")
        try:
            from diffusers import VQModel  # pyright: ignore
        except ImportError as error:
            raise MissingExtra("A VQModel", "diffusers", "diffusers") from error
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        options["low_cpu_mem_usage"] = False  # what else needs accelerate
        try:
            loaded: Any = VQModel.from_pretrained(str(folder), **options)
            model, told = loaded
            codec = cls(model)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        except BROKEN as error:
            raise InputError(f"{folder} holds no VQModel that can be used: {reason(error)}") from None
        for kind, wrong in (("missing_keys", "lack"), ("unexpected_keys", "hold what its config.json does not:")):
            if told[kind]:
                raise InputError(f"{folder}: the weights {wrong} {min(told[kind])}.")
        if not all(bool(weight.isfinite().all()) for weight in codec.parameters()):
            raise InputError(f"{folder}: the weights hold a number that is not finite.")
        return codec
