"""Key-value caches of the torch backend: buffers for all positions, allocated once.

Shape suffixes: B rows, N heads, H head width.
"""

from __future__ import annotations

import torch

from imagegpt.spec import ModelSpec


class StaticCache:
    """Keys and values of every layer, (B, N, length, H) each.

    Args:
        spec: the model's numbers.
        rows, length: sizes.
        like: a tensor with the wanted dtype and device.
    """

    def __init__(self, spec: ModelSpec, rows: int, length: int, like: torch.Tensor) -> None:
        shapes = [(rows, spec.heads(layer), length, spec.head_width) for layer in range(spec.n_layer)]
        self.keys = [like.new_zeros(shape) for shape in shapes]
        self.values = [like.new_zeros(shape) for shape in shapes]
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

    def adopt(self, prompts: StaticCache, sources: torch.Tensor, rows: torch.Tensor) -> None:
        """Take over the states of other rows: row `rows[i]` that of row `sources[i]` of `prompts`."""
        end = self.length = prompts.length
        for mine, theirs in zip([*self.keys, *self.values], [*prompts.keys, *prompts.values], strict=True):
            mine[rows, :, :end] = theirs[sources, :, :end]

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, since: int) -> None:
        """Rows `targets` take over the states of rows `sources` from position `since` on."""
        for buffer in [*self.keys, *self.values]:
            buffer[targets, :, since : self.length] = buffer[sources, :, since : self.length]


class FixedCache(StaticCache):
    """A cache whose position lies on the device and whose views don't grow, for steps of fixed shapes.

    The caller moves `position` and `length`, the host's copy of it, on, and says in `seen` how many positions attention
    looks at; what lies behind `position` is zero or stale, and masked.
    """

    def __init__(self, spec: ModelSpec, rows: int, length: int, like: torch.Tensor) -> None:
        super().__init__(spec, rows, length, like)
        self.position = torch.zeros(1, dtype=torch.long, device=like.device)
        self.seen = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, N, 1, H) at the position; return views of the first `seen` positions."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.position, key_states)
        values.index_copy_(2, self.position, value_states)
        return keys[:, :, : self.seen], values[:, :, : self.seen]
