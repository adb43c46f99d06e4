"""ImageGPT in operators of ai.onnx alone, so that any runtime runs it: embedding, blocks, final norm.

The residual stream, the norms and the softmax are float32 in every precision. In fp16 the products, their biases and
the activations are float16; scores are products of float32 numbers, since those of float16 can overflow. In int8 a
product's other factor is quantised on the fly, each row by itself, so that a picture does not depend on what else is in
the batch.

Shape suffixes: B rows, S new ids, P ids before them, M = P + S, D width, N heads, H head width, R = B S.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from imagegpt.export.activations import find_activation
from imagegpt.export.options import OnnxPrecision
from imagegpt.export.weights import LEVELS, SCALES
from imagegpt.spec import ModelSpec

OPSET = 18
IR_VERSION = 8
SMALLEST = 1e-30  # scale of a row of zeros
MIDDLE = 128  # the unsigned byte that means 0
EMBEDDING, PLACES = "transformer.wte.weight", "transformer.wpe.weight"


@dataclass
class GraphBuilder:
    """Collects nodes; a method adds a part and returns the name of its output.

    Args:
        spec: the model's numbers.
        precision: see `imagegpt.export.weights`.
        causal: whether ids see only those before them.

    Raises:
        InputError: ONNX export has no such activation.
    """

    spec: ModelSpec
    precision: OnnxPrecision
    causal: bool
    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    weights: dict[str, None] = field(default_factory=dict)  # names, in the order of their use

    def __post_init__(self) -> None:
        self.kind = TensorProto.FLOAT16 if self.precision == "fp16" else TensorProto.FLOAT
        self._activation = find_activation(self.spec.activation_function)
        self._count = 0

    def embed(self, ids: str, past: str | None = None) -> str:
        """Ids (B, S) at the positions behind `past` (1,) others: float32 (B, S, D). Sets the mask of attention, too."""
        length = self.op("Shape", ids, start=1, end=2)
        total = length if past is None else self.op("Add", past, length)
        zero, axis = self.constant(0), self.constant([0])
        begin = zero if past is None else self.op("Squeeze", past, axis)
        end, one = self.op("Squeeze", total, axis), self.constant(1)
        # Looked up one by one, so that more ids than there are positions are an error.
        positions = self.op("Range", begin, end, one)
        self._mask = self._causal_mask(positions, self.op("Range", zero, end, one)) if self.causal else None
        rows = [self.op("Gather", self.weight(name), of) for name, of in ((EMBEDDING, ids), (PLACES, positions))]
        return self.op("Add", *(self.as_float(row) for row in rows))

    def block(self, layer: int, x: str) -> str:
        """One block: float32 (B, S, D) to the same."""
        name, heads = f"transformer.h.{layer}", self.spec.heads(layer)
        qkv = self.product(self.norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
        turned = self._turned(qkv, [0, 0, 3 * heads, self.spec.head_width])
        attended = self._attention(layer, *self._split(turned))
        merged = self._turned(attended, [0, 0, heads * self.spec.head_width])
        x = self.op("Add", x, self.as_float(self.product(merged, f"{name}.attn.c_proj")))
        inner = self._activation(self, self.product(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        return self.op("Add", x, self.as_float(self.product(inner, f"{name}.mlp.c_proj")))

    def norm(self, x: str, name: str, out: str | None = None) -> str:
        """Divide float32 (B, S, D) by the root of its mean square, and scale; of the products' type, or float32 `out`.

        In the operators and the order in which runtimes look for this norm, to run it as one.
        """
        two, eps = (self.constant(number, np.float32) for number in (2, self.spec.layer_norm_epsilon))
        mean = self.op("ReduceMean", self.op("Pow", x, two), self.constant([-1]))
        normed = self.op("Div", x, self.op("Sqrt", self.op("Add", mean, eps)))
        scaled = self.op("Mul", normed, self.weight(f"{name}.weight"), out=out)
        return scaled if out else self.as_kind(scaled)

    def product(self, x: str, name: str) -> str:
        """(B, S, inputs) times a weight, and its bias: (B, S, outputs)."""
        if self.precision == "int8":
            product = self._int8_product(x, name)
        else:
            product = self.op("MatMul", x, self.weight(f"{name}.weight"))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def head(self, x: str, name: str, out: str) -> str:
        """Float32 states times a head's weight, which has no bias: the float32 output `out`."""
        if self.precision != "fp16":
            return self.op("MatMul", x, self.weight(name), out=out)
        return self.op("Cast", self.op("MatMul", self.as_kind(x), self.weight(name)), to=TensorProto.FLOAT, out=out)

    def remember(self, layer: int, keys: str, values: str) -> tuple[str, str]:
        """New keys and values (B, N, S, H) behind those of a past; here there is none."""
        return keys, values

    def op(self, operator: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add an operator of ai.onnx with one output, which gets a name of its own where `out` names none."""
        self._count += 1
        out = out or f"{operator}.{self._count}"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [out], name=f"{operator}.{self._count}", **attributes)
        )
        return out

    def weight(self, name: str) -> str:
        """A parameter, or its levels or scales."""
        self.weights[name] = None
        return name

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        """Numbers that are part of the graph."""
        array = np.asarray(value, dtype)
        name = f"{array.dtype}.{array.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        """A constant of the products' type."""
        half = self.kind == TensorProto.FLOAT16
        return self.constant(value, np.float16 if half else np.float32)

    def as_float(self, x: str) -> str:
        """From the products' type to float32."""
        return x if self.kind == TensorProto.FLOAT else self.op("Cast", x, to=TensorProto.FLOAT)

    def as_kind(self, x: str) -> str:
        """From float32 to the products' type."""
        return x if self.kind == TensorProto.FLOAT else self.op("Cast", x, to=self.kind)

    def input(self, name: str, kind: int, shape: list[Any]) -> str:
        """Name an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: list[Any]) -> None:
        """Name an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _attention(self, layer: int, queries: str, keys: str, values: str) -> str:
        """What each new id attends to: (B, N, S, H) of each to the same."""
        keys, values = self.remember(layer, keys, values)
        scale = self.constant(self.spec.attention_scale(layer), np.float32)
        scaled = self.op("Mul", self.as_float(queries), scale)
        scores = self.op("MatMul", scaled, self.op("Transpose", self.as_float(keys), perm=[0, 1, 3, 2]))
        if self._mask is not None:
            scores = self.op("Add", scores, self._mask)
        probs = self.as_kind(self.op("Softmax", scores, axis=-1))
        return self.op("MatMul", probs, values)

    def _causal_mask(self, positions: str, all_positions: str) -> str:
        """(S, M): minus infinity where a key comes after the query."""
        queries = self.op("Unsqueeze", positions, self.constant([-1]))
        seen = self.op("LessOrEqual", all_positions, queries)
        zero, never = self.constant(0, np.float32), self.constant(-np.inf, np.float32)
        return self.op("Where", seen, zero, never)

    def _turned(self, x: str, shape: list[int]) -> str:
        """(B, S, N H) as (B, N, S, H), or the other way round: into 4 numbers of a shape, or from them into 3."""
        to = self.constant(shape)
        if len(shape) == 4:
            return self.op("Transpose", self.op("Reshape", x, to), perm=[0, 2, 1, 3])
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), to)

    def _split(self, qkv: str) -> list[str]:
        """Queries, keys and values (B, N, S, H) of all three as (B, 3 N, S, H)."""
        self._count += 1
        parts = [f"{part}.{self._count}" for part in ("queries", "keys", "values")]
        self.nodes.append(helper.make_node("Split", [qkv], parts, f"Split.{self._count}", axis=1, num_outputs=3))
        return parts

    def _int8_product(self, x: str, name: str) -> str:
        """A product of bytes, without its bias: each row of x has a scale of its own."""
        peak = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]))
        scale = self.op("Max", self.op("Mul", peak, self.number(1 / (MIDDLE - 1))), self.number(SMALLEST))
        shifted = self.op("Add", self.op("Round", self.op("Div", x, scale)), self.number(float(MIDDLE)))
        levels = self.op("Cast", shifted, to=TensorProto.UINT8)
        middle, zero = self.constant(MIDDLE, np.uint8), self.constant(0, np.int8)
        product = self.op("MatMulInteger", levels, self.weight(f"{name}{LEVELS}"), middle, zero)
        scaled = self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), self.weight(f"{name}{SCALES}"))
        return self.op("Mul", scaled, scale)
