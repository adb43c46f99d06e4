"""Decoding by an exported decoder.onnx: the same loop, and the same random numbers, as of the package's own backends.

Shape suffixes: R prompts, B rows, P ids of the prompts with SOS, T ids of a picture, G samples, K colours.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.batches import Task
from imagegpt.engine.cost import rows_that_fit
from imagegpt.engine.decode import Decoding, prompt_groups
from imagegpt.engine.machine import free_memory
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError, check_count
from imagegpt.onnx.session import InferenceSession, find_file

DECODER = "decoder.onnx"
ROWS = 8  # keys and values are written anew at each step: more rows only wait for that
CACHES = 3  # of which are in memory at once: the last step's, this one's, and what joins them
GREEDY = Sampling(temperature=0)


class OnnxDecoder:
    """An exported decoder as a backend of `imagegpt.engine.decode`.

    Args:
        session: of a decoder.onnx.

    Raises:
        InputError: the session is of another graph.
    """

    rows = ROWS

    def __init__(self, session: InferenceSession) -> None:
        self.session, self.spec = session, session.spec
        self.pasts = [value.name for value in session.get_inputs() if value.name != "input_ids"]
        if not self.pasts:
            raise InputError(f"{session.path} can't draw: it takes no keys and values; give a {DECODER}.")
        self.names = [value.name for value in session.get_outputs()]
        self.dtype = np.dtype(np.float16 if session.get_inputs()[1].type == "tensor(float16)" else np.float32)

    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> DecoderRows:
        """Run the prompts, and give each row its prompt's state."""
        groups = list(prompt_groups(inputs_RP, rows_B))
        parts = [self._prompts(inputs_RP[group], rows_B[rows] - group.start) for group, rows in groups]
        order = np.argsort(np.concatenate([rows for _, rows in groups]))
        states = [np.concatenate(values)[order] for values in zip(*parts, strict=True)]
        return DecoderRows(self, states)

    def run(self, ids_BS: NDArray[np.int64], past: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """One call: the next ids' logits (B, K), then all keys and values as the graph has them."""
        logits, *present = self.logits(ids_BS, past)
        return [logits[:, -1], *present]

    def logits(self, ids_BS: NDArray[np.int64], past: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """One call: the logits behind each id (B, S, K), then all keys and values as the graph has them."""
        feed = {"input_ids": ids_BS, **dict(zip(self.pasts, past, strict=True))}
        return [np.asarray(value) for value in self.session.run(self.names, feed)]

    def empty_past(self, rows: int) -> list[NDArray[Any]]:
        """Keys and values of no ids, (B, N, 0, H) each."""
        spec = self.spec
        shapes = [(rows, spec.heads(layer), 0, spec.head_width) for layer in range(spec.n_layer) for _ in "kv"]
        return [np.empty(shape, self.dtype) for shape in shapes]

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array on the backend's device, which is the host here."""
        return values

    def numpy(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array of the backend's as the host has it."""
        return values

    def rows_that_fit(self, prompt: int) -> int:
        """How many rows with a prompt of so many ids the free memory has room for, at least one."""
        return rows_that_fit(self.spec, prompt, CACHES * self.dtype.itemsize, free_memory())

    def _prompts(self, inputs_RP: NDArray[np.int64], sources_B: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [values[sources_B] for values in self.run(inputs_RP, self.empty_past(len(inputs_RP)))]


class DecoderRows:
    """Sequences on their way; see `imagegpt.engine.decode.Rows`."""

    def __init__(self, decoder: OnnxDecoder, states: list[NDArray[Any]]) -> None:
        self._decoder, self._states = decoder, states

    @property
    def logits_BK(self) -> NDArray[np.float32]:  # noqa: N802 - the name that the protocol has
        """Of each row's next id."""
        return self._states[0]

    def step(self, ids_B: NDArray[np.int64]) -> None:
        """Append one id to each row."""
        self._states = self._decoder.run(ids_B[:, None], self._states[1:])

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], since: NDArray[np.int64]) -> None:
        """Rows `targets` take over the state of rows `sources`."""
        for values in self._states:
            values[targets] = values[sources]


def generate(
    decoder: InferenceSession | str | os.PathLike[str],
    prompt: NDArray[np.integer[Any]] | None = None,
    *,
    samples: int = 1,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    batch_size: int | None = None,
) -> NDArray[np.int64]:
    """Draw whole pictures by an exported decoder.

    Args:
        decoder: a session of a decoder.onnx, the file, or the folder it is in.
        prompt: the first ids of each picture, (R, P) with P from 0 to T, without SOS; default: one from nothing.
        samples: pictures for each prompt.
        sampling: how ids are drawn; default: always the likeliest.
        seed: of the random numbers, which are those of `ImageGPT.complete` with this seed for one picture.
        batch_size: rows that are drawn at once; it does not change what is drawn.

    Returns:
        (R samples, T) ids; `session.processor.post_process` makes pictures of them.

    Raises:
        InputError: no such file, a graph that can't draw, or a prompt that is none.
    """
    session = decoder if isinstance(decoder, InferenceSession) else InferenceSession(find_file(decoder, DECODER))
    check_count("samples", samples)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_count("seed", seed, 0)
    backend, spec = OnnxDecoder(session), session.spec
    prompt_RP = np.zeros((1, 0), np.int64) if prompt is None else np.asarray(prompt)
    if prompt_RP.ndim != 2 or prompt_RP.dtype.kind not in "iu" or prompt_RP.shape[1] > spec.n_positions:
        raise InputError(
            f"A prompt is whole numbers (pictures, up to {spec.n_positions}), not {prompt_RP.dtype} {prompt_RP.shape}."
        )
    if prompt_RP.size and not (prompt_RP.min() >= 0 and prompt_RP.max() < spec.num_colors):
        raise InputError(f"A prompt's ids are 0 to {spec.num_colors - 1}; SOS is put before them by itself.")
    known_T = np.arange(spec.n_positions) < prompt_RP.shape[1]
    ids_RT = np.zeros((len(prompt_RP), spec.n_positions), np.int64)
    ids_RT[:, known_T] = prompt_RP
    task = Task(ids_RT, np.tile(known_T, (len(ids_RT), 1)), [seed] * len(ids_RT), samples)
    rows = batch_size or min(backend.rows, backend.rows_that_fit(task.prompt))
    return np.concatenate([_draw(backend, task, part, sampling) for part in task.parts(rows)])


def _draw(backend: OnnxDecoder, task: Task, part: slice, sampling: Sampling) -> NDArray[np.int64]:
    decoding = Decoding(backend, task.batch(part), sampling)
    for _ in decoding:
        pass
    return decoding.ids()
