"""The activations of the MLP in ai.onnx operators.

Each is a function of a graph builder and the name of its input, and returns the name of its output. Shapes and types
stay. The names are transformers'; prelu and xielu, which have parameters of their own, are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from imagegpt.errors import InputError

GELU_10 = 10.0  # where that one is clipped
ROOT = math.sqrt(2 / math.pi)
CUBIC = 0.044715


class Builder(Protocol):
    """What activations need of a graph builder."""

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; the name of its output."""
        ...

    def number(self, value: float) -> str:
        """The name of a constant of the activations' type."""
        ...


Activation = Callable[[Builder, str], str]


def find_activation(name: str) -> Activation:
    """The activation of that name; an InputError lists those that there are."""
    if name not in ACTIVATIONS:
        raise InputError(f'ONNX export has no activation "{name}"; it has {", ".join(sorted(ACTIVATIONS))}.')
    return ACTIVATIONS[name]


def _gate(slope: float, b: Builder, x: str) -> str:
    steep = x if slope == 1 else b.op("Mul", x, b.number(slope))
    return b.op("Mul", x, b.op("Sigmoid", steep))


def _gelu(b: Builder, x: str) -> str:
    # In the order in which runtimes look for it, to run it as one operator.
    part = b.op("Add", b.op("Erf", b.op("Div", x, b.number(math.sqrt(2)))), b.number(1))
    return b.op("Mul", b.op("Mul", x, part), b.number(0.5))


def _tanh_gelu(b: Builder, x: str) -> str:
    cube = b.op("Mul", b.op("Mul", x, x), x)
    inner = b.op("Mul", b.op("Add", x, b.op("Mul", cube, b.number(CUBIC))), b.number(ROOT))
    return b.op("Mul", b.op("Mul", x, b.number(0.5)), b.op("Add", b.op("Tanh", inner), b.number(1)))


def _clip(low: float, high: float, b: Builder, x: str) -> str:
    return b.op("Clip", x, b.number(low), b.number(high))


def _clipped_gelu(b: Builder, x: str) -> str:
    return _clip(-GELU_10, GELU_10, b, _gelu(b, x))


def _laplace(b: Builder, x: str) -> str:
    centred = b.op("Div", b.op("Sub", x, b.number(0.707107)), b.number(0.282095 * math.sqrt(2)))
    return b.op("Mul", b.op("Add", b.op("Erf", centred), b.number(1)), b.number(0.5))


def _mish(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))


def _relu2(b: Builder, x: str) -> str:
    kept = b.op("Relu", x)
    return b.op("Mul", kept, kept)


def _sqrt_softplus(b: Builder, x: str) -> str:
    return b.op("Sqrt", b.op("Softplus", x))


def _linear(b: Builder, x: str) -> str:
    return x


def _one(operator: str, b: Builder, x: str, **attributes: Any) -> str:
    return b.op(operator, x, **attributes)


ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": partial(_gate, 1.702),
    **dict.fromkeys(("silu", "swish"), partial(_gate, 1.0)),
    **dict.fromkeys(("gelu", "gelu_python"), _gelu),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
        _tanh_gelu,
    ),
    "gelu_10": _clipped_gelu,
    "relu": partial(_one, "Relu"),
    "relu2": _relu2,
    "relu6": partial(_clip, 0, 6),
    "leaky_relu": partial(_one, "LeakyRelu", alpha=0.01),
    "sigmoid": partial(_one, "Sigmoid"),
    "tanh": partial(_one, "Tanh"),
    "hardswish": partial(_one, "HardSwish"),
    "mish": _mish,
    "laplace": _laplace,
    "sqrtsoftplus": _sqrt_softplus,
    "linear": _linear,
}
