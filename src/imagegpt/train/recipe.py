"""A recipe: everything that decides a training run, as one flat list of names in YAML and on the command line.

In Python the names are grouped: `recipe.optimization.lr` is `lr` in a file and `--lr` on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from cyclopts import Parameter

from imagegpt.arguments import Whole
from imagegpt.codec.augment import Augmentation
from imagegpt.errors import InputError, reason
from imagegpt.sequence import parse_grid

SHIPPED = Path(__file__).parents[1] / "recipes"
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


@Parameter(name="*", group="Data")
@dataclass(frozen=True)
class Data:
    """What is trained on.

    Args:
        train: DATA: pictures, or ids that `imagegpt tokenize` made.
        validation: DATA that is not trained on.
        palette: an .npy file, a model's folder or name; fit makes one of --colors from the training pictures;
            default: the tokenised data's own, or nano's.
        colors: of a palette that is fitted.
        grid: height x width of ids.
        crop: how a picture that is not augmented comes onto the grid: center or none.
        augment: none, cifar (reflected padding, mirroring), imagenet (the paper's crop), or some of crop,pad,flip.
        limit: the first so many training pictures only.
        validation_limit: the first so many validation pictures only.
        label_column: where a table keeps the labels, which the online probe reads.
    """

    train: str | None = None
    validation: str | None = None
    palette: str | None = None
    colors: Whole = 512
    grid: str = "32x32"
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
        validate_every: nats/token of the validation pictures.
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
    validate_every: Whole = 1000
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
class Recipe:
    """All of it.

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

    shape: Shape = field(default_factory=Shape)
    data: Data = field(default_factory=Data)
    optimization: Optimization = field(default_factory=Optimization)
    compute: Compute = field(default_factory=Compute)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def load(cls, name: str | Path | None = None, **overrides: Any) -> Recipe:
        """A recipe from a YAML file or by the name of a shipped one, with other values for some names.

        Steps that are given replace the file's epochs, and epochs its steps.
        """
        given = [key for key, value in overrides.items() if value is not None]
        values = {} if name is None else read_recipe(name, given)
        return cls.from_flat({**values, **overrides}, str(name or "the call"))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], source: str) -> Recipe:
        """A recipe from its flat names.

        Args:
            values: name -> value.
            source: where they come from, in messages.

        Raises:
            InputError: an unknown name, with the nearest known one, or a value of a wrong type.
        """
        owners = _owners()
        given: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in owners:
                near = difflib.get_close_matches(str(name), owners, 1, cutoff=0.5)
                hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(owners)}."
                raise InputError(f"{source}: a recipe has no {name!r}.{hint}")
            part, kind = owners[name]
            given.setdefault(part, {})[name] = _as(kind, value, f"{source}: {name}")
        kinds = typing.get_type_hints(cls)
        return cls(**{part: kinds[part](**fields) for part, fields in given.items()})

    def flat(self) -> dict[str, Any]:
        """All names and values, as `from_flat` and a YAML file take them."""
        parts = dataclasses.asdict(self)
        return {name: value for part in parts.values() for name, value in part.items()}

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of ids."""
        return parse_grid(self.data.grid)


def read_recipe(name: str | Path, replaced: Collection[str] = ()) -> dict[str, Any]:
    """The flat names of a YAML file, or of a recipe that comes with the package.

    Args:
        name: of the file or the recipe.
        replaced: names that are given otherwise: steps replace the file's epochs, and epochs its steps.

    Raises:
        InputError: there is none, or it is no YAML with names and values; the message names the file.
    """
    path = Path(name)
    if not path.is_file():
        known = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Give a YAML file, or one of {', '.join(known)}."
            raise InputError(f"There is no recipe {str(name)!r}. {hint}")
        path = SHIPPED / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}: {getattr(error, 'problem', '')}" if place else reason(error)
        raise InputError(f"{path} can't be read as a recipe: {where}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no recipe: it must be lines of 'name: value'.")
    try:
        Recipe.from_flat(values, str(path))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    gone = {other for given, other in (("steps", "epochs"), ("epochs", "steps")) if given in replaced}
    return {key: value for key, value in values.items() if key not in gone}


def _owners() -> dict[str, tuple[str, Any]]:
    """Flat name -> the part that has it, and its type."""
    parts = typing.get_type_hints(Recipe)
    return {name: (part, kind) for part in parts for name, kind in typing.get_type_hints(parts[part]).items()}


def _as(kind: Any, value: Any, what: str) -> Any:
    """The value in its type; YAML reads 3e-3 as a text, and whole numbers are floats too."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        [kind] = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{what} must be one of {', '.join(map(str, get_args(kind)))}, not {value!r}.")
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, (str, Path)):
            return str(value)
        if type(value) is kind:
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{what} must be {words}, not {value!r}.")


BELOW_1 = 1 - 1e-12
# Name -> lowest and highest value. A `None` is left alone.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("batch", "accumulate", "steps", "colors", "limit", "validation_limit", "samples", "keep"), (1, 1e18)
    ),
    **dict.fromkeys(("width", "layers", "heads", "probe_pictures"), (1, 1e9)),
    **dict.fromkeys(("log_every", "validate_every", "save_every", "sample_every", "probe_every"), (0, 1e18)),
    **dict.fromkeys(("beta1", "beta2", "dropout", "ema"), (0, BELOW_1)),
    **dict.fromkeys(("lr", "muon_lr", "eps", "epochs", "timeout"), (1e-30, 1e18)),
    **dict.fromkeys(("clip", "weight_decay", "warmup", "spike", "seed", "probe_layer"), (0, 1e18)),
    "decay": (0, 1),
    "mask": (1e-6, 1),
}


def _check(recipe: Recipe) -> None:
    values = recipe.flat()
    for name, (low, high) in LIMITS.items():
        if values[name] is not None and not low <= values[name] <= high:
            told = f"at least {low:g}" if high >= 1e9 and values[name] < low else f"from {low:g} to {high:g}"
            told = f"at least {low:g} and below 1" if high == BELOW_1 else told
            raise InputError(f"{name} must be {told}, not {values[name]}.")
    Augmentation.parse(recipe.data.augment)
    parse_grid(recipe.data.grid)
    if recipe.optimization.steps is not None and recipe.optimization.epochs is not None:
        raise InputError("Give steps or epochs, not both.")
