"""The recipe of a fine-tuning run; the paper's values are its defaults (Chen et al. 2020, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from imagegpt.arguments import Whole
from imagegpt.errors import InputError
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.recipe import Compute, Data, Optimization, Watch

Problem = Literal["auto", "single", "multi", "regression"]


@Parameter(name="*", group="Classifier")
@dataclass(frozen=True)
class Head:
    """What is fine-tuned, and to what.

    Args:
        model: nano, a model folder or checkpoint, or a Hugging Face Hub id; also a classifier, for other classes or to
            go on with the same.
        start: model takes its weights; paper, hf and informed begin anew in its shape, for comparison.
        problem: single, one class a picture; multi, several; regression, numbers; auto tells from the labels.
        generative: weight of the generative loss beside the classifier's; 0 leaves it out.
        layer: blocks below the classifier; default: all. Without a generative loss those above are cut off.
        freeze: the embeddings and so many blocks stay as they are; 0 trains all.
        layer_decay: the step size of each layer is so many times that of the layer above.
        head_rate: the step size of the classifier's weights is so many times that of the others.
        lora: rank of low-rank adapters (PEFT), which are trained in the place of the network; 0 has none.
        lora_alpha: their scale is this over the rank.
        class_weights: balanced weighs classes by how rare they are; or a number for each, with commas between them.
        smoothing: label smoothing.
        mixup: pairs of pictures are mixed by a part from the Beta distribution of this and this; 0 mixes none.
        least: training pictures that every class must have.
        dropout: of embeddings, attention and sublayers.
        mask: of a bidirectional (BERT) model: part of the ids that is masked.
    """

    model: str = "nano"
    start: Literal["model", "paper", "hf", "informed"] = "model"
    problem: Problem = "auto"
    generative: float = 1.0
    layer: Whole | None = None
    freeze: Whole = 0
    layer_decay: float = 1.0
    head_rate: float = 1.0
    lora: Whole = 0
    lora_alpha: float = 16.0
    class_weights: str | None = None
    smoothing: float = 0.0
    mixup: float = 0.0
    least: Whole = 2
    dropout: float = 0.0
    mask: float = 0.15


@Parameter(name="*", group="Data")
@dataclass(frozen=True)
class LabelledData(Data):  # noqa: D101 - the same names, other defaults
    __doc__ = Data.__doc__

    augment: str = "cifar"


@Parameter(name="*", group="Optimisation")
@dataclass(frozen=True)
class GentleOptimization(Optimization):  # noqa: D101 - the same names, other defaults
    __doc__ = Optimization.__doc__

    lr: float = 3e-4  # a tenth of the pretraining's
    muon_lr: float = 2e-3
    schedule: Literal["cosine", "linear", "constant"] = "constant"


@Parameter(name="*", group="Watching")
@dataclass(frozen=True)
class WatchForBest(Watch):  # noqa: D101 - the same names, other defaults
    __doc__ = Watch.__doc__

    validate_every: Annotated[
        Whole | None,
        Parameter(help="what the network is worth on the validation pictures; default: once an epoch."),
    ] = None
    patience: Whole = 3
    publish: Literal["last", "best"] = "best"


@Parameter(name="*")
@dataclass(frozen=True)
class FinetuneRecipe(FlatRecipe):
    """Of fine-tuning.

    Args:
        head: what is fine-tuned, and to what.
        data: what is trained on.
        optimization: how the weights move.
        compute: how it is computed.
        watch: what is looked at and kept.

    Raises:
        InputError: a value that can't be; the message names it.

    Example:
        >>> recipe = FinetuneRecipe.load(layer=5, generative=0)
        >>> recipe.head.layer, recipe.data.augment
        (5, 'cifar')
    """

    verb = "finetune"

    head: Head = field(default_factory=Head)
    # Frozen, so that parts may be of narrower types.
    data: LabelledData = field(default_factory=LabelledData)  # pyright: ignore
    optimization: GentleOptimization = field(default_factory=GentleOptimization)  # pyright: ignore
    compute: Compute = field(default_factory=Compute)
    watch: WatchForBest = field(default_factory=WatchForBest)  # pyright: ignore

    def __post_init__(self) -> None:
        super().__post_init__()
        head = self.head
        if head.lora and (head.freeze or head.start != "model"):
            raise InputError("--lora trains adapters of a network that stays as it is: leave --freeze and --start out.")

    @property
    def dropout(self) -> float:
        """Of the network."""
        return self.head.dropout

    @property
    def mask(self) -> float:
        """Part of the ids that a bidirectional network does not see."""
        return self.head.mask
