"""The torch backend: the model's own blocks over a static key-value cache, on any device and in any dtype.

A step is run in one of two ways. Eagerly, attention sees a slice of the cache that is exactly as long as it must be.
As a fixed step, shapes don't change from one position to the next, so it can be compiled, and on CUDA it is captured
as a graph; attention then sees the cache up to the next multiple of `BUCKET` through a mask.

Shape suffixes: R prompts, B rows, P ids of the prompts with SOS, T positions, N heads, H head width, K colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList

from imagegpt.engine.cost import rows_that_fit
from imagegpt.engine.decode import Process, prompt_groups
from imagegpt.engine.machine import free_memory
from imagegpt.engine.torch_cache import FixedCache, StaticCache
from imagegpt.model.heads import ImageGPTForCausalImageModeling

COMPILED = 256  # steps of different shapes; torch's own limit is 8, and then it runs them uncompiled
BUCKET = 128  # positions by which the part of the cache grows that a fixed step sees


class TorchBackend:
    """Runs a model step by step; see `imagegpt.engine.decode.Backend`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
        compile: compile the step with `torch.compile`; the first picture then takes a minute more.
        fixed: run fixed steps; default: on CUDA, where they are captured as graphs, and where they are compiled.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, compile: bool = False, fixed: bool | None = None) -> None:
        self.model = model
        self.spec = model.config.spec
        self.device = model.device
        self.rows = 32 if self.device.type == "cpu" else 256
        self.fixed = (compile or self.device.type == "cuda") if fixed is None else fixed
        self.run_fixed: Callable[..., None] = _compiled() if compile else fixed_step
        self._idle: dict[int, list[_FixedState]] = {}

    @torch.inference_mode()
    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> EagerRows | FixedRows:
        """Run the prompts, and give each row its prompt's state."""
        rows = FixedRows(self, len(rows_B)) if self.fixed else EagerRows(self, len(rows_B))
        for group, of_group in prompt_groups(inputs_RP, rows_B):
            prompts = StaticCache(self.spec, *inputs_RP[group].shape, like=self.weight)
            logits_RK = self.run(self.array(inputs_RP[group]), prompts)
            sources = self.array(rows_B[of_group] - group.start)
            rows.adopt(prompts, logits_RK, sources, self.array(of_group))
        return rows

    def run(self, ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        """Append ids (B, new) to the cache; the logits (B, K) after the last one, float32."""
        trunk = self.model.transformer
        x = trunk.wte(ids) + trunk.wpe.weight[cache.length : cache.length + ids.shape[1]]
        for block in trunk.h:
            # No mask: a prompt starts an empty cache, so it is plainly causal, and a single id sees all before it.
            x, *_ = block(x, cache)
        cache.length += ids.shape[1]
        return self.model.logits(trunk.ln_f(x[:, -1])).float()

    @property
    def weight(self) -> torch.Tensor:
        """A weight, for its dtype and device."""
        return self.model.transformer.wte.weight

    def array(self, values: NDArray[Any]) -> torch.Tensor:
        """A tensor on the model's device."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            tensor = tensor.float()
        return tensor.to(self.device)

    def numpy(self, values: torch.Tensor) -> NDArray[Any]:
        """A tensor as the host has it."""
        return values.cpu().numpy()

    def rows_that_fit(self, prompt: int) -> int:
        """How many rows with a prompt of so many ids the device's free memory has room for, at least one."""
        return rows_that_fit(self.spec, prompt, self.weight.element_size(), free_memory(self.device))

    def take_state(self, rows: int) -> _FixedState:
        """The buffers of fixed steps, with the graphs that were captured over them: used ones, or new ones."""
        idle = self._idle.get(rows)
        return idle.pop() if idle else _FixedState(self, rows)

    def give_back(self, state: _FixedState) -> None:
        """Keep a state for the next run with as many rows; those of other sizes are dropped for its memory."""
        rows = len(state.ids_B)
        self._idle = {rows: [*self._idle.get(rows, []), state]}


def _compiled() -> Callable[..., None]:
    """The fixed step, compiled anew for each number of rows and each part of the cache, of which there are many."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED)
    return torch.compile(fixed_step, dynamic=False)


class EagerRows:
    """Sequences on their way, run eagerly; see `imagegpt.engine.decode.Rows`."""

    def __init__(self, backend: TorchBackend, rows: int) -> None:
        spec, like = backend.spec, backend.weight
        self._backend, self._cache = backend, StaticCache(spec, rows, spec.n_positions, like)
        self.logits_BK = like.new_empty((rows, spec.num_colors), dtype=torch.float32)

    def adopt(self, prompts: StaticCache, logits_RK: torch.Tensor, sources: torch.Tensor, rows: torch.Tensor) -> None:
        """Take over the states of other rows: row `rows[i]` that of row `sources[i]` of `prompts`."""
        self._cache.adopt(prompts, sources, rows)
        self.logits_BK[rows] = logits_RK[sources]

    @torch.inference_mode()
    def step(self, ids_B: torch.Tensor) -> None:
        """Append one id to each row."""
        self.logits_BK = self._backend.run(ids_B[:, None], self._cache)

    @torch.inference_mode()
    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], since: NDArray[np.int64]) -> None:
        """Rows `targets` take over the state of rows `sources`; up to ids `since` of each pair they are alike."""
        self._cache.copy(self._backend.array(sources), self._backend.array(targets), int(since.min()))
        self.logits_BK[targets] = self.logits_BK[sources]


class _FixedState:
    """The buffers that fixed steps work on, and the graphs captured over them, by the part of the cache they see."""

    def __init__(self, backend: TorchBackend, rows: int) -> None:
        spec, like = backend.spec, backend.weight
        self.cache = FixedCache(spec, rows, spec.n_positions, like)
        self.ids_B = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.logits_BK = like.new_empty((rows, spec.num_colors), dtype=torch.float32)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}


def fixed_step(model: ImageGPTForCausalImageModeling, state: _FixedState, seen: int) -> None:
    """Append the state's ids at its position; its logits are then those of the next, and its position one further.

    Args:
        model: the model.
        state: buffers; nothing is allocated whose size depends on the position.
        seen: positions of the cache that attention looks at, through a mask.
    """
    trunk, cache = model.transformer, state.cache
    cache.seen = seen
    mask = (torch.arange(seen, device=state.ids_B.device) <= cache.position)[None, None, None]
    x = trunk.wte(state.ids_B)[:, None] + trunk.wpe(cache.position)
    for block in trunk.h:
        x, *_ = block(x, cache, mask)
    state.logits_BK.copy_(model.logits(trunk.ln_f(x[:, -1])))
    cache.position.add_(1)


class FixedRows:
    """Sequences on their way by fixed steps; see `imagegpt.engine.decode.Rows`."""

    def __init__(self, backend: TorchBackend, rows: int) -> None:
        self._backend = backend
        self._state = backend.take_state(rows)

    def __del__(self) -> None:
        if hasattr(self, "_state"):  # else there was no memory for it
            self._backend.give_back(self._state)

    @property
    def logits_BK(self) -> torch.Tensor:  # noqa: N802 - the protocol's name
        """Logits of the next id, float32."""
        return self._state.logits_BK

    def adopt(self, prompts: StaticCache, logits_RK: torch.Tensor, sources: torch.Tensor, rows: torch.Tensor) -> None:
        """Take over the states of other rows: row `rows[i]` that of row `sources[i]` of `prompts`."""
        self._state.cache.adopt(prompts, sources, rows)
        self._state.cache.position.fill_(prompts.length)
        self._state.logits_BK[rows] = logits_RK[sources]

    @torch.inference_mode()
    def step(self, ids_B: torch.Tensor) -> None:
        """Append one id to each row."""
        backend, state = self._backend, self._state
        state.ids_B.copy_(ids_B)
        state.cache.length += 1
        seen = min(-(-state.cache.length // BUCKET) * BUCKET, backend.spec.n_positions)
        if backend.device.type != "cuda":
            backend.run_fixed(backend.model, state, seen)
            return
        if seen not in state.graphs:
            state.graphs[seen] = self._capture(seen)
        state.graphs[seen].replay()

    @torch.inference_mode()
    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], since: NDArray[np.int64]) -> None:
        """Rows `targets` take over the state of rows `sources`; up to ids `since` of each pair they are alike."""
        self._state.cache.copy(self._backend.array(sources), self._backend.array(targets), int(since.min()))
        self._state.logits_BK[targets] = self._state.logits_BK[sources]

    def _capture(self, seen: int) -> torch.cuda.CUDAGraph:
        """Run the step to warm up, undo what it moved on, and record it."""
        backend, state = self._backend, self._state
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # writes the same keys and values that the replay will write
                backend.run_fixed(backend.model, state, seen)
                state.cache.position.sub_(1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            backend.run_fixed(backend.model, state, seen)
        return graph


def as_process(logits_processor: Any, sos: int) -> Process:
    """One or several of transformers' logits processors, as `Decoding` calls them; they see SOS before the ids.

    A processor that changes the logits in place changes a copy.
    """
    processors = LogitsProcessorList(logits_processor if isinstance(logits_processor, list) else [logits_processor])

    @torch.inference_mode()
    def process(ids_BP: torch.Tensor, logits_BK: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([ids_BP.new_full((len(ids_BP), 1), sos), ids_BP], 1)
        return processors(inputs, logits_BK.clone())  # pyright: ignore[reportArgumentType]

    return process
