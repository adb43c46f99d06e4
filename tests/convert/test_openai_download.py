"""Downloads: against servers here that continue, can't continue, break off, lie or have nothing."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from imagegpt.convert import fetching
from imagegpt.convert.download import BASE, SHARDS, STEPS, download_release, release_files
from imagegpt.convert.fetching import PART, fetch, remote_size
from imagegpt.errors import InputError, Interrupted

CONTENT = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()


class Server(http.server.BaseHTTPRequestHandler):
    """What is served, and how badly; subclasses of it are made by `serving`."""

    files: dict[str, bytes] = {}
    ranges = True
    breaks: list[int] = []  # bytes after which the next answers break off
    failures: list[int] = []  # codes of the next answers
    claims: dict[str, str] = {}  # headers that are not true
    asked: list[tuple[str, str, str | None]] = []

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.command, self.path, wanted))
        if body and self.failures:
            self.send_error(self.failures.pop(0))
            return
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        self.send_response(206 if wanted and self.ranges else 200)
        told = {"Content-Length": str(len(content) - first)}
        if wanted and self.ranges:
            told["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        for name, value in {**told, **(self.claims if body else {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[first:][: self.breaks.pop(0) if self.breaks else None])


@contextmanager
def serving(**settings) -> Iterator[tuple[str, type[Server]]]:
    """A server in a thread of its own: its address, and its class, where `asked` is."""
    handler = type("Handler", (Server,), {"asked": [], **settings})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()


def get(base: str, path: Path, size: int = len(CONTENT)) -> list[int]:
    """Fetch /a; what `on_bytes` was called with."""
    seen: list[int] = []
    fetch(f"{base}/a", path, size, seen.append, pause=0)
    return seen


# --- the addresses


def test_the_published_addresses():
    """As openai/image-gpt's download.py makes them."""
    files = release_files("small")
    assert f"{BASE}/{files[0]}" == (
        "https://openaipublic.blob.core.windows.net/image-gpt/checkpoints/igpt-s/1000000/model.ckpt-1000000.index"
    )
    assert f"{BASE}/{files[1]}" == (
        "https://openaipublic.blob.core.windows.net/image-gpt/color-clusters/kmeans_centers.npy"
    )
    assert files[2] == "checkpoints/igpt-s/1000000/model.ckpt-1000000.data-00000-of-00032"
    assert files[-1] == "checkpoints/igpt-s/1000000/model.ckpt-1000000.data-00031-of-00032"
    assert release_files("large", 131000)[-1] == "checkpoints/igpt-l/131000/model.ckpt-131000.data-00063-of-00064"
    assert release_files("medium", 524000, bert=True)[0] == "checkpoints/igpt-m-bert/524000/model.ckpt-524000.index"


@pytest.mark.parametrize("size", SHARDS)
@pytest.mark.parametrize("step", STEPS)
def test_each_checkpoint_has_an_index_a_palette_and_its_shards(size, step):
    files = release_files(size, step)
    assert len(set(files)) == len(files) == 2 + SHARDS[size]


def test_checkpoints_that_there_are_not():
    with pytest.raises(InputError, match="released the sizes small, medium, large, not 'xl'"):
        release_files("xl")
    with pytest.raises(InputError, match="released the steps 131000, 262000, 524000, 1000000, not 7"):
        release_files("small", 7)


# --- one file


def test_a_file_is_fetched(tmp_path):
    with serving(files={"/a": CONTENT}) as (base, server):
        assert remote_size(f"{base}/a") == len(CONTENT)
        assert sum(get(base, tmp_path / "a")) == len(CONTENT)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert server.asked == [("HEAD", "/a", None), ("GET", "/a", None)]


def test_an_empty_file(tmp_path):
    with serving(files={"/a": b""}) as (base, _):
        get(base, tmp_path / "a", 0)
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.parametrize("first", [1, 30_000, len(CONTENT) - 1])
def test_what_was_broken_off_is_continued(tmp_path, first):
    (tmp_path / f"a{PART}").write_bytes(CONTENT[:first])
    with serving(files={"/a": CONTENT}) as (base, server):
        seen = get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [("GET", "/a", f"bytes={first}-")]
    assert seen == [first, len(CONTENT) - first]


def test_what_has_all_come_is_put_in_place_without_asking(tmp_path):
    (tmp_path / f"a{PART}").write_bytes(CONTENT)
    with serving() as (base, server):
        get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_that_can_not_continue_begins_anew(tmp_path):
    (tmp_path / f"a{PART}").write_bytes(b"x" * 1000)
    with serving(files={"/a": CONTENT}, ranges=False) as (base, _):
        seen = get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert seen[:2] == [1000, -1000]
    assert sum(seen) == len(CONTENT)


def test_a_connection_that_breaks_off_again_and_again(tmp_path):
    with serving(files={"/a": CONTENT}, breaks=[4000] * 12) as (base, server):
        seen = get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.asked[1:4]] == ["bytes=4000-", "bytes=8000-", "bytes=12000-"]
    assert sum(seen) == len(CONTENT)


def test_a_connection_that_brings_nothing_any_more(tmp_path):
    why = r"/a can't be fetched: .* after 4,000 of 50,000 bytes; the same command continues"
    with (
        serving(files={"/a": CONTENT}, breaks=[4000, *[0] * 9]) as (base, server),
        pytest.raises(InputError, match=why),
    ):
        get(base, tmp_path / "a")
    assert len(server.asked) == 1 + fetching.ATTEMPTS
    assert (tmp_path / f"a{PART}").read_bytes() == CONTENT[:4000]
    assert not (tmp_path / "a").exists()
    with serving(files={"/a": CONTENT}) as (base, _):
        get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_parts_that_always_breaks_off_is_given_up(tmp_path):
    settings = {"files": {"/a": CONTENT}, "ranges": False, "breaks": [4000] * 99}
    with serving(**settings) as (base, server), pytest.raises(InputError, match="broke off"):
        get(base, tmp_path / "a")
    assert len(server.asked) == 1 + fetching.ATTEMPTS


def test_a_server_that_is_busy_for_a_while(tmp_path):
    with serving(files={"/a": CONTENT}, failures=[503, 429, 500]) as (base, server):
        get(base, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 4


@pytest.mark.parametrize("code", [400, 403, 404, 410, 416])
def test_what_is_not_there_is_said_at_once(tmp_path, code):
    why = rf"/a can't be fetched: the server says {code} "
    with serving(files={"/a": CONTENT}, failures=[code] * 9) as (base, server), pytest.raises(InputError, match=why):
        get(base, tmp_path / "a")
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers(tmp_path):
    with serving() as (base, _):
        pass
    with pytest.raises(InputError, match=r"can't be fetched: .*refused.*; the same command continues"):
        get(base, tmp_path / "a")
    with pytest.raises(InputError, match="refused"):
        remote_size(f"{base}/a", pause=0)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "file:///etc/hosts", "a", ""])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(InputError, match=r"is no address of a server: it should begin with https"):
        fetch(url, tmp_path / "a", 3, pause=0)


@pytest.mark.parametrize("url", ["http://[x/a", "http://a b/c", "http://x:y/a"])
def test_addresses_that_make_no_sense(tmp_path, url):
    with pytest.raises(InputError, match="is no address"):
        fetch(url, tmp_path / "a", 3, pause=0)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"Content-Length": ""}, "does not say how many bytes"),
        ({"Content-Length": "-5"}, "does not say how many bytes"),
        ({"Content-Length": "49999"}, "another file than it told of: 49,999 bytes, not 50,000"),
        ({"Content-Length": "999999999999"}, "another file than it told of"),
    ],
)
def test_servers_that_tell_another_size(tmp_path, claims, why):
    with serving(files={"/a": CONTENT}, claims=claims) as (base, _), pytest.raises(InputError, match=why):
        get(base, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"Content-Range": ""}, "does not say which part"),
        ({"Content-Range": "bytes 1-2/*"}, "does not say which part"),
        (
            {"Content-Range": "bytes 999-49999/50000"},
            r"another file than it told of: .*, from 999 on",
        ),
        ({"Content-Range": "bytes 1000-59999/60000"}, "another file than it told of: 60,000 bytes"),
    ],
)
def test_servers_that_send_another_part(tmp_path, claims, why):
    (tmp_path / f"a{PART}").write_bytes(CONTENT[:1000])
    with serving(files={"/a": CONTENT}, claims=claims) as (base, _), pytest.raises(InputError, match=why):
        get(base, tmp_path / "a")
    assert (tmp_path / f"a{PART}").read_bytes() == CONTENT[:1000]


def test_files_of_another_size_that_are_there_stay(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(InputError, match=r"a is there and has 4 bytes, not the 50,000"):
        get("http://127.0.0.1:9", tmp_path / "a")
    (tmp_path / f"b{PART}").write_bytes(CONTENT + b"x")
    with pytest.raises(InputError, match=r"b\.part has 50,001 bytes, more than"):
        fetch("http://127.0.0.1:9/b", tmp_path / "b", len(CONTENT), pause=0)
    assert (tmp_path / "a").read_text() == "mine"


# --- a whole checkpoint


def files_of(size: str = "small", **settings) -> dict[str, bytes]:
    made = release_files(size, **settings)
    return {f"/x/{name}": CONTENT[: 100 + number] for number, name in enumerate(made)}


def test_a_checkpoint_is_fetched_once(tmp_path):
    files, seen = files_of(), []
    with serving(files=files) as (base, server):
        record = download_release(
            "small", tmp_path / "deep" / "s", base=f"{base}/x/", progress=lambda *told: seen.append(told), pause=0
        )
        asked = len(server.asked)
        again = download_release("small", tmp_path / "deep" / "s", base=f"{base}/x", pause=0)
    assert record == again
    assert record == {"folder": str(tmp_path / "deep" / "s"), "files": 34, "bytes": sum(map(len, files.values()))}
    assert [verb for verb, _, _ in server.asked[asked:]] == ["HEAD"] * 34
    for name, content in files.items():
        assert (tmp_path / "deep" / "s" / name.rpartition("/")[2]).read_bytes() == content
    assert seen[-1][0] == seen[-1][1]


def test_one_file_that_is_not_there_is_said_before_anything_is_fetched(tmp_path):
    files = files_of("medium", step=131000, bert=True)
    name = list(files)[20]
    del files[name]
    why = rf"{name} can't be fetched: the server says 404"
    with serving(files=files) as (base, server), pytest.raises(InputError, match=why):
        download_release("medium", tmp_path, step=131000, bert=True, base=f"{base}/x", pause=0)
    assert {verb for verb, _, _ in server.asked} == {"HEAD"}
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("imagegpt.convert.space.shutil.disk_usage", lambda path: usage)
    with serving(files=files_of()) as (base, _), pytest.raises(InputError, match="the disk has 1,000 free"):
        download_release("small", tmp_path, base=f"{base}/x", pause=0)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_what_has_come(tmp_path):
    files = files_of()
    name = list(files)[3]
    files[name] = CONTENT

    def stop(done: int, total: int) -> None:
        if len(list(tmp_path.iterdir())) == 4:
            raise KeyboardInterrupt

    with serving(files=files, breaks=[200, 200, 200, 10_000]) as (base, _):
        with pytest.raises(Interrupted, match=r"Interrupted; what has come is kept in .*: the same command continues"):
            download_release("small", tmp_path, base=f"{base}/x", progress=stop, pause=0)
        kept = tmp_path / (name.rpartition("/")[2] + PART)
        assert kept.read_bytes() == CONTENT[: kept.stat().st_size] != b""
        download_release("small", tmp_path, base=f"{base}/x", pause=0)
    assert (tmp_path / name.rpartition("/")[2]).read_bytes() == CONTENT
    assert not list(tmp_path.glob(f"*{PART}"))
