"""The recipe of a VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from imagegpt.arguments import Whole
from imagegpt.errors import InputError
from imagegpt.sequence import parse_grid
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.recipe import Compute, Data, Optimization, Watch

GRID = "48x48"


@Parameter(name="*", group="Codec")
@dataclass(frozen=True)
class Codes:
    """The network, and what it is to keep of pictures.

    Args:
        factor: pixels of a code along each side: 2, 4 or 8.
        codes: how many there are, at most 65,536.
        code_width: numbers of a code.
        width: channels of the convolutions.
        blocks: residual blocks of the encoder, and as many of the decoder.
        block_width: channels within a residual block.
        commitment: weight of the commitment loss.
        code_decay: of the moving averages that the codes are.
        restart: a code that is used less than this part of the mean is put elsewhere; 0 leaves it.
        loss: l2, squared differences of pixels, or l1, absolute ones, which blur less.
        edge: weight of the absolute differences between neighbouring pixels' differences, to keep edges; 0 has none.
    """

    factor: Whole = 4
    codes: Whole = 4096
    code_width: Whole = 64
    width: Whole = 128
    blocks: Whole = 2
    block_width: Whole = 32
    commitment: float = 0.25
    code_decay: float = 0.99
    restart: float = 0.03
    loss: Literal["l2", "l1"] = "l2"
    edge: float = 0.0


@Parameter(name="*", group="Data")
@dataclass(frozen=True)
class CodecData(Data):  # noqa: D101 - the same names, and what a codec makes of them
    __doc__ = Data.__doc__

    train: Annotated[str | None, Parameter(help="DATA: pictures.")] = None
    grid: Annotated[str | None, Parameter(help=f"height x width of codes; default: {GRID}.")] = None


@Parameter(name="*", group="Optimisation")
@dataclass(frozen=True)
class CodecOptimization(Optimization):  # noqa: D101 - the same names, other defaults
    __doc__ = Optimization.__doc__

    batch: Whole = 64
    lr: float = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "linear"


@Parameter(name="*")
@dataclass(frozen=True)
class CodecRecipe(FlatRecipe):
    """Of training a VQ-VAE.

    Args:
        codes: the network, and what it is to keep of pictures.
        data: what is trained on.
        optimization: how the weights move.
        compute: how it is computed.
        watch: what is looked at and kept.

    Raises:
        InputError: a value that can't be; the message names it.

    Example:
        >>> recipe = CodecRecipe.load("vq-32-8-256", steps=5)
        >>> recipe.grid, recipe.codes.codes
        ((8, 8), 256)
    """

    verb = "vqvae"

    codes: Codes = field(default_factory=Codes)
    # Frozen, so that parts may be of narrower types.
    data: CodecData = field(default_factory=CodecData)  # pyright: ignore
    optimization: CodecOptimization = field(default_factory=CodecOptimization)  # pyright: ignore
    compute: Compute = field(default_factory=Compute)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes.factor not in (2, 4, 8):
            raise InputError(f"factor must be one of 2, 4, 8, not {self.codes.factor}.")
        if self.codes.width < 2:
            raise InputError(f"width must be at least 2, not {self.codes.width}.")
        if self.optimization.optimizer != "adamw":
            raise InputError("optimizer must be adamw for a VQ-VAE: muon is for the blocks of a transformer.")
        for name, value in (("checkpointing", self.compute.checkpointing), ("compile", self.compute.compile)):
            if value:
                raise InputError(f"{name} is for transformers; a VQ-VAE is small enough without.")
        if self.compute.strategy != "ddp":
            raise InputError("strategy must be ddp for a VQ-VAE: it is small enough to be on every process.")
        if self.watch.probe_every:
            raise InputError("probe_every is for models that have features; a VQ-VAE is judged by its pictures.")

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of codes; default: 48 x 48, the paper's."""
        return parse_grid(self.data.grid or GRID)

    @property
    def dropout(self) -> float:
        """Of the network: none."""
        return 0.0

    @property
    def mask(self) -> float:
        """Nothing is masked."""
        return 0.0
