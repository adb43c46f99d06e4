"""What stands before Gradio: rules for the browser, a door, and no request that makes the server ask somebody else."""

from __future__ import annotations

import json
import re
from typing import Any

from gradio_client.utils import is_http_url_like
from starlette.requests import HTTPConnection
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
# What who has not logged in may have: the way in, and files of the front end's own. Gradio asks itself for the last.
OPEN = re.compile(
    r"/|/login/?|/(assets|static|svelte)/.*|/(gradio_api/)?theme\.css|/favicon\.ico|/manifest\.json"
    r"|/gradio_api/startup-events"
)
FUNCTIONS = re.compile(rb"window\.gradio_api_info = .*?;(?=</script>)", re.DOTALL)
FETCHES_NOTHING = JSONResponse({"detail": "Upload the file: addresses are not fetched."}, 400)
UNKNOWN = JSONResponse({"detail": {"error": "Not authenticated", "auth_message": None}}, 401)


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

        answer: Send = with_headers
        if "://" in scope["path"]:  # of a file or a page that Gradio would fetch
            return await FETCHES_NOTHING(scope, receive, answer)
        if _is_stranger(scope):
            if not OPEN.fullmatch(scope["path"]):
                return await UNKNOWN(scope, receive, answer)
            if scope["path"] == "/":
                answer = _without_functions(answer)
        if _asks(scope):
            body = await _body(receive)
            refused = _refusal(body)
            if refused is not None:
                return await refused(scope, receive, answer)
            receive = _again(body or b"", receive)
        await self._app(scope, receive, answer)


def _asks(scope: Scope) -> bool:
    """Whether this is a question in JSON, and no upload."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]  # the first is what Gradio goes by
    return scope["method"] == "POST" and not (kinds and kinds[0].startswith(b"multipart/"))


def _is_stranger(scope: Scope) -> bool:
    """Whether this comes from somebody who has not logged in, where that is asked for."""
    app = scope.get("app")
    if app is None or app.auth is None:
        return False
    cookies = HTTPConnection(scope).cookies
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")  # as Gradio calls them
    return not any(name in cookies and cookies[name] in app.tokens for name in names)


def _without_functions(send: Send) -> Send:
    """A `send` that leaves out of the page that asks for a name what Gradio tells there of the functions behind it."""
    start: Message = {}
    page = bytearray()

    async def sent(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        page.extend(message.get("body", b""))
        if not message.get("more_body"):
            body = FUNCTIONS.sub(b"", bytes(page))
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})

    return sent


async def _body(receive: Receive) -> bytes | None:
    """The whole body; `None` of one that is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _refusal(body: bytes | None) -> JSONResponse | None:
    """The answer to a question that is not let through."""
    if body is None:
        return JSONResponse({"detail": f"A request has at most {MOST_BYTES >> 20} MiB."}, 413)
    try:
        told = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return None  # Gradio says what is wrong with it; a form is none of ours
    if _has_address(told):
        return FETCHES_NOTHING
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
