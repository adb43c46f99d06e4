"""What stands before Gradio: rules for the browser, and no request that makes the server ask somebody else."""

from __future__ import annotations

import json
from typing import Any

from gradio_client.utils import is_http_url_like
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The browser itself then refuses to ask anybody else. The scripts of Gradio's own components are made as it runs.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
MOST_BYTES = 8 << 20  # of a question; pictures are uploaded before it, and named in it


class Guard:
    """An ASGI middleware around Gradio's app.

    Args:
        app: Gradio's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app do it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        if _asks(scope):
            body = await _body(receive)
            refused = _refusal(body)
            if refused is not None:
                return await refused(scope, receive, with_headers)
            receive = _again(body or b"", receive)
        await self._app(scope, receive, with_headers)


def _asks(scope: Scope) -> bool:
    """Whether this is a question in JSON, and no upload."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return scope["method"] == "POST" and not any(kind.startswith(b"multipart/") for kind in kinds)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; `None` of one that is too large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _refusal(body: bytes | None) -> JSONResponse | None:
    """The answer to a question that is not let through."""
    if body is None:
        return JSONResponse({"detail": f"A request has at most {MOST_BYTES >> 20} MiB."}, 413)
    try:
        told = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return None  # Gradio says what is wrong with it; a form is none of ours
    if _has_address(told):
        return JSONResponse({"detail": "Upload the file: addresses are not fetched."}, 400)
    return None


def _has_address(told: Any) -> bool:
    """Whether a file is named by an address, which Gradio would fetch."""
    left = [told]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            path = part.get("path")
            if isinstance(path, str) and is_http_url_like(path):
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already, and then goes on."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return left.pop() if left else await receive()

    return given
