"""OpenAI's variables and Hugging Face's parameters: one table, read in both directions.

Source of OpenAI's side: openai/image-gpt, src/model.py. K colours, T positions, D width, I = 4 D, N heads, H head
width. OpenAI multiplies by q_proj (N, H, D) as "bsf,nhf->bnsh" and by c_proj (N, H, D) as "bnsh,nhf->bsf", and has no
biases; Hugging Face keeps q, k and v side by side with the input first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.checkpoint import HEAD, expected_shapes
from imagegpt.errors import InputError
from imagegpt.spec import SIZES, ModelSpec

Array = NDArray[np.float32]
Shape = tuple[int, ...]
START = "model/sos"  # what only models have that see no later ids
HEADS = {(spec.n_layer, spec.n_embd): spec.n_head for spec in (SIZES[name] for name in ("small", "medium", "large"))}
# What training leaves in a checkpoint beside the model: the optimiser's moments and counters, and a class head.
LEFT_OUT = {
    "optimiser": re.compile(r".*/Adam(_1)?|beta[12]_power"),
    "counter": re.compile(r"global_step"),
    "class head": re.compile(r"(.*/)?w?clf(/.*)?"),
}


@dataclass(frozen=True)
class Way:
    """How variables become a parameter, and back.

    Args:
        to_hf: from the variables' arrays, and the parameter's shape.
        to_openai: from the parameter, and the variables' shapes.
    """

    to_hf: Callable[[list[Array], Shape], Array]
    to_openai: Callable[[Array, list[Shape]], list[Array]]


def _stack(parts: list[Array], shape: Shape) -> Array:
    whole, at = np.zeros(shape, np.float32), 0
    for part in parts:
        rows = part.reshape(-1, shape[1])
        whole[at : at + len(rows)] = rows
        at += len(rows)
    return whole


def _unstack(whole: Array, shapes: list[Shape]) -> list[Array]:
    counts = [math.prod(shape) // whole.shape[1] for shape in shapes]
    return [part.reshape(shape) for part, shape in zip(np.split(whole, np.cumsum(counts)), shapes, strict=False)]


def _side_by_side(parts: list[Array], shape: Shape) -> Array:
    return np.concatenate([part.reshape(-1, shape[0]).T for part in parts], axis=1)


def _apart(whole: Array, shapes: list[Shape]) -> list[Array]:
    return [part.T.reshape(shape) for part, shape in zip(np.split(whole, len(shapes), axis=1), shapes, strict=True)]


def _nothing(bias: Array, shapes: list[Shape]) -> list[Array]:
    if bias.any():
        raise ValueError("is not zero, and OpenAI's layers have no biases")
    return []


SAME = Way(lambda parts, shape: parts[0].reshape(shape), lambda whole, shapes: [whole.reshape(shapes[0])])
ROWS = Way(_stack, _unstack)  # rows that variables lack are zero
HEADS_TO_COLUMNS = Way(_side_by_side, _apart)
NO_BIAS = Way(lambda parts, shape: np.zeros(shape, np.float32), _nothing)

_BLOCK = "transformer.h.{}."
# Parameter; the variables that it is made of, with the letters of their dimensions; how.
TABLE: tuple[tuple[str, dict[str, str], Way], ...] = (
    ("transformer.wte.weight", {"model/wte": "KD", START: "D"}, ROWS),
    ("transformer.wpe.weight", {"model/wpe": "TD"}, SAME),
    (_BLOCK + "ln_1.weight", {"model/h{}/ln_1/g": "D"}, SAME),
    (
        _BLOCK + "attn.c_attn.weight",
        {"model/h{}/attn/q_proj": "NHD", "model/h{}/attn/k_proj": "NHD", "model/h{}/attn/v_proj": "NHD"},
        HEADS_TO_COLUMNS,
    ),
    (_BLOCK + "attn.c_attn.bias", {}, NO_BIAS),
    (_BLOCK + "attn.c_proj.weight", {"model/h{}/attn/c_proj": "NHD"}, SAME),
    (_BLOCK + "attn.c_proj.bias", {}, NO_BIAS),
    (_BLOCK + "ln_2.weight", {"model/h{}/ln_2/g": "D"}, SAME),
    (_BLOCK + "mlp.c_fc.weight", {"model/h{}/mlp/c_fc/w": "DI"}, SAME),
    (_BLOCK + "mlp.c_fc.bias", {}, NO_BIAS),
    (_BLOCK + "mlp.c_proj.weight", {"model/h{}/mlp/c_proj/w": "ID"}, SAME),
    (_BLOCK + "mlp.c_proj.bias", {}, NO_BIAS),
    ("transformer.ln_f.weight", {"model/ln_f/g": "D"}, SAME),
    (HEAD, {"model/wtet": "KD"}, SAME),
)


@dataclass(frozen=True)
class Part:
    """One parameter of a model, and the variables that it is made of.

    Args:
        name, shape: of the parameter, in Hugging Face's layout.
        variables: name -> shape of each variable, in OpenAI's; none for a bias.
        way: between the two.
    """

    name: str
    shape: Shape
    variables: dict[str, Shape]
    way: Way

    def to_hf(self, read: Callable[[str], NDArray[Any]]) -> Array:
        """The parameter, from what `read` gives for each variable's name."""
        return self.way.to_hf([read(name) for name in self.variables], self.shape)

    def to_openai(self, parameter: Array) -> dict[str, Array]:
        """The variables, from the parameter; an InputError says that OpenAI's layout can't hold it."""
        try:
            parts = self.way.to_openai(parameter, list(self.variables.values()))
        except ValueError as error:
            raise InputError(f"{self.name} {error}: the model has no form in OpenAI's layout.") from None
        return dict(zip(self.variables, parts, strict=True))


def parts_of(spec: ModelSpec, causal: bool) -> list[Part]:
    """A model's parameters with their variables, in the order of `expected_shapes`.

    Args:
        spec: the model's numbers.
        causal: whether there is a start token; BERT models have none.
    """
    sizes = {"K": spec.num_colors, "T": spec.n_positions, "D": spec.n_embd, "I": spec.inner_width}
    sizes |= {"N": spec.n_head, "H": spec.head_width}
    rows = {row[0]: row[1:] for row in TABLE}
    parts = []
    for name, shape in expected_shapes(spec, {HEAD: spec.num_colors}).items():
        layer = next(iter(re.findall(r"\.h\.(\d+)\.", name)), "")
        variables, way = rows[re.sub(r"\.h\.\d+\.", ".h.{}.", name)]
        known = {variable.format(layer): letters for variable, letters in variables.items()}
        shapes = {key: tuple(sizes[letter] for letter in letters) for key, letters in known.items()}
        if not causal:
            shapes.pop(START, None)
        parts.append(Part(name, shape, shapes, way))
    return parts


def read_sizes(shapes: Mapping[str, Shape], n_head: int | None = None) -> tuple[ModelSpec, bool]:
    """The numbers of a model, from its variables' shapes, and whether it is causal; all shapes are compared.

    Args:
        shapes: name -> shape of each variable.
        n_head: heads; needed only where q_proj has two dimensions and the size is none of OpenAI's.

    Raises:
        InputError: a variable is missing or has a wrong shape; the message names it.
    """
    colors, width = _dimensions(shapes, "model/wte", 2)
    positions, _ = _dimensions(shapes, "model/wpe", 2)
    found = (re.match(r"model/h(\d{1,4})/", name) for name in shapes)
    layers = 1 + max((int(match[1]) for match in found if match), default=0)
    try:
        spec = ModelSpec(
            vocab_size=colors + 1,
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=_heads(shapes, layers, width, n_head),
        )
        _ = spec.square_grid
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from None
    causal = START in shapes
    for part in parts_of(spec, causal):
        for name, shape in part.variables.items():
            _check_shape(shapes, name, shape)
    return spec, causal


def left_out(names: Iterable[str], parts: Iterable[Part]) -> dict[str, list[str]]:
    """What a checkpoint has beside a model: kind -> names; what is of no known kind is "unknown"."""
    used = {name for part in parts for name in part.variables}
    rest: dict[str, list[str]] = {}
    for name in names:
        if name not in used:
            kind = next((kind for kind, pattern in LEFT_OUT.items() if pattern.fullmatch(name)), "unknown")
            rest.setdefault(kind, []).append(name)
    return rest


def _dimensions(shapes: Mapping[str, Shape], name: str, count: int) -> Shape:
    shape = _present(shapes, name)
    if len(shape) != count or 0 in shape:
        raise InputError(f"{name} has shape {shape}; it should have {count} dimensions.")
    return shape


def _present(shapes: Mapping[str, Shape], name: str) -> Shape:
    if name not in shapes:
        raise InputError(f"{name} is missing; is it a checkpoint of OpenAI's image-gpt?")
    return shapes[name]


def _heads(shapes: Mapping[str, Shape], layers: int, width: int, told: int | None) -> int:
    shape = _present(shapes, "model/h0/attn/q_proj")
    if len(shape) != 3 and shape != (width, width):
        raise InputError(f"model/h0/attn/q_proj has shape {shape}; it should be (heads, {width} / heads, {width}).")
    heads = shape[0] if len(shape) == 3 else told or HEADS.get((layers, width))
    if heads is None:
        raise InputError(f"Nothing says how many heads {layers} layers of width {width} have: give --n-head.")
    if told not in (None, heads):
        raise InputError(f"model/h0/attn/q_proj has {heads} heads, not {told}.")
    return heads


def _check_shape(shapes: Mapping[str, Shape], name: str, wanted: Shape) -> None:
    shape = _present(shapes, name)
    flat = (math.prod(wanted[:2]), wanted[-1])  # of heads side by side
    if shape != wanted and not (len(wanted) == 3 and shape == flat):
        raise InputError(f"{name} has shape {shape}; by the other tensors it should be {wanted}.")
