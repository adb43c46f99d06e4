"""Which backend runs a model: the one that is asked for, or the fastest that can."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakValueDictionary
from zipfile import BadZipFile

import numpy as np

from imagegpt import checkpoint
from imagegpt.engine.onnx_weights import Weights, cache_names, float_weights, int8_weights
from imagegpt.errors import InputError, reason
from imagegpt.files import cache_folder, write_whole
from imagegpt.spec import ModelSpec

if TYPE_CHECKING:
    from imagegpt.engine.features import Pool
    from imagegpt.engine.onnx_backend import OnnxBackend
    from imagegpt.engine.onnx_features import OnnxFeatures
    from imagegpt.engine.score import Scorer
    from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

Precision = Literal["fp32", "bf16", "fp16", "int8"]
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

WORTH_TORCH = 10**13  # operations from which on torch's higher rate makes up for its import, on two cores
CALIBRATION = 1  # counted up when `calibrate` changes, so that scales found before are not read again

# Sessions in use, by checkpoint and precision: objects that open the same files share one.
_sessions: WeakValueDictionary[tuple[str, str], OnnxBackend] = WeakValueDictionary()


def check_choice(backend: str | None, device: str | None, precision: str) -> None:
    """Refuse names that don't exist and pairs that don't go together, before anything is loaded.

    Raises:
        InputError: what is wrong, and what to choose.
    """
    if backend not in (None, "onnx", "torch"):
        raise InputError(f'backend must be "onnx" or "torch", not {backend!r}.')
    if precision not in get_args(Precision):
        raise InputError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}.")
    if backend == "onnx" and precision in ("bf16", "fp16"):
        raise InputError(f'precision {precision!r} needs backend="torch"; onnxruntime has fp32 and int8.')
    if backend == "onnx" and device not in (None, "cpu"):
        raise InputError(f'device {device!r} needs backend="torch"; onnxruntime runs on the CPU.')
    if precision == "int8" and (backend == "torch" or device not in (None, "cpu")):
        raise InputError(
            'precision "int8" is onnxruntime\'s, on the CPU; for torch, quantise a model with imagegpt.quantize.'
        )


def choose_backend(folder: Path, spec: ModelSpec, device: str | None, precision: str) -> str:
    """ "onnx" wherever the CPU is the place to run and onnxruntime has what the model needs, else "torch"."""
    from imagegpt.engine.onnx_graph import HEAD_UNIT

    fits = precision == "int8" or spec.head_width % HEAD_UNIT == 0
    return "onnx" if fits and _is_for_onnx(folder, spec, device, precision) else "torch"


def choose_for_pictures(folder: Path, spec: ModelSpec, device: str | None, precision: str, operations: int) -> str:
    """ "onnx" or "torch", whichever has run so many operations on whole pictures sooner; start-up counts too.

    On a CPU torch is about a sixth faster (benchmarks/RESULTS.md), and takes some seconds to import.
    """
    if precision != "int8" and not (checkpoint.is_causal(folder) and _is_for_onnx(folder, spec, device, precision)):
        return "torch"
    soon = operations < WORTH_TORCH and "torch" not in sys.modules
    return "onnx" if soon or precision == "int8" else "torch"


def _is_for_onnx(folder: Path, spec: ModelSpec, device: str | None, precision: str) -> bool:
    from imagegpt.engine.onnx_graph import ACTIVATIONS

    if precision == "int8":
        return True
    if precision != "fp32" or device not in (None, "cpu") or spec.activation_function not in ACTIVATIONS:
        return False
    if "quantization_config" in checkpoint.read_config(folder):
        return False
    return not (device is None and may_have_accelerator() and torch_device(None).type != "cpu")


def may_have_accelerator() -> bool:
    """Whether torch might find a GPU here: a look at the drivers, which takes no torch and no time."""
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if sys.platform == "win32":
        return find_library("nvcuda") is not None
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def torch_device(name: str | None) -> Any:
    """A torch device by its name; by default the first of cuda, mps, cpu that is there.

    Raises:
        InputError: it can't be used here.
    """
    import torch

    if name is None:
        own = os.environ.get("LOCAL_RANK")  # torchrun: each process has a GPU of its own
        cuda = "cuda" if own is None else f"cuda:{int(own) % max(1, torch.cuda.device_count())}"
        name = cuda if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"The device {name!r} can't be used here: {reason(error)}") from None
    return device


def load_network(folder: Path, device: str | None, precision: str) -> ImageGPTForCausalImageModeling:
    """A folder's network, with the head that draws, for inference in torch."""
    from imagegpt.model.loading import load_generative

    return load_generative(folder, _torch_dtype(precision), torch_device(device))


def load_class_network(folder: Path, device: str | None, precision: str) -> ImageGPTForImageClassification:
    """A folder's network, with its class head, for inference in torch."""
    from imagegpt.model.loading import load_classifier

    return load_classifier(folder, _torch_dtype(precision), torch_device(device))


def _torch_dtype(precision: str) -> Any:
    import torch

    return getattr(torch, TORCH_DTYPES.get(precision, "float32"))


def open_onnx(folder: Path, spec: ModelSpec, precision: Precision) -> OnnxBackend:
    """A folder's onnxruntime backend; while one is in use, others of the same checkpoint are the same."""
    from imagegpt.engine.onnx_backend import OnnxBackend

    fingerprint = checkpoint.fingerprint(folder)
    backend = _sessions.get((fingerprint, precision))
    if backend is None:
        weights = _weights(folder, spec, precision)
        if precision == "int8":
            weights |= _cache_scales(spec, weights, fingerprint)
        backend = _sessions[fingerprint, precision] = OnnxBackend(spec, weights)
    return backend


def open_onnx_features(
    folder: Path, spec: ModelSpec, precision: Precision, layers: Sequence[int], pool: Pool
) -> OnnxFeatures:
    """Features of a folder's model in onnxruntime."""
    from imagegpt.engine.onnx_features import OnnxFeatures

    if not checkpoint.is_causal(folder):
        raise InputError(f'{folder} is a bidirectional (BERT) model; its features need backend="torch".')
    return OnnxFeatures(spec, _weights(folder, spec, precision, {}), layers, pool)


def open_onnx_scorer(folder: Path, spec: ModelSpec, precision: Precision) -> Scorer:
    """The likelihoods of a folder's model in onnxruntime."""
    from imagegpt.engine.onnx_score import OnnxScorer
    from imagegpt.engine.step_score import StepScorer

    if not checkpoint.is_causal(folder):
        raise InputError(f'{folder} is a bidirectional (BERT) model; its scores need backend="torch".')
    if precision == "int8":
        return StepScorer(open_onnx(folder, spec, precision))
    return OnnxScorer(spec, _weights(folder, spec, precision))


def _weights(folder: Path, spec: ModelSpec, precision: Precision, heads: checkpoint.Heads | None = None) -> Weights:
    tensors = checkpoint.load_tensors(folder, heads)
    return int8_weights(spec, tensors) if precision == "int8" else float_weights(tensors)


def _cache_scales(spec: ModelSpec, weights: Weights, fingerprint: str) -> Weights:
    """The scales of an int8 cache, which take a run of the network to find: kept on disk."""
    from imagegpt.engine.onnx_backend import calibrate

    folder = cache_folder()
    path = None if folder is None else folder / f"int8-{fingerprint}-{CALIBRATION}.npz"
    scales = None if path is None else _read_scales(path, spec)
    if scales is None:
        scales = calibrate(spec, weights)
        if path is not None:
            with suppress(OSError, InputError):  # a full or read-only disk
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda temporary: np.savez(temporary, **scales))  # pyright: ignore[reportArgumentType]
    return scales


def _read_scales(path: Path, spec: ModelSpec) -> Weights | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {f"{name}.scale": file[f"{name}.scale"] for name in cache_names(spec)}
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None  # there is none yet, or it is damaged: it is made again
