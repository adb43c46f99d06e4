"""Tensor parallelism: each process holds a part of every block, and all of them compute what one would.

Heads and the MLP's inner units are divided: the layers that make them (`c_attn`, `q_attn`, `c_fc`) by their outputs,
the layers that read them (`c_proj`) by their inputs, so a sublayer needs one sum over the processes, at its end
(Shoeybi et al. 2019, "Megatron-LM", section 3). The embedding of the ids and the head are divided by ids.

transformers' own styles are for torch's linear layers, whose weights are stored output-first. Ours are input-first, and
`c_attn` holds queries, keys and values in one. So the plan on the configuration names the styles below.

Dropout and sampling draw the same random numbers in all processes only if these are seeded alike.

Shape suffixes: B batch, T tokens of this call, S tokens attended to, N heads, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import functional as F  # noqa: N812 - its usual name

# Where the oldest supported release has both.
from transformers.distributed.tensor_parallel import (
    ALL_PARALLEL_STYLES,  # pyright: ignore[reportPrivateImportUsage]
    TensorParallelLayer,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_torch_greater_or_equal


def register_styles() -> None:
    """Tell transformers the styles that `ImageGPTConfig.base_model_tp_plan` names; importing the models does it.

    With them `from_pretrained` divides a model among the processes that torchrun started. Forward and backward passes,
    `generate` and `save_pretrained` must then be called in all of them alike.

    Example, `torchrun --nproc-per-node 2 script.py`:
        >>> from transformers.distributed import DistributedConfig
        >>> divided = DistributedConfig(tp_size=2)
        >>> ImageGPTForCausalImageModeling.from_pretrained(folder, distributed_config=divided)  # doctest: +SKIP
    """
    styles = {
        "imagegpt_attention": DividedHeads(),
        "imagegpt_columns": DividedOutputs(),
        "imagegpt_embedding": DividedEmbedding(),
        "imagegpt_head": DividedHead(),
        "imagegpt_packed_kv": DividedOutputs(parts=2),
        "imagegpt_packed_qkv": DividedOutputs(parts=3),
        "imagegpt_replicated": Replicated(),
        "imagegpt_rows": DividedInputs(),
    }
    for name, style in styles.items():
        ALL_PARALLEL_STYLES.register(name, style)


class DividedOutputs(TensorParallelLayer):
    """A `Conv1D` whose outputs are divided: (B, T, inputs), the same everywhere, to this process's (B, T, part).

    Args:
        parts: layers that are packed side by side, 3 for queries, keys and values; each of them is divided.
    """

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts

    def validate_param(self, module: Any, param: str, mesh: Any, parameter_name: str | None = None) -> None:
        """Refuse, with a ValueError, an old torch, another kind of layer, or outputs that can't be shared."""
        if self.parts > 1 and not is_torch_greater_or_equal("2.12"):  # before, what was divided can't be joined again
            raise ValueError(f"A model is divided by torch 2.12 or newer; this is {torch.__version__}.")
        _check_kind(module, parameter_name or param)
        _check(module.weight.shape[1] // self.parts, "outputs", mesh, parameter_name or param)

    def shard_param(self, module: Any, param: str, mesh: Any) -> None:
        """Keep this process's columns of the weight, and what belongs to them of the bias."""
        dim = getattr(module, param).ndim - 1
        placement = Shard(dim) if self.parts == 1 else _StridedShard(dim, split_factor=self.parts)
        _place(module, param, mesh, placement)

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Compute with this process's part of the weights."""

        def forward(x_BTD: torch.Tensor) -> torch.Tensor:
            x: Any = _SumOfGradients.apply(x_BTD, mesh.get_group())
            return F.linear(x, module.weight.to_local().T, module.bias.to_local())

        module.forward = forward
        return module


class DividedInputs(TensorParallelLayer):
    """A `Conv1D` whose inputs are divided: this process's (B, T, part) to (B, T, outputs), the same everywhere."""

    def validate_param(self, module: Any, param: str, mesh: Any, parameter_name: str | None = None) -> None:
        """Refuse, with a ValueError, another kind of layer, or inputs that the processes can't share."""
        _check_kind(module, parameter_name or param)
        _check(module.weight.shape[0], "inputs", mesh, parameter_name or param)

    def shard_param(self, module: Any, param: str, mesh: Any) -> None:
        """Keep this process's rows of the weight, and all of the bias."""
        _place(module, param, mesh, Shard(0) if param == "weight" else Replicate())

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Add up what the processes compute with their parts, then add the bias, once."""

        def forward(x_BTD: torch.Tensor) -> torch.Tensor:
            total: Any = _Sum.apply(F.linear(x_BTD, module.weight.to_local().T), mesh.get_group())
            return total + module.bias.to_local()

        module.forward = forward
        return module


class DividedHeads(TensorParallelLayer):
    """An attention with this process's share of the heads, between a divided `c_attn` and a divided `c_proj`."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Give the attention its heads; the caller's masks and probabilities are still those of all heads.

        Raises:
            ValueError: a number of heads that the processes can't share.
        """
        _check(module.num_heads, "attention heads", mesh, f"layer {module.layer_idx}")
        module.num_heads //= mesh.size()
        attend = module.forward

        def forward(*args: Any, head_mask: torch.Tensor | None = None, output_attentions: bool = False, **kwargs: Any):
            if head_mask is not None and head_mask.shape[1] > 1:
                head_mask = head_mask.chunk(mesh.size(), dim=1)[mesh.get_local_rank()]
            out_BTD, probs_BNTS = attend(*args, head_mask=head_mask, output_attentions=output_attentions, **kwargs)
            if not output_attentions:
                return out_BTD, None
            return out_BTD, DTensor.from_local(probs_BNTS, mesh, [Shard(1)], run_check=False).full_tensor()

        module.forward = forward
        return module


class _DividedRows(TensorParallelLayer):
    """A weight whose rows are divided; the last process may have fewer of them."""

    def validate_param(self, module: Any, param: str, mesh: Any, parameter_name: str | None = None) -> None:
        """Refuse, with a ValueError, so few rows that a process would have none."""
        count = len(module.weight)
        if _rows_each(count, mesh) * (mesh.size() - 1) >= count:
            raise ValueError(f"{parameter_name or param}: {count} rows are too few for {mesh.size()} processes.")

    def shard_param(self, module: Any, param: str, mesh: Any) -> None:
        """Keep this process's rows."""
        _place(module, param, mesh, Shard(0))


class DividedEmbedding(_DividedRows):
    """An embedding: (B, T) ids to (B, T, D), the same everywhere."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Look up this process's ids, take zeros for the others', and add up over the processes."""

        def forward(ids_BT: torch.Tensor) -> torch.Tensor:
            count, rows = len(module.weight), module.weight.to_local()
            check = ids_BT.device.type == "cpu" and not torch.compiler.is_compiling()
            if check and ((ids_BT < 0) | (ids_BT >= count)).any():  # it would be zeros in every process
                raise IndexError(f"ids must be 0..{count - 1}.")
            places_BT = ids_BT - mesh.get_local_rank() * _rows_each(count, mesh)
            own_BT = (places_BT >= 0) & (places_BT < len(rows))
            found_BTD = F.embedding(places_BT.clamp(0, len(rows) - 1), rows) * own_BT[..., None]
            return _Sum.apply(found_BTD, mesh.get_group())  # pyright: ignore[reportReturnType]

        module.forward = forward
        return module


class DividedHead(_DividedRows):
    """A linear layer of torch without bias: (B, T, D) to all its outputs, both the same everywhere."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Compute this process's outputs, and collect them all."""

        def forward(x_BTD: torch.Tensor) -> torch.Tensor:
            x: Any = _SumOfGradients.apply(x_BTD, mesh.get_group())
            part = F.linear(x, module.weight.to_local())
            # Not `out_features`: a head that is the embedding has a row for SOS too.
            shape = torch.Size([*part.shape[:-1], len(module.weight)])
            stride = torch.empty(shape, device="meta").stride()
            whole = DTensor.from_local(part, mesh, [Shard(-1)], run_check=False, shape=shape, stride=stride)
            return whole.full_tensor()

        module.forward = forward
        return module


class Replicated(TensorParallelLayer):
    """A module whose parameters every process has whole.

    They are distributed tensors like all others, because torch clips no gradients of both kinds together.
    """

    def should_use_local_tensors(self, module: Any) -> Any:
        """The module computes with plain tensors."""
        return True

    def shard_param(self, module: Any, param: str, mesh: Any) -> None:
        """Keep all of the parameter."""
        _place(module, param, mesh, Replicate())


class _Sum(torch.autograd.Function):
    """The sum over the processes; each of them gets all of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0], None


class _SumOfGradients(torch.autograd.Function):
    """x itself; its gradient is the sum over the processes, each of which used x for another part."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad = grads[0].clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def _place(module: Any, param: str, mesh: Any, placement: Any) -> None:
    """Say which part of a parameter is this process's; transformers then reads that part alone."""
    part = distribute_tensor(getattr(module, param), mesh, [placement], src_data_rank=None)
    module.register_parameter(param, nn.Parameter(part))


def _rows_each(count: int, mesh: Any) -> int:
    """Rows of every process but the last."""
    return -(-count // mesh.size())


def _check_kind(module: Any, where: str) -> None:
    if not isinstance(module, Conv1D):
        raise ValueError(f"{where} is no Conv1D's, and can't be divided: a quantised model runs in one process.")


def _check(number: int, what: str, mesh: Any, where: str) -> None:
    if number % mesh.size():
        raise ValueError(f"{where} has {number} {what}: tp_size must divide that, and {mesh.size()} does not.")
