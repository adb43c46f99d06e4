"""A new network at its start: which configuration, and which first weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from imagegpt import checkpoint
from imagegpt.codec.codec import Codec
from imagegpt.config import ImageGPTConfig
from imagegpt.errors import InputError
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.spec import SIZES, size_spec
from imagegpt.train.informed import informed_start
from imagegpt.train.recipe import Shape

# Of a model's numbers those that weights depend on; a tied head is copied.
SAME = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_width", "activation_function"),
    *("layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "pruned_heads"),
)


def new_config(shape: Shape, codec: Codec, grid: tuple[int, int]) -> ImageGPTConfig:
    """The configuration that a recipe asks for.

    Raises:
        InputError: an unknown size, or numbers that no model can have.
    """
    given = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads}
    try:
        spec = replace(
            size_spec(shape.size),
            vocab_size=len(codec) + 1,
            n_positions=math.prod(grid),
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise InputError(f"No model can have this shape: {error}") from None
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), shape.dropout)
    config = ImageGPTConfig(**asdict(spec), **dropout)
    if shape.objective == "bert":
        config.is_causal = False
    return config


def new_model(
    shape: Shape, codec: Codec, grid: tuple[int, int], seed: int, device: torch.device | str = "cpu"
) -> ImageGPTForCausalImageModeling:
    """The network with its first weights, in float32; the same seed gives the same weights on the same device.

    Args:
        shape: what is asked for.
        codec: says how many ids there are, and the colour of each.
        grid: (height, width) of ids.
        seed: of the weights.
        device: where they are made.

    Raises:
        InputError: a shape that can't be, an informed start where it is not possible, or weights to start from that
            don't fit.
    """
    config = new_config(shape, codec, grid)
    with torch.device(device):
        model = ImageGPTForCausalImageModeling(config)
    if shape.init is not None:
        load_weights(model, shape.init)
    else:
        begin_anew(model, shape.start, codec, grid, seed, device)
    return model


def begin_anew(
    model: Any, start: str, codec: Codec, grid: tuple[int, int], seed: int, device: torch.device | str
) -> None:
    """Give a network new weights.

    Args:
        model: changed in place.
        start: "paper", "hf" or "informed".
        codec, grid, seed, device: see `new_model`.

    Raises:
        InputError: an informed start where it is not possible.
    """
    if start == "informed":
        _check_informed(model.config, grid)
        torch.nn.Module.to(model, "cpu")  # transformers types its own `to` as a method without self
        informed_start(model, torch.from_numpy(codec.colors), seed)
        torch.nn.Module.to(model, device)
    else:
        draw_weights(model, paper_deviations if start == "paper" else hf_deviations, seed)


def paper_deviations(config: ImageGPTConfig) -> dict[str, float]:
    """Standard deviations of the first weights in OpenAI's code (openai/image-gpt, src/model.py), by end of name."""
    return {
        "wte.weight": 0.02,
        "wpe.weight": 0.01,
        "attn.c_attn.weight": 1 / math.sqrt(config.n_embd),
        "attn.c_proj.weight": 1 / math.sqrt(config.n_embd * config.n_layer),
        "mlp.c_fc.weight": 0.02,
        "mlp.c_proj.weight": 0.02,
        "lm_head.weight": 0.0,
    }


def hf_deviations(config: ImageGPTConfig) -> dict[str, float]:
    """Standard deviations of the first weights by Hugging Face's rule, by end of name."""
    residual = config.initializer_range / math.sqrt(2 * config.n_layer)
    residuals = dict.fromkeys(("attn.c_proj.weight", "mlp.c_proj.weight"), residual)
    return {**dict.fromkeys(paper_deviations(config), config.initializer_range), **residuals}


@torch.no_grad()
def draw_weights(model: torch.nn.Module, deviations: Callable[[ImageGPTConfig], dict[str, float]], seed: int) -> None:
    """Draw the first weights: normal where there is a deviation, else 1 for norms and 0 for biases.

    They are drawn on the CPU, so that a seed gives the same weights on every device.

    Args:
        model: with a configuration.
        deviations: of a configuration, by end of a parameter's name.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    table = deviations(model.config)  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        deviation = next((value for end, value in table.items() if name.endswith(end)), None)
        if deviation is None:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif deviation == 0:
            parameter.zero_()
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


@torch.no_grad()
def load_weights(model: ImageGPTForCausalImageModeling, name: str) -> None:
    """Copy the weights of a model folder or Hub id into a network of the same shape.

    Raises:
        InputError: there is no such model, or its numbers are others: it would be another function, or a part of it.
    """
    folder = checkpoint.find_model(name)
    tensors = checkpoint.load_tensors(folder)
    theirs, ours = checkpoint.read_spec(folder), model.config.spec
    for field in SAME:
        there, here = getattr(theirs, field), getattr(ours, field)
        if there != here:
            raise InputError(f"init: {name} does not fit: its {field} is {there}, the recipe's is {here}.")
    for key, parameter in model.named_parameters():
        parameter.copy_(torch.tensor(tensors[key]))


def _check_informed(config: ImageGPTConfig, grid: tuple[int, int]) -> None:
    if grid[0] != grid[1] or grid[0] < 4:
        raise InputError(f"start: informed needs a square grid of at least 4 x 4, not {grid[0]} x {grid[1]}.")
    if config.n_embd // config.n_head < 8 or config.n_embd <= 4 * (config.n_embd // config.n_head // 4) + 12:
        known = ", ".join(SIZES)
        raise InputError(f"start: informed needs heads of at least 8 and room for colours; the sizes are {known}.")
