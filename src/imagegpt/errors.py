"""The one exception for input that can't be used; the command turns it into one sentence and exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave can't be used. The message says what is wrong, where, and what to do."""


def reason(error: BaseException) -> str:
    """The first line of what a library says went wrong, or the error's kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
