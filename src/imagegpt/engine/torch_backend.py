"""The torch backend: the model's own blocks over a static key-value cache.

Shape suffixes: R prompts, B rows, P ids of the prompts with SOS, T positions, N heads, H head width, K colours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.spec import ModelSpec


class StaticCache:
    """Keys and values of every layer, allocated once for all positions.

    Args:
        spec: the model's numbers.
        rows, length: sizes.
        like: a tensor with the wanted dtype and device.
    """

    def __init__(self, spec: ModelSpec, rows: int, length: int, like: torch.Tensor) -> None:
        shapes = [(rows, spec.heads(layer), length, spec.head_width) for layer in range(spec.n_layer)]
        self.keys = [like.new_empty(shape) for shape in shapes]
        self.values = [like.new_empty(shape) for shape in shapes]
        self.length = 0  # ids that are in the cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, N, new, H) after the ids that are there; return views of all (B, N, length + new, H).

        The caller moves `length` on after the last layer.
        """
        end = self.length + key_states.shape[2]
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def adopt(self, prompts: StaticCache, rows: torch.Tensor) -> None:
        """Take over the states of other rows: row b those of row `rows[b]` of `prompts`."""
        end = self.length = prompts.length
        for mine, given in zip([*self.keys, *self.values], [*prompts.keys, *prompts.values], strict=True):
            mine[:, :, :end] = given[rows, :, :end]


class TorchBackend:
    """Runs a model step by step; see `imagegpt.engine.decode.Backend`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        self.model = model
        self.spec = model.config.spec

    @torch.inference_mode()
    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> TorchRows:
        """Run the prompts, and give each row its prompt's state."""
        prompts = self.new_cache(*inputs_RP.shape)
        logits_RK = self.run(inputs_RP, prompts)
        cache = self.new_cache(len(rows_B), self.spec.n_positions)
        cache.adopt(prompts, torch.from_numpy(rows_B).to(self.model.device))
        return TorchRows(self, cache, logits_RK[rows_B])

    @torch.inference_mode()
    def run(self, ids: NDArray[np.int64], cache: StaticCache) -> NDArray[np.float32]:
        """Append ids (B, new) to the cache; the logits (B, K) after the last one, float32."""
        trunk = self.model.transformer
        end = cache.length + ids.shape[1]
        inputs = torch.from_numpy(np.ascontiguousarray(ids)).to(self.model.device)
        x = trunk.wte(inputs) + trunk.wpe.weight[cache.length : end]
        for block in trunk.h:
            # No mask: a prompt starts an empty cache, so it is plainly causal, and a single id sees all before it.
            x, *_ = block(x, cache)
        cache.length = end
        return self.model.logits(trunk.ln_f(x[:, -1])).float().cpu().numpy()

    def new_cache(self, rows: int, length: int) -> StaticCache:
        """An empty cache of the model's shape, dtype and device."""
        return StaticCache(self.spec, rows, length, like=self.model.transformer.wte.weight)


class TorchRows:
    """Sequences on their way; see `imagegpt.engine.decode.Rows`."""

    def __init__(self, backend: TorchBackend, cache: StaticCache, logits_BK: NDArray[np.float32]) -> None:
        self.logits_BK = logits_BK
        self._backend, self._cache = backend, cache

    def step(self, ids_B: NDArray[np.int64]) -> None:
        """Append one id to each row."""
        self.logits_BK = self._backend.run(ids_B[:, None], self._cache)
