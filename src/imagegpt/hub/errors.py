"""What the Hub and its client raise, as one sentence in which no token stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from imagegpt.errors import InputError, reason

LOGIN = "log in with `hf auth login`"


@contextmanager
def told(hub_id: str, revision: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        sentence = _sentence(error, hub_id, revision)
        if sentence is None:
            raise
        raise InputError(_without_token(sentence)) from None


def _sentence(error: Exception, hub_id: str, revision: str) -> str | None:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "huggingface_hub")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{hub_id} can't be reached: HF_HUB_OFFLINE=1 is set; unset it, or use a local folder."
    if isinstance(error, errors.GatedRepoError):
        return f"{hub_id} is gated: ask for access on its page, and {LOGIN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}."
    if status == 403:
        return f"You have no permission for {hub_id}: {LOGIN}, by a token that may do this."
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        return f"{hub_id} is not there, or not for everyone, and you are not logged in: {LOGIN}."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return f"There is no model {hub_id} on the Hub, or it is private: {LOGIN} as one who may see it."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or hub_id} can't be used: {error.strerror}."
    if client or isinstance(error, (OSError, ValueError)):
        what = getattr(error, "server_message", None) or reason(error)
        return f"The Hub can't be used for {hub_id}: {what.rstrip('.')}."
    return None


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"hf_[A-Za-z0-9]{20,}", "***", text)
