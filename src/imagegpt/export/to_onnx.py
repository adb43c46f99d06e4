"""Models as ONNX files: built, written weight by weight, and compared with the network in torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.export.blocks import GraphBuilder
from imagegpt.export.check import Difference, Outputs, check_ids, compare, in_two_parts
from imagegpt.export.exported import Exported, begin, export_folder
from imagegpt.export.graphs import IDS, LOGITS, build
from imagegpt.export.onnx_file import LIMIT, as_model, write_embedded, write_external
from imagegpt.export.options import FILES, Function, OnnxPrecision
from imagegpt.export.source import Parameters, Source
from imagegpt.export.weights import Weight, find_weight
from imagegpt.files import sizes
from imagegpt.onnx import InferenceSession, OnnxDecoder
from imagegpt.onnx.metadata import Metadata

DATA = "model.onnx_data"


def export_onnx(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: OnnxPrecision = "fp32",
    only: Sequence[Function] | None = None,
    hidden: Sequence[int] = (),
    external_data: bool = False,
    check: bool = True,
) -> Exported:
    """Write a model as ONNX files that any runtime of ai.onnx opset 18 runs, with its config and processor beside.

    Args:
        model: "nano", a model folder, or a Hugging Face Hub id.
        out: a new or empty folder.
        precision: "fp32", "fp16" or "int8"; see `imagegpt.export.weights`.
        only: some of "model", "classification" and "decoder"; default: all that the model has the heads for.
        hidden: layers whose states model.onnx gives too; see `imagegpt.export.graphs.build`.
        external_data: put the weights of all graphs into one file beside them, which is done anyway above 2 GiB.
        check: run the result and the network in torch on the same ids, and write nothing where they differ too much.

    Returns:
        What was written, and how much it differs.

    Raises:
        InputError: the model or the folder can't be used, a head or a layer that is asked for is not there, or the
            result differs from the network; nothing is left behind.
    """
    if precision not in get_args(OnnxPrecision):
        raise InputError(f"ONNX export has the precisions {', '.join(get_args(OnnxPrecision))}, not {precision!r}.")
    target, source, functions = begin(model, out, only, hidden)
    builders: dict[Function, GraphBuilder] = {
        name: build(source, name, precision, hidden if name == "model" else ()) for name in functions
    }
    with export_folder(source, target, precision) as (folder, about):
        _write(folder, source, builders, about, precision, external_data)
        differences = _check(folder, source, functions, hidden, precision) if check else []
    return Exported(target, precision, sizes(target), differences)


def _write(
    folder: Path,
    source: Source,
    builders: dict[Function, GraphBuilder],
    about: Metadata,
    precision: OnnxPrecision,
    external: bool,
) -> None:
    parameters = Parameters(source)
    names = dict.fromkeys(name for builder in builders.values() for name in builder.weights)
    weights = {name: find_weight(name, parameters, precision) for name in names}
    models = {}
    for function, builder in builders.items():
        classes = source.classes if function == "classification" else ()
        texts = replace(about, classes=classes).texts()
        models[f"{FILES[function]}.onnx"] = as_model(builder, texts, f"{source.folder.name}: {function}, {precision}")
    used = {f"{FILES[function]}.onnx": builder.weights for function, builder in builders.items()}
    if external or max(_bytes(weights, of) for of in used.values()) > LIMIT:
        write_external(folder, models, used, weights, DATA)
        return
    for name, proto in models.items():
        write_embedded(folder / name, proto, {weight: weights[weight] for weight in used[name]})


def _bytes(weights: dict[str, Weight], names: Iterable[str]) -> int:
    return sum(weights[name].nbytes for name in names)


def _check(
    folder: Path, source: Source, functions: Sequence[Function], hidden: Sequence[int], precision: OnnxPrecision
) -> list[Difference]:
    import torch

    from imagegpt.export.networks import load_functions, run_function

    networks, found = load_functions(source, functions, hidden), []
    for function in functions:
        ids_BS = check_ids(source, function)
        session = InferenceSession(folder / f"{FILES[function]}.onnx", providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            wanted = run_function(networks[function], source, function, ids_BS, hidden)
        found += compare(function, _run(session, function, ids_BS), wanted, precision)
    return found


def _run(session: InferenceSession, function: Function, ids_BS: NDArray[np.int64]) -> Outputs:
    if function != "decoder":
        names = [value.name for value in session.get_outputs()]
        values: Any = session.run(names, {IDS: ids_BS})
        return dict(zip(names, values, strict=True))
    decoder = OnnxDecoder(session)
    logits, past = [], decoder.empty_past(len(ids_BS))
    for part in in_two_parts(ids_BS):
        new, *past = decoder.logits(part, past)
        logits.append(new)
    return {LOGITS: np.concatenate(logits, 1)}
