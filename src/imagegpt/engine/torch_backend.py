"""The torch backend: the model's own blocks over a static key-value cache.

Shape suffixes: R prompts, B rows, P ids of the prompts with SOS, T positions, N heads, H head width, K colours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.model.heads import ImageGPTForCausalImageModeling


class StaticCache:
    """Keys and values of every layer, allocated once for all positions.

    Args:
        layers, rows, heads, length, head_width: sizes.
        like: a tensor with the wanted dtype and device.
    """

    def __init__(self, layers: int, rows: int, heads: int, length: int, head_width: int, like: torch.Tensor) -> None:
        shape = (layers, rows, heads, length, head_width)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.length = 0  # ids that are in the cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, N, new, H) after the ids that are there; return views of all (B, N, length + new, H).

        The caller moves `length` on after the last layer.
        """
        end = self.length + key_states.shape[2]
        self.keys[layer_idx, :, :, self.length : end] = key_states
        self.values[layer_idx, :, :, self.length : end] = value_states
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]

    def adopt(self, prompts: StaticCache, rows: torch.Tensor) -> None:
        """Take over the states of other rows: row b those of row `rows[b]` of `prompts`."""
        end = self.length = prompts.length
        self.keys[:, :, :, :end] = prompts.keys[:, rows, :, :end]
        self.values[:, :, :, :end] = prompts.values[:, rows, :, :end]


class TorchBackend:
    """Runs a model step by step; see `imagegpt.engine.decode.Backend`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        self.model = model
        self.spec = model.config.spec
        self._cache: StaticCache | None = None

    @torch.inference_mode()
    def prefill(self, inputs_RP: NDArray[np.int64], rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the prompts, and give each row its prompt's state; the logits (B, K) float32."""
        prompts = self._new_cache(inputs_RP.shape[0], inputs_RP.shape[1])
        logits_RK = self._run(self._to_device(inputs_RP), prompts)
        rows = self._to_device(rows_B)
        self._cache = self._new_cache(len(rows_B), self.spec.n_positions)
        self._cache.adopt(prompts, rows)
        return logits_RK[rows].float().cpu().numpy()

    @torch.inference_mode()
    def step(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one id to each row; the logits (B, K) float32."""
        if self._cache is None:
            raise RuntimeError("step was called before prefill.")
        return self._run(self._to_device(ids_B[:, None]), self._cache).float().cpu().numpy()

    def _run(self, ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        trunk = self.model.transformer
        end = cache.length + ids.shape[1]
        x = trunk.wte(ids) + trunk.wpe.weight[cache.length : end]
        for block in trunk.h:
            # No mask: a prompt starts an empty cache, so it is plainly causal, and a single id sees all before it.
            x, _ = block(x, cache)
        cache.length = end
        return self.model.lm_head(trunk.ln_f(x[:, -1]))

    def _new_cache(self, rows: int, length: int) -> StaticCache:
        spec = self.spec
        return StaticCache(spec.n_layer, rows, spec.n_head, length, spec.head_width, self.model.lm_head.weight)

    def _to_device(self, ids: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids)).to(self.model.device)
