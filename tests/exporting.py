"""Model folders that are exported, and sessions of what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from faces import Causal, K, T, make
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.export import export_onnx

GRID = (3, 4)
assert GRID[0] * GRID[1] == T


def save(model: Any, folder: Path, grid: tuple[int, int] = GRID) -> Path:
    """A model with its processor, as a folder."""
    model.save_pretrained(folder)
    save_preprocessor(folder, PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (K, 3))), Framing(*grid))
    return folder


def saved(folder: Path, face: Any = Causal, pruned: Any = None, **numbers: Any) -> Path:
    """A tiny model's folder."""
    model = make(face, **{name: value for name, value in numbers.items() if name != "is_causal"})
    if not numbers.get("is_causal", True):
        model.config.is_causal = False
    if pruned:
        model.prune_heads(pruned)
    return save(model, folder)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime's own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def exported(source: Path, out: Path, function: str = "model", **options: Any) -> onnxruntime.InferenceSession:
    """A session of one function of a folder, which is not compared: the tests do that."""
    files = {"model": "model", "classification": "model_classification", "decoder": "decoder"}
    export_onnx(source, out, **{"check": False, "only": [function], **options})
    return session_of(out / f"{files[function]}.onnx")


def run(session: onnxruntime.InferenceSession, **feed: Any) -> dict[str, np.ndarray]:
    """All outputs by their names."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def feed_of(ids: np.ndarray, past: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What decoder.onnx takes."""
    feed = {"input_ids": ids}
    for layer, pair in enumerate(past):
        feed |= {f"past_key_values.{layer}.{part}": value for part, value in zip(("key", "value"), pair, strict=True)}
    return feed


def empty_past(spec: Any, rows: int, dtype: Any = np.float32) -> list[tuple[np.ndarray, np.ndarray]]:
    shapes = [(rows, spec.heads(layer), 0, spec.head_width) for layer in range(spec.n_layer)]
    return [(np.empty(shape, dtype), np.empty(shape, dtype)) for shape in shapes]


def present_of(outputs: dict[str, np.ndarray], layers: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(outputs[f"present.{layer}.key"], outputs[f"present.{layer}.value"]) for layer in range(layers)]


def ids_of(rows: int, length: int, colors: int = K, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, colors, (rows, length))


def states_of(model: Any, ids: np.ndarray) -> np.ndarray:
    """The last states of a torch model, the package's own or transformers'."""
    trunk = getattr(model, "transformer", model)
    with torch.no_grad():
        return trunk(torch.from_numpy(ids), use_cache=False).last_hidden_state.numpy()


def assert_near(got: np.ndarray, wanted: np.ndarray, atol: float = 1e-5) -> None:
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=atol, rtol=atol)
