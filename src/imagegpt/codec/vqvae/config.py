"""VQVAEConfig: the numbers of a VQ-VAE."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

FACTORS = (2, 4, 8)


class VQVAEConfig(PreTrainedConfig):
    """The numbers of a VQ-VAE (van den Oord et al. 2017, "Neural Discrete Representation Learning").

    Args:
        factor: pixels of a code along each side: 2, 4 or 8.
        num_codes: K, how many codes there are.
        code_width: numbers of a code.
        width: channels of the convolutions.
        blocks: residual blocks of the encoder, and as many of the decoder.
        block_width: channels within a residual block.
        commitment: weight of the commitment loss, the paper's beta.
        decay: of the moving averages that the codes are.
        restart: a code that is used less than this part of the mean is put elsewhere; 0 leaves it.
        kwargs: transformers' own.

    Raises:
        ValueError: a number that can't be; the message names it.

    Example:
        >>> VQVAEConfig(factor=2, num_codes=512).factor
        2
    """

    model_type = "imagegpt_vqvae"

    def __init__(
        self,
        factor: int = 4,
        num_codes: int = 4096,
        code_width: int = 64,
        width: int = 128,
        blocks: int = 2,
        block_width: int = 32,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart: float = 0.03,
        **kwargs: Any,
    ) -> None:
        self.factor = factor
        self.num_codes = num_codes
        self.code_width = code_width
        self.width = width
        self.blocks = blocks
        self.block_width = block_width
        self.commitment = commitment
        self.decay = decay
        self.restart = restart
        self._check()
        super().__init__(**kwargs)

    def _check(self) -> None:
        if type(self.factor) is not int or self.factor not in FACTORS:
            raise ValueError(f"factor must be one of {', '.join(map(str, FACTORS))}, not {self.factor!r}.")
        for name, least in (("num_codes", 2), ("code_width", 1), ("width", 2), ("blocks", 0), ("block_width", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        for name, most in (("commitment", float("inf")), ("decay", 1.0), ("restart", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < most:
                raise ValueError(f"{name} must be at least 0 and below {most:g}, not {value!r}.")
