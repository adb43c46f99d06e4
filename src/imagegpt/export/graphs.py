"""The graphs of an export: ids to hidden states, to classes, and, over keys and values of a past, to the next ids.

Shape suffixes: B rows, S new ids, P ids before them, D width, N heads, H head width, K colours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from imagegpt.checkpoint import HEAD, SCORE
from imagegpt.export.blocks import GraphBuilder
from imagegpt.export.options import Function, OnnxPrecision
from imagegpt.export.source import Source

IDS, STATES, LOGITS = "input_ids", "last_hidden_state", "logits"
BATCH, LENGTH, PAST, TOTAL = "batch", "length", "past_length", "total_length"


def build(source: Source, function: Function, precision: OnnxPrecision, hidden: Sequence[int] = ()) -> GraphBuilder:
    """The graph of one function, without its weights.

    Args:
        source: the model.
        function: "model": `input_ids` (B, S) to `last_hidden_state` (B, S, D). "classification": to `logits` (B, C).
            "decoder": with `past_key_values.0.key` and so on, (B, N, P, H), to `logits` (B, S, K) and `present.0.key`
            and so on, (B, N, P + S, H), which are of the products' type. All other outputs are float32.
        precision: see `imagegpt.export.weights`.
        hidden: of "model": layers whose states are outputs too, `hidden_states.4` and so on, as transformers counts
            them: 0 is the embedding, L the last one, behind the final norm.

    Raises:
        InputError: ONNX export lacks the activation.
    """
    if function == "decoder":
        return _decoder(_DecoderBuilder(source.spec, precision, source.causal))
    builder = GraphBuilder(source.spec, precision, source.causal)
    builder.input(IDS, TensorProto.INT64, [BATCH, LENGTH])
    if function == "model":
        return _model(builder, hidden)
    return _classification(builder, source)


def cache_name(side: str, layer: int, part: str) -> str:
    """Name of a layer's keys or values: `side` is past_key_values or present."""
    return f"{side}.{layer}.{part}"


def _model(builder: GraphBuilder, hidden: Sequence[int]) -> GraphBuilder:
    spec, x = builder.spec, builder.embed(IDS)
    states = [x]
    for layer in range(spec.n_layer):
        states.append(x := builder.block(layer, x))
    states[-1] = builder.norm(x, "transformer.ln_f", out=STATES)
    builder.output(STATES, TensorProto.FLOAT, [BATCH, LENGTH, spec.n_embd])
    for layer in hidden:
        name = builder.op("Identity", states[layer], out=f"hidden_states.{layer}")
        builder.output(name, TensorProto.FLOAT, [BATCH, LENGTH, spec.n_embd])
    return builder


def _classification(builder: GraphBuilder, source: Source) -> GraphBuilder:
    """The mean of the last states over the ids as they are read, and the class head."""
    x = builder.embed(_behind_start(builder) if source.start else IDS)
    for layer in range(source.spec.n_layer):
        x = builder.block(layer, x)
    last = builder.norm(x, "transformer.ln_f", out=STATES)
    mean = builder.op("ReduceMean", last, builder.constant([1]), keepdims=0)
    builder.output(builder.head(mean, SCORE, LOGITS), TensorProto.FLOAT, [BATCH, source.heads[SCORE]])
    return builder


def _behind_start(builder: GraphBuilder) -> str:
    """SOS and all ids but the last, (B, S)."""
    first = [builder.constant([number]) for number in (0, -1, 1)]
    kept = builder.op("Slice", IDS, *first)
    rows = builder.op("Shape", IDS, start=0, end=1)
    shape = builder.op("Concat", rows, builder.constant([1]), axis=0)
    start = builder.op("Expand", builder.constant([[builder.spec.sos]]), shape)
    return builder.op("Concat", start, kept, axis=1)


class _DecoderBuilder(GraphBuilder):
    """Keys and values are inputs and outputs."""

    def remember(self, layer: int, keys: str, values: str) -> tuple[str, str]:
        heads, width = self.spec.heads(layer), self.spec.head_width
        joined = []
        for part, new in (("key", keys), ("value", values)):
            past = self.input(cache_name("past_key_values", layer, part), self.kind, [BATCH, heads, PAST, width])
            present = self.op("Concat", past, new, axis=2, out=cache_name("present", layer, part))
            self.output(present, self.kind, [BATCH, heads, TOTAL, width])
            joined.append(present)
        return joined[0], joined[1]


def _decoder(builder: GraphBuilder) -> GraphBuilder:
    spec = builder.spec
    builder.input(IDS, TensorProto.INT64, [BATCH, LENGTH])
    builder.output(LOGITS, TensorProto.FLOAT, [BATCH, LENGTH, spec.num_colors])
    x = builder.embed(IDS, builder.op("Shape", cache_name("past_key_values", 0, "key"), start=2, end=3))
    for layer in range(spec.n_layer):
        x = builder.block(layer, x)
    builder.head(builder.norm(x, "transformer.ln_f", out=STATES), HEAD, LOGITS)
    return builder
