"""The recipe of a training run: everything that decides it.

In Python the names are grouped: `recipe.optimization.lr` is `lr` in a file and `--lr` on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cyclopts import Parameter

from imagegpt.arguments import Whole
from imagegpt.train.flat import FlatRecipe

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Shape:
    """The network and its start.

    Args:
        size: nano, small, medium, large or xl.
        width, layers, heads: in the place of the size's.
        dropout: of embeddings, attention and sublayers; the paper uses none.
        objective: ar predicts each id from those before it; bert masked ids from all others.
        mask: bert: part of the ids that is masked.
        start: paper draws the first weights as the paper does, hf as Hugging Face does; informed begins with
            embeddings that know the grid and the colours, and with heads that look at neighbours.
        init: a checkpoint or model folder whose weights are the start.
        codec: a palette's .npy file, the folder of a VQ-VAE, a model's folder or name; fit makes a palette of --colors
            from the training pictures; default: the tokenised data's own, or nano's.
        colors: of a palette that is fitted.
    """

    size: str = "small"
    width: Whole | None = None
    layers: Whole | None = None
    heads: Whole | None = None
    dropout: float = 0.0
    objective: Literal["ar", "bert"] = "ar"
    mask: float = 0.15
    start: Literal["paper", "hf", "informed"] = "paper"
    init: str | None = None
    codec: str | None = None
    colors: Whole = 512


@Parameter(name="*", group="Data")
@dataclass(frozen=True)
class Data:
    """What is trained on.

    Args:
        train: DATA: pictures, or ids that `imagegpt tokenize` made.
        validation: DATA that is not trained on.
        grid: height x width of ids; default: that of the ids, of the codec's folder, or of a model that is fine-tuned;
            else 32x32.
        crop: how a picture that is not augmented comes onto the grid: center or none.
        augment: none, cifar (reflected padding, mirroring), imagenet (the paper's crop), or some of crop,pad,flip.
        limit: the first so many training pictures only.
        validation_limit: the first so many validation pictures only.
        label_column: where a table keeps the labels.
    """

    train: str | None = None
    validation: str | None = None
    grid: str | None = None
    crop: Literal["center", "none"] = "center"
    augment: str = "none"
    limit: Whole | None = None
    validation_limit: Whole | None = None
    label_column: str | None = None


@Parameter(name="*", group="Optimisation")
@dataclass(frozen=True)
class Optimization:
    """How the weights move.

    Args:
        batch: pictures an update, over all processes.
        accumulate: forwards that make up an update, which need less memory than one.
        steps: updates; or give epochs.
        epochs: passes over the training pictures, in the place of steps.
        optimizer: adamw, the paper's; muon orthogonalises the updates of the blocks' matrices.
        lr: highest step size; of adamw, or of what muon leaves to it.
        muon_lr: highest step size of muon's matrices.
        beta1, beta2, eps: of adamw.
        weight_decay: decoupled, of matrices and embeddings.
        clip: the gradient's norm is cut to this; 0 does not.
        warmup: updates until the highest step size; a part of all if below 1; default: one epoch, as in the paper,
            and at most a tenth of all.
        schedule: what follows: cosine to 0, linear (constant, then linear to 0) or constant.
        decay: linear: the last part of the run, in which the step size falls.
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        seed: of everything random.
    """

    batch: Whole = 128
    accumulate: Whole = 1
    steps: Whole | None = None
    epochs: float | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    muon_lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    warmup: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    decay: float = 0.4
    ema: float = 0.0
    seed: Whole = 0


@Parameter(name="*", group="Machine")
@dataclass(frozen=True)
class Compute:
    """How it is computed; the result changes by rounding alone.

    Args:
        device: cpu, cuda or mps; default: the best one here.
        precision: fp32, tf32 (fp32 with faster products on CUDA), bf16 or fp16 (autocast; weights stay float32).
        compile: use torch.compile.
        checkpointing: compute activations again in the backward pass, which saves memory.
        strategy: of several processes: ddp, each with the whole model, or fsdp, which divides it (FSDP2).
        timeout: minutes without an answer after which another process counts as lost.
    """

    device: str | None = None
    precision: Precision = "fp32"
    compile: bool = False
    checkpointing: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout: float = 10.0


@Parameter(name="*", group="Watching")
@dataclass(frozen=True)
class Watch:
    """What is looked at and kept; every number of updates, 0 never.

    Args:
        log_every: a line in log.jsonl.
        validate_every: what the network is worth on the validation pictures.
        patience: end the run after so many validations in a row that were not better than the best; 0 never does.
        publish: which checkpoint becomes the model: the last, or the best by validation.
        save_every: a checkpoint; one is also saved at the end and when the run is interrupted.
        sample_every: a sheet of samples.
        probe_every: a linear probe on labelled pictures: the features' accuracy so far.
        probe_layer: of the probe; default: the middle.
        probe_pictures: training and validation pictures of the probe.
        samples: pictures on a sheet.
        keep: checkpoints that stay: the last so many, and the best by validation.
        tracker: also log to tensorboard or trackio.
        on_spike: what becomes of a run whose loss jumps or is not finite: stop, or rollback to the last checkpoint
            and leave out the data since then.
        spike: a jump in nats/token above the latest updates' mean; 0 looks for losses that are not finite only.
    """

    log_every: Whole = 10
    validate_every: Whole | None = 1000
    patience: Whole = 0
    publish: Literal["last", "best"] = "last"
    save_every: Whole = 1000
    sample_every: Whole = 0
    probe_every: Whole = 0
    probe_layer: Whole | None = None
    probe_pictures: Whole = 2000
    samples: Whole = 16
    keep: Whole = 2
    tracker: Literal["tensorboard", "trackio"] | None = None
    on_spike: Literal["stop", "rollback"] = "stop"
    spike: float = 0.0


@Parameter(name="*")
@dataclass(frozen=True)
class Recipe(FlatRecipe):
    """Of pretraining.

    Args:
        shape: the network and its start.
        data: what is trained on.
        optimization: how the weights move.
        compute: how it is computed.
        watch: what is looked at and kept.

    Raises:
        InputError: a value that can't be; the message names it.

    Example:
        >>> recipe = Recipe.load("debug", steps=5)
        >>> recipe.optimization.steps, recipe.shape.layers
        (5, 2)
    """

    verb = "train"

    shape: Shape = field(default_factory=Shape)
    data: Data = field(default_factory=Data)
    optimization: Optimization = field(default_factory=Optimization)
    compute: Compute = field(default_factory=Compute)
    watch: Watch = field(default_factory=Watch)

    @property
    def dropout(self) -> float:
        """Of the network."""
        return self.shape.dropout

    @property
    def mask(self) -> float:
        """Part of the ids that a bidirectional network does not see."""
        return self.shape.mask
