"""A Hugging Face Hub in a thread: as much of its interface as push and pull use, and ways for it to fail."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "secret" * 5


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers; subclasses of it, which hold the repositories, are made by `serving_hub`."""

    repos: dict[str, dict[str, dict[str, bytes]]] = {}  # id -> branch -> name -> content
    private: set[str] = set()
    messages: list[str] = []
    asked: list[tuple[str, str]] = []
    token: str | None = TOKEN  # who writes must have this
    fails: dict[str, tuple[int, str]] = {}  # part of an address -> what it answers: a code, and X-Error-Code
    short: set[str] = set()  # files of which half comes

    def log_message(self, format, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append((self.command, path))
        for part, (code, kind) in self.fails.items():
            if part in f"{self.command} {path}":
                return self._send(code, {"error": f"no, {self.headers.get('Authorization')}"}, {"X-Error-Code": kind})
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.command == "POST":
            return self._write(path.split("/")[2:], body)
        return self._read(path)

    def _write(self, parts: list[str], body: bytes) -> None:
        if parts[0] == "commit" or "commit" in parts:
            return self._commit("/".join(parts[1:3]), parts[4], body)
        told = json.loads(body)
        if parts == ["repos", "create"]:
            name = f"{told['organization']}/{told['name']}"
            if name in self.repos:
                return self._send(409, {"error": "You already created this model repo", "url": self._url(name)})
            self.repos[name] = {"main": {".gitattributes": b""}}
            if told.get("visibility") == "private" or told.get("private"):
                self.private.add(name)
            return self._send(200, {"url": self._url(name)})
        if parts == ["validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(parts[1:3])
        if parts[3] == "branch":
            there = parts[4] in self.repos[name]
            self.repos[name].setdefault(parts[4], dict(self.repos[name]["main"]))
            return self._send(409 if there else 200, {})
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in told["files"]]
        return self._send(200, {"files": files})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        files = self.repos[name][branch]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.sha(files)
        self._send(200, {"commitUrl": f"{self._url(name)}/commit/{sha}", "commitOid": sha})

    def _read(self, path: str) -> None:
        parts = path.split("/")[1:]
        at = 2 if parts[0] == "api" else 0
        name = "/".join(parts[at : at + 2])
        if name not in self.repos:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        wanted = parts[at + 3] if len(parts) > at + 3 else "main"
        found = [files for branch, files in self.repos[name].items() if wanted in (branch, self.sha(files))]
        if not found:
            return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files, rest = found[0], "/".join(parts[at + 4 :])
        if parts[0] != "api":
            return self._file(files, rest)
        if parts[4:5] == ["tree"]:
            return self._send(200, [self._entry(name, content) for name, content in files.items()])
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "sha": self.sha(files), "private": name in self.private, "siblings": siblings}
        return self._send(200, about)

    def _file(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = files[name]
        told = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self.sha(files)}
        if self.command == "GET" and name in self.short:
            content = content[: len(content) // 2]
        self._send(200, content, told)

    def _send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for header, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _url(self, name: str) -> str:
        return f"http://{self.headers['Host']}/{name}"

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}

    @staticmethod
    def sha(files: dict[str, bytes]) -> str:
        """The commit that some files are."""
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def _oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serving_hub(**settings) -> Iterator[tuple[str, type[FakeHub]]]:
    """A Hub in a thread of its own: its address, and its class, where what it holds is."""
    fresh = {"repos": {}, "private": set(), "messages": [], "asked": [], "fails": {}, "short": set()}
    handler = type("Handler", (FakeHub,), {**fresh, **settings})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()
