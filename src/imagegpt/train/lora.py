"""Low-rank adapters (Hu et al. 2022) by PEFT, and the model that comes of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.errors import MissingExtra
from imagegpt.train.network import Arrays

TARGETS = ["c_attn", "c_proj", "c_fc"]  # all products of a block
BASE, DOWN, UP = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(model: Any, rank: int, alpha: float, seed: int) -> None:
    """Put adapters into all blocks of a network; they alone, and a classifier, are trained.

    PEFT draws one of an adapter's factors and leaves the other at 0. It is drawn again here, on the CPU, so that a seed
    gives the same weights in every process and on every device.

    Args:
        model: changed in place.
        rank, alpha: of the adapters.
        seed: of their first weights.

    Raises:
        MissingExtra: peft is missing (extra "train").
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtra("--lora", "peft", "train") from None
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, fan_in_fan_out=True)  # pyright: ignore
    inject_adapter_in_model(config, model.transformer)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(DOWN):
            drawn = torch.empty(weight.shape)
            torch.nn.init.kaiming_uniform_(drawn, math.sqrt(5), generator=generator)
            weight.data.copy_(drawn)
        weight.requires_grad_("lora_" in name or name.startswith(("score.", "ln_score.")))


def merged(config: ImageGPTConfig, weights: Arrays, rank: int, alpha: float) -> tuple[ImageGPTConfig, dict[str, Any]]:
    """The plain network's weights: W + alpha / rank (B A)^T, of matrices that are stored input-first.

    Args:
        config: of the network; it stays.
        weights: by the names that PEFT gives them.
        rank, alpha: of the adapters.
    """
    plain: dict[str, Any] = {}
    for name, array in weights.items():
        if name.endswith((DOWN, UP)):
            continue
        home = name.removesuffix(f"{BASE}.weight")
        if home != name:
            product = weights[home + UP].astype(np.float64) @ weights[home + DOWN]
            array = (array + alpha / rank * product.T).astype(np.float32)
        plain[name.replace(BASE, "")] = array
    return config, plain
