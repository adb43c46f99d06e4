"""Recipes as one flat list of names, in YAML and on the command line; in Python the names are grouped."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin

import yaml

from imagegpt.codec.augment import Augmentation
from imagegpt.errors import InputError, reason
from imagegpt.sequence import parse_grid

if TYPE_CHECKING:
    from imagegpt.train.recipe import Compute, Data, Optimization, Watch

SHIPPED = Path(__file__).parents[1] / "recipes"  # a folder for each verb
GRID = "32x32"


class FlatRecipe:
    """What the recipes of all verbs have in common; they are dataclasses of dataclasses.

    Attributes:
        verb: of `imagegpt`, and the folder of the recipes that come with the package.
    """

    verb: ClassVar[str]

    if TYPE_CHECKING:  # parts that every recipe has
        data: Data
        optimization: Optimization
        compute: Compute
        watch: Watch

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def load(cls, name: str | Path | None = None, **overrides: Any) -> Self:
        """A recipe from a YAML file or by the name of a shipped one, with other values for some names.

        Steps that are given replace the file's epochs, and epochs its steps.
        """
        given = [key for key, value in overrides.items() if value is not None]
        values = {} if name is None else cls.read(name, given)
        return cls.from_flat({**values, **overrides}, str(name or "the call"))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], source: str) -> Self:
        """A recipe from its flat names.

        Args:
            values: name -> value.
            source: where they come from, in messages.

        Raises:
            InputError: an unknown name, with the nearest known one, or a value of a wrong type.
        """
        owners = _owners(cls)
        given: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in owners:
                near = difflib.get_close_matches(str(name), owners, 1, cutoff=0.5)
                hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(owners)}."
                raise InputError(f"{source}: a recipe has no {name!r}.{hint}")
            part, kind = owners[name]
            given.setdefault(part, {})[name] = _as(kind, value, f"{source}: {name}")
        kinds = _parts(cls)
        return cls(**{part: kinds[part](**fields) for part, fields in given.items()})

    @classmethod
    def shipped(cls) -> dict[str, Path]:
        """The recipes that come with the package: name -> file."""
        return {path.stem: path for path in sorted((SHIPPED / cls.verb).glob("*.yaml"))}

    @classmethod
    def read(cls, name: str | Path, replaced: Collection[str] = ()) -> dict[str, Any]:
        """The flat names of a YAML file, or of a recipe that comes with the package.

        Args:
            name: of the file or the recipe.
            replaced: names that are given otherwise: steps replace the file's epochs, and epochs its steps.

        Raises:
            InputError: there is none, or it is no YAML with names and values; the message names the file.
        """
        path = Path(name)
        if not path.is_file():
            known = cls.shipped()
            if str(name) not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Give a YAML file, or one of {', '.join(known)}."
                others = [file.parent.name for file in SHIPPED.glob("*/*.yaml") if file.stem == str(name)]
                hint = f"It is one of `imagegpt {others[0]}`. {hint}" if others else hint
                raise InputError(f"There is no recipe {str(name)!r}. {hint}")
            path = known[str(name)]
        values = _read(path)
        try:
            cls.from_flat(values, str(path))
        except InputError as error:
            raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        gone = {other for given, other in (("steps", "epochs"), ("epochs", "steps")) if given in replaced}
        return {key: value for key, value in values.items() if key not in gone}

    @classmethod
    def can_read(cls, path: Path) -> bool:
        """Whether a file is a recipe of this kind."""
        try:
            cls.read(path)
        except InputError:
            return False
        return True

    def flat(self) -> dict[str, Any]:
        """All names and values, as `from_flat` and a YAML file take them."""
        parts = [dataclasses.asdict(getattr(self, part)) for part in _parts(type(self))]
        return {name: value for part in parts for name, value in part.items()}

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of ids."""
        return parse_grid(self.data.grid or GRID)

    @property
    def dropout(self) -> float:
        """Of the network."""
        raise NotImplementedError

    @property
    def mask(self) -> float:
        """Part of the ids that a bidirectional network does not see."""
        raise NotImplementedError


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}: {getattr(error, 'problem', '')}" if place else reason(error)
        raise InputError(f"{path} can't be read as a recipe: {where}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no recipe: it must be lines of 'name: value'.")
    return values


def _parts(kind: Any) -> dict[str, Any]:
    """The parts of a recipe: name -> dataclass, in their order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _owners(kind: type) -> dict[str, tuple[str, Any]]:
    """Flat name -> the part that has it, and its type."""
    parts = _parts(kind)
    return {
        field.name: (part, typing.get_type_hints(parts[part])[field.name])
        for part in parts
        for field in dataclasses.fields(parts[part])
    }


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
    **dict.fromkeys(
        ("log_every", "validate_every", "patience", "save_every", "sample_every", "probe_every"), (0, 1e18)
    ),
    **dict.fromkeys(("beta1", "beta2", "dropout", "ema"), (0, BELOW_1)),
    **dict.fromkeys(("lr", "muon_lr", "eps", "epochs", "timeout"), (1e-30, 1e18)),
    **dict.fromkeys(("clip", "weight_decay", "warmup", "spike", "seed", "probe_layer"), (0, 1e18)),
    **dict.fromkeys(("patience", "generative", "layer", "freeze", "lora", "least", "mixup", "head_rate"), (0, 1e18)),
    **dict.fromkeys(("layer_decay", "lora_alpha"), (1e-6, 1e6)),
    **dict.fromkeys(("smoothing", "code_decay", "restart"), (0, BELOW_1)),
    **dict.fromkeys(("commitment", "edge", "blocks"), (0, 1e9)),
    **dict.fromkeys(("code_width", "block_width"), (1, 1e9)),
    "codes": (2, 1 << 16),
    "decay": (0, 1),
    "mask": (1e-6, 1),
}


def _check(recipe: FlatRecipe) -> None:
    values = recipe.flat()
    for name, (low, high) in LIMITS.items():
        if values.get(name) is not None and not low <= values[name] <= high:
            told = f"at least {low:g}" if high >= 1e9 and values[name] < low else f"from {low:g} to {high:g}"
            told = f"at least {low:g} and below 1" if high == BELOW_1 else told
            raise InputError(f"{name} must be {told}, not {values[name]}.")
    Augmentation.parse(recipe.data.augment)
    parse_grid(recipe.data.grid or GRID)
    if recipe.optimization.steps is not None and recipe.optimization.epochs is not None:
        raise InputError("Give steps or epochs, not both.")
