"""ONNX files of which no more than one weight need be in memory.

A file is a protobuf message. What `onnx` writes it holds whole, several times over; here the weights are appended to
the graph's message one by one, or written into a file beside it, which several graphs share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from imagegpt.export.blocks import IR_VERSION, OPSET, GraphBuilder
from imagegpt.export.weights import Weight

LIMIT = 2**31 - 2**24  # protobuf's 2 GiB, less what a graph without weights may take
PAGE = 4096  # runtimes map external weights that begin at a multiple of it
DELIMITED = 2  # protobuf's wire type of what is told with its length
Weights = Mapping[str, Weight]


def as_model(builder: GraphBuilder, metadata: Mapping[str, str], documentation: str) -> ModelProto:
    """A graph as a message, without its weights."""
    graph = helper.make_graph(
        builder.nodes, "imagegpt", builder.inputs, builder.outputs, list(builder.constants.values())
    )
    model = helper.make_model(
        graph,
        producer_name="imagegpt",
        producer_version=metadata["imagegpt.version"],
        doc_string=documentation,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    return model


def write_embedded(path: Path, model: ModelProto, weights: Weights) -> None:
    """Write a model into one file, weights included: below 2 GiB."""
    graph = model.graph.SerializeToString()
    heads = {name: _in_graph(name, weight) for name, weight in weights.items()}
    size = len(graph) + sum(len(heads[name]) + weight.nbytes for name, weight in weights.items())
    outer = ModelProto()
    outer.CopyFrom(model)
    outer.ClearField("graph")
    with path.open("wb") as file:
        file.write(outer.SerializeToString() + _prefix(ModelProto.GRAPH_FIELD_NUMBER, size) + graph)
        for name, weight in weights.items():
            file.write(heads[name])
            _write(file, weight)


def write_external(
    folder: Path, models: Mapping[str, ModelProto], used: Mapping[str, Iterable[str]], weights: Weights, data: str
) -> None:
    """Write several models whose weights lie in one file beside them, each weight once.

    Args:
        folder: to write into.
        models: name of a file -> its graph.
        used: name of a file -> names of the graph's weights.
        weights: of all graphs.
        data: name of the file of weights.
    """
    offsets: dict[str, int] = {}
    with (folder / data).open("wb") as file:
        for name, weight in weights.items():
            file.write(bytes(-file.tell() % PAGE))
            offsets[name] = file.tell()
            _write(file, weight)
    for filename, model in models.items():
        for name in used[filename]:
            tensor = _header(name, weights[name])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data), ("offset", offsets[name]), ("length", weights[name].nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(tensor)
        (folder / filename).write_bytes(model.SerializeToString())


def _header(name: str, weight: Weight) -> TensorProto:
    return TensorProto(name=name, dims=weight.shape, data_type=helper.np_dtype_to_tensor_dtype(weight.dtype))


def _in_graph(name: str, weight: Weight) -> bytes:
    """What stands before a weight's numbers, as a part of a graph's message."""
    inner = _header(name, weight).SerializeToString() + _prefix(TensorProto.RAW_DATA_FIELD_NUMBER, weight.nbytes)
    return _prefix(GraphProto.INITIALIZER_FIELD_NUMBER, len(inner) + weight.nbytes) + inner


def _write(file: BinaryIO, weight: Weight) -> None:
    values: Any = np.ascontiguousarray(weight.read())
    assert values.dtype == weight.dtype and values.shape == weight.shape
    file.write(values.data)


def _prefix(field: int, length: int) -> bytes:
    """What stands before a part of a message: its number, its kind and its length."""
    return _varint(field << 3 | DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits in a byte, the lowest first; the eighth bit says that more follow."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
