"""The attention of one place in torch, on any device and in any dtype.

No map of all places to all others is ever made: each layer runs as it always does, and then once more for the one place
alone, against the keys that it has just made.

Shape suffixes: B pictures (one), T ids, S inputs that are attended to, D width, L layers, N heads, K colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagegpt.engine.torch_score import embedded
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.sequence import with_sos


@torch.inference_mode()
def attend(
    model: ImageGPTForCausalImageModeling, ids_T: NDArray[np.int64], place: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Where the network looks when it predicts an id; see `imagegpt.engine.attention`.

    Args:
        model: in evaluation mode, on the device and in the dtype that it shall run in.
        ids_T: a whole picture.
        place: number of the predicted id, from 0.

    Returns:
        The shares of the ids (L, N, T), those of SOS (L, N), and the probabilities of the ids (K,).
    """
    spec, trunk = model.config.spec, model.transformer
    causal = getattr(model.config, "is_causal", True)
    if causal:
        inputs_BS = with_sos(ids_T[None, :place], spec.sos)
    else:
        inputs_BS = ids_T[None].copy()
        inputs_BS[0, place] = spec.sos
    shape = (spec.n_layer, spec.n_head, spec.n_positions)
    weights_LNT, start_LN = np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32)
    x_BSD = embedded(model, torch.from_numpy(inputs_BS).to(model.device))
    blocks: Any = trunk.h
    for layer, block in enumerate(blocks):
        asks, seen = block.ln_1(x_BSD[:, place : place + 1]), _LayerStates()
        x_BSD, *_ = block(x_BSD, seen)  # no mask: plainly causal, or bidirectional if the model is
        probs_NS = block.attn(asks, seen, output_attentions=True)[1][0, :, 0].float()
        shares_NS = (probs_NS / probs_NS.sum(1, keepdim=True)).cpu().numpy()  # half precision has rounded them
        gone = (spec.pruned_heads or {}).get(layer, ())
        heads = [head for head in range(spec.n_head) if head not in gone]
        if causal:  # SOS comes first, and moves all ids on by one
            start_LN[layer, heads], weights_LNT[layer, heads, :place] = shares_NS[:, 0], shares_NS[:, 1:]
        else:
            weights_LNT[layer, heads] = shares_NS
    if not causal:
        start_LN, weights_LNT[:, :, place] = weights_LNT[:, :, place].copy(), 0
    expected_K = model.logits(trunk.ln_f(x_BSD[0, place])).float().softmax(0)
    return weights_LNT, start_LN, expected_K.cpu().numpy()


class _LayerStates:
    """A layer's keys and values: kept by its first call, and given again to the next, whose own are among them."""

    def __init__(self) -> None:
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `imagegpt.model.attention.KeyValueCache`."""
        if self._states is None:
            self._states = key_states, value_states
        return self._states
