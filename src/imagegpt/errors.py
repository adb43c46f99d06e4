"""The exception for what can't be used or done here; the command turns it into one sentence and exit code 2."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """What the user gave can't be used. The message says what is wrong, where, and what to do."""


class MissingExtra(InputError, ModuleNotFoundError):  # noqa: N818 - no error in what was typed
    """What was asked for needs a package that comes with one of our extras only.

    Args:
        what: was asked for, as the beginning of a sentence.
        package: that it needs.
        extra: that brings the package.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(what, package, extra)  # the parts, not the sentence: pickle makes errors of their arguments

    def __str__(self) -> str:
        """The sentence for the user."""
        what, package, extra = self.args
        return f'{what} needs {package}: pip install "imagegpt[{extra}]".'


class Interrupted(KeyboardInterrupt):
    """The user stopped a run that keeps what is done; the message says how to go on."""


def reason(error: BaseException) -> str:
    """The first line of what a library says went wrong, or the error's kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {value}.")
