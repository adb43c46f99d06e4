"""The graph that onnxruntime runs: a prompt or one id a row in, logits of the next id out, keys and values in place.

It is built from the numbers of a model and its parameters with onnxruntime's own operators (domain com.microsoft):
GroupQueryAttention, which appends to one buffer; SkipSimplifiedLayerNormalization, which adds a bias and the residual
and normalises at once; QuickGelu; MatMulNBits. The weights are no part of the graph's bytes: they are handed over as
they lie in memory, so that no file, no copy and no limit of 2 GiB stands between.

`GraphBuilder` has the blocks, whatever attention they have; `onnx_features.py` builds another graph on it.

Shape suffixes: B rows, S new ids, M positions of the cache, D width, N heads, H head width, K colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec

CONTRIB = "com.microsoft"
HEAD_UNIT = 8  # GroupQueryAttention's head widths are multiples of it
OPSET = 20  # the first with Gelu
IR_VERSION = 10
# Activation -> operator, domain, attributes. transformers knows more; those run on the torch backend.
ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "quick_gelu": ("QuickGelu", CONTRIB, {"alpha": 1.702}),
    "silu": ("QuickGelu", CONTRIB, {"alpha": 1.0}),
    "swish": ("QuickGelu", CONTRIB, {"alpha": 1.0}),
    "gelu": ("Gelu", "", {}),
    "gelu_new": ("Gelu", "", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", "", {"approximate": "tanh"}),
    "relu": ("Relu", "", {}),
}


def build_graph(spec: ModelSpec, weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Build the graph of a model, without its weights.

    Inputs are `ids` (B, S), `positions` (S,), `last` (B,) int32, the position of each row's last new id, `total` ()
    int32, one more, and the cache, `past.key.0` and so on; outputs `logits` (B, K) after the last id, and
    `present.key.0` and so on, which must be bound to the memory of their inputs.

    Args:
        spec: the model's numbers.
        weights: what `imagegpt.engine.onnx_weights` makes of the parameters. Products whose weight is there as levels
            and scales multiply in int8; where the cache has scales, it is int8.

    Raises:
        InputError: onnxruntime has no such activation, or no heads of this width.
    """
    return _DecoderBuilder(spec, weights).build()


class GraphBuilder:
    """Collects nodes and weights; a method adds a part and returns the name of its output.

    Args:
        spec: the model's numbers.
        weights: what `imagegpt.engine.onnx_weights` makes of the parameters.

    Raises:
        InputError: onnxruntime has no such activation.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, NDArray[Any]]) -> None:
        if spec.activation_function not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise InputError(
                f'onnxruntime has no activation "{spec.activation_function}" (it has {known}); use backend="torch".'
            )
        self.spec, self.weights = spec, weights
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, TensorProto] = {}

    def states(self, x: str, blocks: int) -> Iterator[str]:
        """Run embedded ids through the first `blocks` blocks: the normalised states before each and after the last."""
        spec = self.spec
        attributes = {"epsilon": spec.layer_norm_epsilon, "axis": -1}
        normed = self.node("SimplifiedLayerNormalization", [x, "transformer.h.0.ln_1.weight"], "normed", **attributes)
        yield normed
        for layer in range(blocks):
            name = f"transformer.h.{layer}"
            after = f"transformer.h.{layer + 1}.ln_1" if layer + 1 < spec.n_layer else "transformer.ln_f"
            qkv = self.product(normed, spec.n_embd, f"{name}.attn.c_attn", bias=True)
            attended = self.attention(layer, qkv)
            added = self.product(attended, spec.heads(layer) * spec.head_width, f"{name}.attn.c_proj")
            x, normed = self._add_and_norm(x, added, f"{name}.attn.c_proj", f"{name}.ln_2")
            inner = self._activation(self.product(normed, spec.n_embd, f"{name}.mlp.c_fc", bias=True))
            added = self.product(inner, spec.inner_width, f"{name}.mlp.c_proj")
            x, normed = self._add_and_norm(x, added, f"{name}.mlp.c_proj", after)
            yield normed

    def attention(self, layer: int, qkv: str) -> str:
        """What each id attends to (B, S, N H), from queries, keys and values (B, S, 3 N H)."""
        raise NotImplementedError

    def product(self, x: str, inner: int, name: str, bias: bool = False, output: str | None = None) -> str:
        """x, `inner` wide, times a weight, plus its bias if asked for."""
        output = output or f"{name}.out"
        biases = [f"{name}.bias"] if bias else []
        if f"{name}.levels" in self.weights:
            outer, _, size = self.weights[f"{name}.levels"].shape
            inputs = [x, f"{name}.levels", f"{name}.scales", *(["", "", *biases] if bias else [])]
            sizes = {"K": inner, "N": outer, "bits": 8, "block_size": size, "accuracy_level": 4}
            return self.node("MatMulNBits", inputs, output, CONTRIB, **sizes)
        product = self.node("MatMul", [x, f"{name}.weight"], f"{name}.product" if bias else output)
        return self.node("Add", [product, *biases], output) if bias else product

    def _add_and_norm(self, x: str, added: str, of: str, norm: str) -> tuple[str, str]:
        """The residual sum x + added + the bias of the product `of`, and that sum normalised by `norm`."""
        inputs = [x, added, f"{norm}.weight", f"{of}.bias"]
        outputs = [f"{norm}.out", "", "", f"{of}.residual"]
        epsilon = self.spec.layer_norm_epsilon
        node = helper.make_node("SkipSimplifiedLayerNormalization", inputs, outputs, domain=CONTRIB, epsilon=epsilon)
        self.nodes.append(node)
        return outputs[3], outputs[0]

    def _activation(self, x: str) -> str:
        operator, domain, attributes = ACTIVATIONS[self.spec.activation_function]
        return self.node(operator, [x], f"{x}.active", domain, **attributes)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Numbers that are part of the graph; one name stands for one value."""
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add an operator with one output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def input(self, name: str, kind: int, shape: list[Any]) -> None:
        """Name an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, kind: int, shape: list[Any]) -> None:
        """Name an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def serialized(self) -> bytes:
        """The graph, without the weights' numbers."""
        placeholders = [_placeholder(name, value) for name, value in self.weights.items()]
        values = [*placeholders, *self.constants.values()]
        graph = helper.make_graph(self.nodes, "imagegpt", self.inputs, self.outputs, values)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()


class _DecoderBuilder(GraphBuilder):
    """The graph that decodes: see `build_graph`."""

    def build(self) -> bytes:
        """Put it together."""
        spec = self.spec
        if spec.head_width % HEAD_UNIT:
            raise InputError(
                f"onnxruntime has no heads of width {spec.head_width}, only multiples of {HEAD_UNIT}; "
                'use backend="torch".'
            )
        self.input("ids", TensorProto.INT64, ["B", "S"])
        self.input("positions", TensorProto.INT64, ["S"])
        self.input("last", TensorProto.INT32, ["B"])
        self.input("total", TensorProto.INT32, [])
        colors = self.node("Gather", ["transformer.wte.weight", "ids"], "colors")
        places = self.node("Gather", ["transformer.wpe.weight", "positions"], "places")
        *_, normed = self.states(self.node("Add", [colors, places], "embedded"), spec.n_layer)
        last_index = self.constant("last_index", np.array(-1, np.int64))
        last = self.node("Gather", [normed, last_index], "last_state", axis=1)
        self.product(last, spec.n_embd, "lm_head", output="logits")
        self.output("logits", TensorProto.FLOAT, ["B", spec.num_colors])
        return self.serialized()

    def attention(self, layer: int, qkv: str) -> str:
        """Append keys and values to the cache, and attend to all that is in it."""
        spec, heads = self.spec, self.spec.heads(layer)
        names = [f"key.{layer}", f"value.{layer}"]
        scales = [f"{name}.scale" for name in names if f"{name}.scale" in self.weights]
        kind = TensorProto.INT8 if scales else TensorProto.FLOAT
        for name in names:
            self.input(f"past.{name}", kind, ["B", heads, "M", spec.head_width])
            self.output(f"present.{name}", kind, ["B", heads, "M", spec.head_width])
        inputs = [qkv, "", "", *(f"past.{name}" for name in names), "last", "total"]
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": heads,
            "scale": self.spec.attention_scale(layer),
        }
        if scales:
            inputs += [""] * 5 + scales
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        output = f"attended.{layer}"
        outputs = [output, *(f"present.{name}" for name in names)]
        self.nodes.append(helper.make_node("GroupQueryAttention", inputs, outputs, domain=CONTRIB, **attributes))
        return output


def _placeholder(name: str, value: NDArray[Any]) -> TensorProto:
    """A weight's type and shape; its numbers are handed over with the session's options."""
    proto = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
    proto.data_location = TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="in memory")
    return proto
