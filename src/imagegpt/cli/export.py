"""imagegpt export"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from imagegpt import checkpoint
from imagegpt.cli.options import Json
from imagegpt.cli.output import print_record
from imagegpt.errors import InputError
from imagegpt.export.options import Function, parse_hidden


def export(
    model: str,
    /,
    *,
    to: Literal["onnx", "torch"],
    out: Path,
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    only: Annotated[list[Function] | None, Parameter(negative="")] = None,
    hidden: str | None = None,
    external_data: Annotated[bool, Parameter(negative="")] = False,
    check: bool = True,
    json_: Json = False,
) -> None:
    """Write a model in a form that others run: ONNX files, or programs of torch. See docs/exporting.md.

    One file for each function: model (ids to states), model_classification (ids to logits) and decoder (ids and a past
    to the next ids), of those that the model has the heads for. Its config and its image processor are put beside.

    Args:
        model: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
        to: onnx (for onnxruntime and other runtimes of ONNX), or torch (.pt2 files of torch.export).
        out: a new or empty folder.
        precision: fp32 or fp16; int8 for onnx; bf16 for torch.
        only: this function and no other; may be given several times.
        hidden: hidden states that the function model gives too, as transformers numbers them, such as 4,8; or all.
        external_data: for onnx: put the weights into a file of their own, as is done anyway above 2 GiB.
        check: run the result beside the network, and write nothing where they differ too much; it takes as much memory
            as both.
        json_: print what was written as JSON.
    """
    began = time.perf_counter()
    layers: list[int] = []
    if hidden is not None:
        folder = checkpoint.find_model(model)
        layers = parse_hidden(hidden, checkpoint.read_spec(folder).n_layer)
    options: dict[str, Any] = {"precision": precision, "only": only, "hidden": layers, "check": check}
    if to == "onnx":
        from imagegpt.export.to_onnx import export_onnx

        exported = export_onnx(model, out, **options, external_data=external_data)
    else:
        from imagegpt.export.to_torch import export_torch

        if external_data:
            raise InputError("--external-data is for --to onnx; a program of torch is one file.")
        exported = export_torch(model, out, **options)
    record = {"to": to, **exported.as_record(), "seconds": round(time.perf_counter() - began, 3)}
    if json_:
        print_record(record, True)
        return
    _print(record)


def _print(record: dict[str, Any]) -> None:
    console = Console(emoji=False, soft_wrap=True)
    table = Table("file", "bytes")
    for name, size in record["files"].items():
        table.add_row(name, f"{size:,}")
    console.print(table)
    if record["checked"]:
        table = Table("checked", "largest difference", "relative", "may be")
        for one in record["checked"]:
            name = f"{one['function']}: {one['output']}"
            table.add_row(name, f"{one['largest']:.2g}", f"{one['relative']:.2g}", f"{one['tolerance']:g}")
        console.print(table)
    console.print(f"{record['written']} ({record['seconds']:.1f} s)", highlight=False, markup=False)
