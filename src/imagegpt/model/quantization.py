"""Weights in 8 or 4 bits, through torchao.

torchao quantises torch's linear layers, and the layers of our blocks are `Conv1D`: the same function, but the weight is
stored input-first. So those layers are replaced first. Embeddings and norms stay as they are, and so does the head
unless it is asked for.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers.pytorch_utils import Conv1D

from imagegpt.errors import MissingExtra

CPU_GROUP_SIZES = (128, 64, 32)  # that the CPU's kernel for 4 bits reads
OUTPUTS_UNIT = 16  # its outputs come in multiples of this


def quantize(model: Any, scheme: Any = "int8", *, group_size: int = 64, head: bool = False) -> Any:
    """Quantise a model's weights in place, for inference; activations stay as they are.

    "int8" keeps one scale per output. "int4" keeps a scale and a zero per `group_size` inputs of an output, and
    multiplies in bfloat16, the type that its kernels are written for. On a CPU both save memory rather than time.

    The model then runs, generates and compiles as before. With 8 bits it can be saved, and `from_pretrained` reads it
    again; there, `quantization_config=TorchAoConfig(...)` quantises a model that was saved in full.

    Args:
        model: any of the package's models, on the device where it will run.
        scheme: "int8", "int4", or a `TorchAoConfig`; then `modules_to_not_convert` says what `head` says here.
        group_size: inputs that share a scale in "int4"; on a CPU 32, 64 or 128.
        head: quantise the head too.

    Returns:
        The same model.

    Raises:
        MissingExtra: torchao is missing (extra "quantization").
        ValueError: an unknown scheme, layers that do not fall into groups of that size, a head that is also the
            embedding, or a model that is quantised already or divided among processes.

    Example:
        >>> from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
        >>> model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size("nano"))
        >>> model = quantize(model, "int8")  # doctest: +SKIP
    """
    _check_torchao()
    from torchao.quantization import quantize_  # pyright: ignore[reportMissingImports]

    config = _torchao_config(scheme, group_size, head, model.device)
    names = _chosen(model, config)
    use_linear_layers(model)
    if _is_int4(config):
        for name in names:
            layer = model.get_submodule(name)
            model.set_submodule(name, _linear(BFloat16Linear, layer.weight.to(torch.bfloat16), layer))
    quantize_(model, config.quant_type, filter_fn=lambda _, name: name in names)
    _remember(model, config)
    return model


def use_linear_layers(model: nn.Module) -> None:
    """Replace every `Conv1D` by a linear layer that computes the same; its weight is (outputs, inputs)."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Conv1D):
            model.set_submodule(name, _linear(nn.Linear, layer.weight.detach().T.contiguous(), layer))


def is_torchao(quantization_config: Any) -> bool:
    """Whether it is a `TorchAoConfig`, or what a `config.json` holds of one."""
    if isinstance(quantization_config, dict):
        return quantization_config.get("quant_method") == "torchao"
    return getattr(quantization_config, "quant_method", None) == "torchao"


class BFloat16Linear(nn.Linear):
    """A linear layer that multiplies in bfloat16, whatever the type of its input and output."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs), in the input's type."""
        output = F.linear(input.to(torch.bfloat16), self.weight).to(input.dtype)
        return output if self.bias is None else output + self.bias


def _linear(kind: type[nn.Linear], weight: torch.Tensor, old: Any) -> nn.Linear:
    """A linear layer with this weight, and the rest from another."""
    layer = kind(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    layer.register_parameter("bias", old.bias)
    return layer.train(old.training)


def _check_torchao() -> None:
    try:
        import torchao.quantization  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("Quantising", "torchao", "quantization") from error


def _torchao_config(scheme: Any, group_size: int, head: bool, device: torch.device) -> Any:
    """A `TorchAoConfig` that the device can run, if torchao has one."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from transformers import TorchAoConfig

    # torchao would otherwise set options of torch's compiler for the whole process.
    quietly: Any = {"set_inductor_config": False}
    if isinstance(scheme, TorchAoConfig):
        config = copy.copy(scheme)
    elif scheme == "int8":
        config = TorchAoConfig(Int8WeightOnlyConfig(**quietly), modules_to_not_convert=[] if head else None)
    elif scheme == "int4":
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"4 bits run on a CPU or on CUDA, not on {device.type}.")
        kind = Int4WeightOnlyConfig(group_size, int4_packing_format="tile_packed_to_4d", **quietly)
        config = TorchAoConfig(kind, modules_to_not_convert=[] if head else None)
    else:
        raise ValueError(f'scheme is {scheme!r}; it must be "int8", "int4" or a TorchAoConfig.')
    if isinstance(config.quant_type, Int4WeightOnlyConfig) and device.type == "cpu":
        config.quant_type = _int4_for_cpu(config.quant_type)
    return config


def _int4_for_cpu(config: Any) -> Any:
    """The same scheme in the one layout that a CPU reads."""
    try:
        from torchao.prototype.quantization.int4 import (  # pyright: ignore[reportMissingImports]
            PrototypeInt4WeightOnlyConfig,
        )
    except ImportError as error:
        raise ImportError("4 bits on a CPU need torchao 0.18 or a later one that still has its layout.") from error
    if config.group_size not in CPU_GROUP_SIZES:
        raise ValueError(f"group_size is {config.group_size}; on a CPU it must be 32, 64 or 128.")
    return PrototypeInt4WeightOnlyConfig(
        group_size=config.group_size,
        int4_choose_qparams_algorithm=config.int4_choose_qparams_algorithm,
        set_inductor_config=config.set_inductor_config,
    )


def _is_int4(config: Any) -> bool:
    return type(config.quant_type).__name__.endswith("Int4WeightOnlyConfig")


def _chosen(model: Any, config: Any) -> set[str]:
    """Names of the layers to quantise, all of which can be; nothing is changed before that is known."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("This model is quantised already.")
    if (model._tp_size or 1) > 1:
        raise ValueError("This model is divided among processes; quantised weights can't be.")
    if config.include_input_output_embeddings:
        raise ValueError("Embeddings can't be quantised here: include_input_output_embeddings must be False.")
    kept, chosen = config.modules_to_not_convert, set()
    for name, layer in model.named_modules():
        if isinstance(layer, Conv1D if kept is None else (Conv1D, nn.Linear)) and should_convert_module(name, kept):
            _check_layer(name, layer, config, model)
            chosen.add(name)
    return chosen


def _check_layer(name: str, layer: Any, config: Any, model: Any) -> None:
    if layer.weight is model.get_input_embeddings().weight:
        raise ValueError(f"{name} is also the embedding, and embeddings can't be quantised.")
    if not _is_int4(config):
        return
    outputs, inputs = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else layer.weight.shape
    size = config.quant_type.group_size
    if inputs % size:
        fitting = [str(other) for other in CPU_GROUP_SIZES if inputs % other == 0]
        told = f"it could be {' or '.join(fitting)}" if fitting else "4 bits need multiples of 32"
        raise ValueError(f"{name} has {inputs} inputs, no multiple of the group_size {size}: {told}.")
    if outputs % OUTPUTS_UNIT:
        raise ValueError(f"{name} has {outputs} outputs; 4 bits need multiples of {OUTPUTS_UNIT}.")


def _remember(model: Any, config: Any) -> None:
    """Let transformers know: `save_pretrained` asks the quantiser."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model)
    quantizer.postprocess_model(model)
    if _is_int4(config):
        quantizer.is_serializable = _refuse_to_save
    model.hf_quantizer = quantizer


def _refuse_to_save() -> bool:
    raise ValueError("Weights in 4 bits are laid out for one kind of device and can't be saved: save the full model.")
