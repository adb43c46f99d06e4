"""imagegpt bench"""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from imagegpt.cli.output import Json, Whole, print_record
from imagegpt.engine.backends import Precision
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT

bench = App(name="bench", help="Measure how fast this machine is, and what the limit is.")
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@bench.command
def generate(
    model: str = "nano",
    /,
    *,
    batch: Whole = 1,
    steps: Whole = 64,
    precision: Precision = "fp32",
    backend: Literal["onnx", "torch"] | None = None,
    device: str | None = None,
    json_: Json = False,
) -> None:
    """Time the first and the last steps of pictures, beside what they must read and what memory gives.

    Three numbers stand for the first steps, the last ones, and their mean.

    Args:
        model: "nano", a model folder, or a Hugging Face Hub id.
        batch: pictures drawn together.
        steps: ids of each window.
        precision: fp32, int8, bf16 or fp16.
        backend: onnx or torch; default: onnx on a CPU, torch on a GPU.
        device: cpu, cuda or mps; default: the best one here.
        json_: print it as JSON.
    """
    from imagegpt.engine.speed import measure

    opened = ImageGPT.from_pretrained(model, device=device, precision=precision, backend=backend)
    if batch < 1:
        raise InputError(f"--batch must be at least 1, not {batch}.")
    if not 2 <= steps <= opened.spec.n_positions:
        raise InputError(f"--steps must be 2 to {opened.spec.n_positions}, not {steps}.")
    record = {"model": model, "batch": batch, "precision": precision, "backend": type(opened.backend).__name__}
    print_record(record | measure(opened.backend, batch, steps, NUMBER_BYTES[precision]), json_)
