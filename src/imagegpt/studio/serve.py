"""The page as a server: on loopback unless told otherwise, without a request to anywhere else."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagegpt.errors import InputError, MissingExtra, reason

if TYPE_CHECKING:
    from imagegpt.studio.limits import Limits
    from imagegpt.studio.page import Studio

FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
SESSIONS = 200  # whose state is kept, 240 KB each beside what they drew; each call by REST is one
THREADS = 16  # beside those of requests: for reading files and answering


def read_auth(text: str) -> list[tuple[str, str]]:
    """Who may come in: "user:password", or a file with such lines.

    Raises:
        InputError: a line without both.
    """
    path = Path(text)
    from_file = os.path.isfile(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if from_file else [text]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--auth {text} can't be read: {reason(error)}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):
            where = f"line {number} of {text}" if from_file else "--auth"
            raise InputError(f"{where} must be user:password, or --auth a file with such lines.")
        found.append((user, password))
    if not found:
        raise InputError(f"--auth {text} names nobody.")
    return found


def studio_of(
    models: Sequence[str],
    roots: Sequence[Path],
    hub: bool,
    data: Sequence[str],
    probe: Path | None,
    limits: Limits,
    **how: Any,
) -> Studio:
    """What is behind the page, checked before anything is served; the first model is opened.

    Args:
        models, roots, hub, limits, how: see `imagegpt.studio.catalogue.Catalogue`.
        data: DATA that is offered for looking for neighbours in.
        probe: folder of a probe study.

    Raises:
        InputError: something that can't be used.
        MissingExtra: Gradio is missing (extra "studio").
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        import gradio  # noqa: F401 - fail now, in words
    except ModuleNotFoundError:
        raise MissingExtra("The studio", "gradio", "studio") from None
    from imagegpt.data.sources import open_source
    from imagegpt.probe.curve_file import read_curve
    from imagegpt.studio.catalogue import Catalogue
    from imagegpt.studio.page import Studio

    for name in data:
        open_source(name)
    curve = None if probe is None else read_curve(probe)
    catalogue = Catalogue(models, roots, hub, limits, **how)
    catalogue.open(catalogue.first).backend  # noqa: B018 - so that the first picture does not wait for it
    return Studio(catalogue, limits, {name: name for name in data}, curve)


@contextmanager
def serving(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: list[tuple[str, str]] | None = None,
) -> Iterator[str]:
    """Serve the page while the context lasts.

    Args:
        studio: behind it.
        host: address to listen on; "0.0.0.0" for all of this machine's.
        port: default: 7860, or the next one that is free.
        auth: users and their passwords; default: anybody who reaches the address.

    Yields:
        The page's address.

    Raises:
        InputError: the address can't be used.
    """
    _check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="imagegpt-studio-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Else it keeps 10,000 requests, and goes through them all after each one.
        os.environ.update(GRADIO_ANALYTICS_MAX_EVENTS="1", GRADIO_ANALYTICS_CACHE_FREQUENCY=str(2**62))
        from starlette.middleware import Middleware

        from imagegpt.studio.app import build_app
        from imagegpt.studio.guard import Guard

        app = build_app(studio).queue(api_open=False)  # no way around the line
        for block in app.blocks.values():
            block.keep_in_cache |= block.temp_files  # what the page shows at first is not swept out with the uploads
        try:
            with _no_proxies():
                _, local, _ = app.launch(
                    server_name=f"[{host}]" if ":" in host else host,
                    server_port=port,
                    auth=auth,  # pyright: ignore[reportArgumentType]
                    max_threads=studio.limits.running + studio.limits.waiting + THREADS,
                    max_file_size=studio.limits.upload,
                    state_session_capacity=SESSIONS,
                    prevent_thread_lock=True,
                    quiet=True,
                    share=False,
                    run_history=False,
                    enable_monitoring=False,
                    ssr_mode=False,
                    footer_links=["api"],
                    app_kwargs={"middleware": [Middleware(Guard)]},
                    **_looks(),
                )
        except OSError as error:
            raise InputError(f"{host} can't be listened on: {reason(error)}") from None
        try:
            yield local
        finally:
            app.close(verbose=False)


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that can't be listened on, in the words of the system; Gradio's are about Gradio."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            asked.bind(address)
    except (OSError, UnicodeError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        where = host if port is None else f"{host}:{port}"
        raise InputError(f"{where} can't be listened on: {told.lower()}.") from None


@contextmanager
def _no_proxies() -> Iterator[None]:
    """Gradio asks itself whether it is there, which no proxy could tell."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ.update(dict.fromkeys(before, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _looks() -> dict[str, Any]:
    """Gradio's base theme in fonts that every machine has."""
    from gradio.themes import Soft

    from imagegpt.studio.widgets import ASSETS

    theme = Soft(primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO)
    # White words need a darker ground than the theme's to be read.
    theme = theme.set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700"
    )
    return {"theme": theme, "css_paths": [ASSETS / "style.css"]}
