"""Models as torch's exported programs, which run without this package and without transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.export import Dim

from imagegpt.errors import InputError, reason
from imagegpt.export.check import Difference, check_ids, compare
from imagegpt.export.exported import Exported, begin, export_folder
from imagegpt.export.networks import empty_past, load_functions, run_function
from imagegpt.export.options import FILES, Function, TorchPrecision
from imagegpt.export.source import Source
from imagegpt.files import sizes
from imagegpt.onnx.metadata import Metadata

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXTRA = "imagegpt.json"  # the file in the program that says which model it is


def export_torch(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: TorchPrecision = "fp32",
    only: Sequence[Function] | None = None,
    hidden: Sequence[int] = (),
    check: bool = True,
) -> Exported:
    """Write a model as programs of `torch.export`, for any batch and length, with its config and processor beside.

    Args:
        model: "nano", a model folder, or a Hugging Face Hub id.
        out: a new or empty folder.
        precision: "fp32", "bf16" or "fp16".
        only: some of "model", "classification" and "decoder"; default: all that the model has the heads for.
        hidden: layers whose states model.pt2 gives too, behind the last ones.
        check: load the programs again and run them beside the network in float32; write nothing where they differ.

    Returns:
        What was written, and how much it differs.

    Raises:
        InputError: the model or the folder can't be used, a head or a layer that is asked for is not there, or the
            result differs from the network; nothing is left behind.
    """
    if precision not in get_args(TorchPrecision):
        raise InputError(f"Programs of torch have the precisions {', '.join(DTYPES)}, not {precision!r}.")
    target, source, functions = begin(model, out, only, hidden)
    with export_folder(source, target, precision) as (folder, about), torch.no_grad():
        networks = load_functions(source, functions, hidden, DTYPES[precision])
        for function in functions:
            _write(folder / f"{FILES[function]}.pt2", source, function, networks.pop(function), about)
        differences = _check(folder, source, functions, hidden, precision) if check else []
    return Exported(target, precision, sizes(target), differences)


def _write(path: Path, source: Source, function: Function, network: nn.Module, about: Metadata) -> None:
    inputs, dimensions = _example(source, function, DTYPES[about.precision])
    try:
        program = torch.export.export(network, inputs, dynamic_shapes=dimensions, strict=False)
    except Exception as error:  # of many classes; a layer that can't be traced, mostly
        raise InputError(f"torch can't export the {function} of {source.folder}: {reason(error)}") from error
    texts = replace(about, classes=source.classes if function == "classification" else ()).texts()
    torch.export.save(program, path, extra_files={EXTRA: json.dumps(texts)})


def _example(source: Source, function: Function, dtype: torch.dtype) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs to trace with, and which of their sizes any other may take the place of.

    No size on the way is 0 or 1, which torch would take for a size that never changes; ids without the last count too.
    """
    length = source.spec.n_positions
    if length < 4:
        raise InputError(f"{source.folder} has {length} positions; programs of torch need at least 4.")
    batch, new = Dim("batch", min=1), Dim("length", min=1, max=length)
    ids = torch.zeros(2, 3, dtype=torch.long)
    if function != "decoder":
        return (ids,), ({0: batch, 1: new},)
    past = empty_past(source, 2, dtype, length=2)
    before = {0: batch, 2: Dim("past_length", min=0, max=length - 1)}
    return (ids, past), ({0: batch, 1: new}, [(before, before) for _ in past])


def _check(
    folder: Path, source: Source, functions: Sequence[Function], hidden: Sequence[int], precision: str
) -> list[Difference]:
    found = []
    wanted = load_functions(source, functions, hidden)
    for function in functions:
        program: Any = torch.export.load(folder / f"{FILES[function]}.pt2").module()
        ids_BS = check_ids(source, function)
        got = run_function(program, source, function, ids_BS, hidden)
        found += compare(function, got, run_function(wanted[function], source, function, ids_BS, hidden), precision)
    return found
