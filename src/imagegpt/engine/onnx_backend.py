"""The onnxruntime backend: the graph of `onnx_graph.py` over one cache that it writes in place. No torch.

Shape suffixes: R prompts, B rows, P ids of the prompts with SOS, M positions, N heads, H head width, K colours.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from imagegpt.engine.cost import rows_that_fit
from imagegpt.engine.decode import prompt_groups
from imagegpt.engine.machine import free_memory
from imagegpt.engine.onnx_graph import build_graph
from imagegpt.engine.onnx_weights import Weights, cache_names
from imagegpt.spec import ModelSpec

ROWS = 32  # more only wait longer for their caches: a row costs as much from here on
FATAL = 4
CALIBRATION_ROWS = 4
MARGIN = 2  # pictures reach up to 1.8 times as far as random ids in some channels (docs/engine.md)


class OnnxBackend:
    """Runs a model step by step on a CPU; see `imagegpt.engine.decode.Backend`.

    Args:
        spec: the model's numbers.
        weights: see `imagegpt.engine.onnx_weights`: float32, or int8 for the products, or for the cache too.

    Raises:
        InputError: the model has an activation, or a width of heads, that onnxruntime lacks.
    """

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec, self.rows = spec, ROWS
        self.cache_dtype = np.dtype(np.int8 if f"{cache_names(spec)[0]}.scale" in weights else np.float32)
        # No arena: as fast here, and a prompt's memory is given back.
        self.session = open_session(build_graph(spec, weights), weights, arena=False)

    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> OnnxRows:
        """Run the prompts, and give each row its prompt's state."""
        rows = OnnxRows(self, len(rows_B), self.spec.n_positions)
        for group, of_group in prompt_groups(inputs_RP, rows_B):
            prompts = OnnxRows(self, *inputs_RP[group].shape)
            prompts.append(inputs_RP[group])
            rows.adopt(prompts, rows_B[of_group] - group.start, of_group)
        return rows

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array on the backend's device, which is the host here."""
        return values

    def numpy(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array of the backend's as the host has it."""
        return values

    def rows_that_fit(self, prompt: int) -> int:
        """How many rows with a prompt of so many ids the free memory has room for, at least one."""
        return rows_that_fit(self.spec, prompt, self.cache_dtype.itemsize, free_memory())


class OnnxRows:
    """Sequences on their way; see `imagegpt.engine.decode.Rows`.

    Args:
        backend: whose they are.
        rows: B.
        length: M, positions that the cache has room for.
    """

    def __init__(self, backend: OnnxBackend, rows: int, length: int) -> None:
        spec, self._session = backend.spec, backend.session
        self.length = 0  # ids that are in the cache
        shapes = [(rows, spec.heads(layer), length, spec.head_width) for layer in range(spec.n_layer) for _ in "kv"]
        self.caches = {
            # Filled, not just reserved: what doesn't fit fails now and not in the middle of a picture.
            name: np.full(shape, 0, backend.cache_dtype)
            for name, shape in zip(cache_names(spec), shapes, strict=True)
        }
        self.logits_BK = np.empty((rows, spec.num_colors), np.float32)
        self._binding = self._session.io_binding()
        for name, cache in self.caches.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)  # shares the memory
            self._binding.bind_ortvalue_input(f"past.{name}", value)
            self._binding.bind_ortvalue_output(f"present.{name}", value)
        self._binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(self.logits_BK))
        self._new = 0  # ids that the bound inputs have room for

    def append(self, ids_BS: NDArray[np.int64]) -> None:
        """Append ids to each row: a prompt to empty rows, or one id."""
        rows, new = ids_BS.shape
        if new != self._new:
            self._bind_inputs(rows, new)
        self._ids[:] = ids_BS
        self._positions[:] = np.arange(self.length, self.length + new)
        self.length += new
        self._last[:] = self.length - 1
        self._total[...] = self.length
        self._session.run_with_iobinding(self._binding)

    def step(self, ids_B: NDArray[np.int64]) -> None:
        """Append one id to each row."""
        self.append(ids_B[:, None])

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], since: NDArray[np.int64]) -> None:
        """Rows `targets` take over the state of rows `sources`; up to ids `since` of each pair they are alike."""
        for cache in self.caches.values():
            for source, target, first in zip(sources, targets, since, strict=True):
                cache[target, :, first : self.length] = cache[source, :, first : self.length]
        self.logits_BK[targets] = self.logits_BK[sources]

    def adopt(self, prompts: OnnxRows, sources: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Take over the states of other rows: row `rows[i]` that of row `sources[i]` of `prompts`."""
        self.length = prompts.length
        for mine, theirs in zip(self.caches.values(), prompts.caches.values(), strict=True):
            for row, source in zip(rows, sources, strict=True):
                mine[row, :, : self.length] = theirs[source, :, : self.length]
        self.logits_BK[rows] = prompts.logits_BK[sources]

    def _bind_inputs(self, rows: int, new: int) -> None:
        self._new = new
        self._ids = np.empty((rows, new), np.int64)
        self._positions = np.empty(new, np.int64)
        self._last = np.empty(rows, np.int32)
        self._total = np.empty((), np.int32)
        inputs = {"ids": self._ids, "positions": self._positions, "last": self._last, "total": self._total}
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))


def open_session(graph: bytes, weights: Weights, arena: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU over weights that stay where they are.

    Args:
        graph: made by `imagegpt.engine.onnx_graph`.
        weights: what the graph names.
        arena: keep memory between runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    options.log_severity_level = FATAL  # errors are raised; they need no line of their own
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _threads() -> int:
    """What OMP_NUM_THREADS says, as torch reads it; else 0, which is one for each core."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def calibrate(spec: ModelSpec, weights: Weights) -> Weights:
    """The size of a level for each channel of an int8 cache: what random ids reach, and a margin, over 127 levels.

    Random ids need no data, and they show the channels that every picture drives far: those of SOS and of places.

    Args:
        spec: the model's numbers.
        weights: without scales of the cache.
    """
    ids = np.random.default_rng(0).integers(0, spec.num_colors, (CALIBRATION_ROWS, spec.n_positions))
    ids[:, 0] = spec.sos
    half = CALIBRATION_ROWS // 2
    ids[half:, 1:] = ids[half:, -1:]  # one colour each: what even areas do
    rows = OnnxRows(OnnxBackend(spec, weights), *ids.shape)
    rows.append(ids)
    reached = {name: np.abs(cache).max((0, 2)).reshape(-1) for name, cache in rows.caches.items()}
    return {f"{name}.scale": np.maximum(MARGIN * far / 127, 1e-8) for name, far in reached.items()}
