"""A studio in a thread or a process, and a client that speaks plain HTTP with it."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from imagegpt.studio.limits import Limits
from running import free_port

FILE = {"_type": "gradio.FileData"}
PATIENCE = 60  # seconds: machines are busy


class Refused(Exception):  # noqa: N818 - no error of ours
    """What the studio said in the place of a result; `None` where Gradio keeps it to itself."""


class Client:
    """Asks a studio.

    Args:
        address: the studio's.
        session: how it is called, as a page of the studio has a name; default: by REST, each question by itself.
    """

    def __init__(self, address: str, session: str | None = None) -> None:
        self.session = session
        self.http = httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE)
        self._numbers: dict[str, int] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def login(self, user: str, password: str) -> int:
        return self.http.post("/login", data={"username": user, "password": password}).status_code

    def upload(self, content: bytes, name: str = "picture.png") -> dict[str, Any]:
        """Upload a file; what names it in a question."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": FILE}

    def number(self, name: str) -> int:
        """The number of a function, by which pages ask for it."""
        if self._numbers is None:
            functions = self.http.get("/config").raise_for_status().json()["dependencies"]
            self._numbers = {function["api_name"]: function["id"] for function in functions if function["api_name"]}
        return self._numbers[name]

    def start(self, name: str, data: Sequence[Any]) -> str:
        """Ask; the question's id."""
        if self.session is None:
            answer = self.http.post(f"/gradio_api/call/{name}", json={"data": data})
        else:
            asked = {"data": data, "fn_index": self.number(name), "session_hash": self.session}
            answer = self.http.post("/gradio_api/queue/join", json=asked)
        answer.raise_for_status()
        return answer.json()["event_id"]

    def listen(self, name: str, event: str) -> Iterator[tuple[str, Any]]:
        """What comes of a question: (kind, content), the last of kind "complete" or "error"."""
        if self.session is None:
            with self.http.stream("GET", f"/gradio_api/call/{name}/{event}") as answer:
                answer.raise_for_status()
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield kind, json.loads(line.removeprefix("data: "))
            return
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as answer:
            answer.raise_for_status()
            for line in filter(None, answer.iter_lines()):
                message = json.loads(line.removeprefix("data: "))
                if message.get("event_id") == event and message["msg"] == "process_completed":
                    output = message["output"]
                    yield ("complete", output.get("data")) if message["success"] else ("error", output)
                elif message["msg"] in ("unexpected_error", "server_stopped"):
                    yield "error", {"error": message.get("message")}

    def ask(self, name: str, *data: Any) -> list[Any]:
        """Ask and wait; what is given.

        Raises:
            Refused: with the studio's words.
        """
        for kind, content in self.listen(name, self.start(name, data)):
            if kind == "error":
                raise Refused(content["error"] if isinstance(content, dict) else content)
            if kind == "complete":
                return content
        raise AssertionError("the answer has no end")

    def cancel(self, name: str, event: str) -> None:
        """Take a question back."""
        told = {"session_hash": self.session or event, "fn_index": self.number(name), "event_id": event}
        self.http.post("/gradio_api/cancel", json=told).raise_for_status()


def new_session() -> str:
    return uuid4().hex[:11]


@contextmanager
def studio(
    models: Sequence[str], roots: Sequence[Path] = (), auth: list[tuple[str, str]] | None = None, **limits: Any
) -> Iterator[str]:
    """A studio in this process, on a free port of loopback: its address. The environment is as before after it."""
    from imagegpt.studio.serve import serving, studio_of

    before = dict(os.environ)
    try:
        opened = studio_of(models, roots, False, [], None, Limits(**limits), device="cpu")
        with serving(opened, port=free_port(), auth=auth) as address:
            yield address
    finally:
        os.environ.clear()
        os.environ.update(before)


class Running:
    """`imagegpt studio` in a process: its address once it is there, and its output line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        self._readers = [
            threading.Thread(target=lambda file=file: self.lines.extend(file), daemon=True)
            for file in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def output(self) -> str:
        return "".join(list(self.lines))

    @property
    def address(self) -> str:
        end = time.monotonic() + PATIENCE
        while not (found := re.search(r"The studio is at (http://\S+/) - Ctrl-C ends it\.", self.output)):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.02)
        return found[1]

    def end(self, how: int = signal.SIGINT) -> int:
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code


@contextmanager
def running(*arguments: str, before: tuple[str, ...] = (), **variables: str) -> Iterator[Running]:
    """Start it; it is gone at the end whatever happens."""
    command = [*before, sys.executable, "-m", "imagegpt", "studio", "--device", "cpu", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **variables}) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def bomb(side: int = 30_000) -> bytes:
    """A PNG file of so many pixels a side, all black, that is small and made in a moment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # a bit each; a byte when it is read
    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    pixels = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
