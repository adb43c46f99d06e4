"""A network with both heads, as fine-tuning trains it (Chen et al. 2020, section 2.2).

Shape suffixes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

from torch import nn

from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.model.layers import ImageGPTRMSNorm


class ImageGPTForJointModeling(ImageGPTForCausalImageModeling):
    """The generative network, and a classifier on the mean of its states.

    Its files open as `ImageGPTForImageClassification` and as `ImageGPTForCausalImageModeling`. One whose classifier
    reads a middle layer is for training alone: what comes of it is the network up to there (`imagegpt.train.transfer`).

    Args:
        config: the configuration; `num_labels` is C.
        layer: blocks below the classifier; `None` for all. A middle layer's states get a norm of their own.

    Example:
        >>> config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=2, n_positions=16, num_labels=10)
        >>> sorted(name for name, _ in ImageGPTForJointModeling(config, layer=1).named_children())
        ['lm_head', 'ln_score', 'score', 'transformer']
    """

    def __init__(self, config: ImageGPTConfig, layer: int | None = None) -> None:
        super().__init__(config)
        if layer is not None:
            self.ln_score = ImageGPTRMSNorm(config.n_embd, config.layer_norm_epsilon)
        self.score = nn.Linear(config.n_embd, config.num_labels or 0, bias=False)
        self.post_init()
