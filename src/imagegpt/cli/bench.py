"""imagegpt bench"""

from __future__ import annotations

from typing import Literal

from cyclopts import App

from imagegpt.cli.options import Json, ModelOptions, Whole, parse_layers
from imagegpt.cli.output import print_record
from imagegpt.engine.backends import TORCH_DTYPES, Precision
from imagegpt.engine.features import layers_of
from imagegpt.errors import InputError, check_count
from imagegpt.pipeline import ImageGPT

bench = App(name="bench", help="Measure how fast this machine is, and what the limit is.")
bench.command("imagegpt.cli.bench_data:data", name="data", help="Time the batches that training reads.")
MANY = 1 << 20  # pictures: what is chosen for long runs is measured
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


@bench.command
def features(
    *,
    layer: str | None = None,
    pictures: Whole = 64,
    batch_size: Whole | None = None,
    model: ModelOptions | None = None,
    json_: Json = False,
) -> None:
    """Time features of random pictures, beside the products that they need and the rate of one such product.

    Args:
        layer: blocks that are run: 12, or 4,8,12, or all; default: the middle.
        pictures: how many.
        batch_size: pictures that are run together; default: what is fastest.
        model: which model, and how it runs.
        json_: print it as JSON.
    """
    from imagegpt.engine.speed import measure_features

    options = model or ModelOptions()
    check_count("--pictures", pictures)
    if batch_size is not None:
        check_count("--batch-size", batch_size)
    opened = options.open()
    layers = layers_of(parse_layers(layer), opened.spec.n_layer)
    backend = opened.feature_backend(layers, MANY)
    extractor = opened.extractor(layers, "mean", backend)
    device = opened.model.device if backend == "torch" else None
    record = {"model": options.model, "layers": layers, "precision": options.precision}
    record |= {"backend": backend, "pictures": pictures}
    dtype = TORCH_DTYPES.get(options.precision, "float32")
    print_record(record | measure_features(opened.spec, extractor, layers, pictures, batch_size, dtype, device), json_)
