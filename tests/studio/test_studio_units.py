"""The studio's small parts, one by one: limits, what controls hold, masks, names in HTML, files, the guard."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed")

from imagegpt import ImageGPT
from imagegpt.errors import InputError
from imagegpt.probe.sweep import Curve
from imagegpt.studio import guard, views
from imagegpt.studio.asked import Kept, Wanted, whole
from imagegpt.studio.catalogue import Catalogue
from imagegpt.studio.drawing import KEPT_SECONDS, Drawn, completions, new_folder, samples, write_files
from imagegpt.studio.features_tab import Gathered, curve_html, near_html, plane_html
from imagegpt.studio.guard import HEADERS, MOST_BYTES, Guard
from imagegpt.studio.limits import Limits
from imagegpt.studio.page import Studio, client_of, paths_of, read_photo
from imagegpt.studio.widgets import problem, table

EVIL = "<script>alert('x')</script>\"&.png"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;.png"

# --- limits


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_limits_are_at_least_one(name):
    assert getattr(Limits(**{name: 1}), name) == 1
    for value in (0, -1):
        with pytest.raises(InputError, match=rf"^{name} must be at least 1, not {value}\.$"):
            Limits(**{name: value})


def test_samples_of_one_request():
    limits = Limits(samples=3)
    for count in (1, 3):
        limits.check_samples(count)
    for count in (0, -1, 4, 10**30):
        with pytest.raises(InputError, match=rf"^The number of pictures must be 1 to 3, not {count}\.$"):
            limits.check_samples(count)


# --- what controls hold

GOOD = {"count": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7}
NAMES = {"count": "num"}
NO_NUMBERS = [None, "", "4", "x" * 10**6, [4], {}, True, False, math.nan, math.inf, -math.inf, 10**400, -(10**400)]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_what_is_no_number(name, value):
    with pytest.raises(InputError, match=rf"^{NAMES.get(name, name)} must be a number, not ") as told:
        Wanted.read(**{**GOOD, name: value})
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("name", ["count", "top_k", "seed"])
def test_what_is_not_whole(name):
    with pytest.raises(InputError, match=rf"^{NAMES.get(name, name)} must be a whole number, not 1\.5\.$"):
        Wanted.read(**{**GOOD, name: 1.5})
    assert getattr(Wanted.read(**{**GOOD, name: 2.0}), name) == 2


@pytest.mark.parametrize("seed", [-2, 2**32, 2**32 + 1, -(10**20)])
def test_seeds(seed):
    with pytest.raises(InputError, match=f"^seed must be 0 to {2**32 - 1}, or -1 for a new one, not {seed}"):
        Wanted.read(**{**GOOD, "seed": seed})
    assert Wanted.read(**{**GOOD, "seed": 2**32 - 1}).options()["seed"] == 2**32 - 1


def test_what_the_pipeline_is_told():
    assert Wanted.read(**GOOD).options() == {"temperature": 1.0, "top_k": None, "top_p": None, "seed": 7}
    asked = Wanted.read(1, 0, 5, 0.5, -1)
    assert asked.options() == {"temperature": 0.0, "top_k": 5, "top_p": 0.5, "seed": None}
    assert Kept.read(0.25, None, 1) == Kept(0.25, None, 1)
    assert Kept.read(0, "", 2.0) == Kept(0.0, None, 2)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_what_is_kept_is_told_in_numbers(value):
    with pytest.raises(InputError, match=r"^keep must be a number, not "):
        Kept.read(value, None, 1)
    with pytest.raises(InputError, match=r"^particles must be a number, not "):
        Kept.read(0.5, None, value)
    with pytest.raises(InputError, match=r"^particles must be a whole number, not "):
        Kept.read(0.5, None, 0.5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Gradio's folder of uploads, for as long as the module runs."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def small(tiny_folder) -> Studio:
    limits = Limits(samples=3, rows=6)
    return Studio(Catalogue([str(tiny_folder)], limits=limits, device="cpu"), limits)


@pytest.fixture(scope="module")
def photo(place) -> dict[str, str]:
    path = place / "abc" / "good.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return {"path": str(path)}


@given(st.tuples(JSON, JSON, JSON, JSON, JSON), st.tuples(JSON, JSON, JSON), JSON, JSON)
def test_whatever_a_client_says_is_done_or_refused_in_words(small, photo, asked, told, name, upload):
    """Nothing is drawn: what starts is left at once."""
    for start in (
        lambda: samples(small, name, Wanted.read(*asked)),
        lambda: samples(small, small.catalogue.first, Wanted.read(1, *asked[1:])),
        lambda: completions(small, small.catalogue.first, photo, Kept.read(*told), Wanted()),
        lambda: completions(small, small.catalogue.first, photo, Kept.read(0.5, *told[1:]), Wanted(1)),
        lambda: completions(small, small.catalogue.first, photo, Kept(0.5, told[1], 1), Wanted(1)),
        lambda: completions(small, small.catalogue.first, upload, Kept(), Wanted(1)),
        lambda: completions(small, small.catalogue.first, {"path": upload}, Kept(), Wanted(1)),
    ):
        try:
            start()
        except InputError as error:
            assert 0 < len(str(error)) < 1000


@given(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    st.integers() | st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.integers() | st.integers(-(2**70), 2**70),
)
def test_whatever_the_numbers_are_they_are_used_or_refused_in_words(
    small, photo, temperature, top_k, top_p, seed, many
):
    for start in (
        lambda: next(samples(small, small.catalogue.first, Wanted.read(1, temperature, top_k, top_p, seed))),
        lambda: next(samples(small, small.catalogue.first, Wanted.read(1, abs(temperature), abs(top_k), 0.5, 0))),
        lambda: completions(small, small.catalogue.first, photo, Kept.read(0.5, "1" * 32 + "0" * 32, many), Wanted(1)),
        lambda: completions(small, small.catalogue.first, photo, Kept.read(top_p, None, many), Wanted(1)),
    ):
        try:
            start()
        except InputError as error:
            assert 0 < len(str(error)) < 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"count": 4}, "The number of pictures must be 1 to 3, not 4"),
        ({"count": 0}, "The number of pictures must be 1 to 3, not 0"),
    ],
)
def test_numbers_out_of_range(small, photo, options, words):
    wanted = Wanted(**{"count": 1, **options})
    for start in (
        lambda: samples(small, small.catalogue.first, wanted),
        lambda: completions(small, small.catalogue.first, photo, Kept(), wanted),
    ):
        with pytest.raises(InputError, match=words):
            start()


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (Kept(1.0), "keep"),
        (Kept(-0.1), "keep"),
        (Kept(0.5, "1" * 64, 0), "particles"),
        (Kept(0.5, "1" * 64, -5), "particles"),
        (
            Kept(0.5, "0" * 32 + "1" * 8 + "0" * 24, 4),
            r"^2 pictures of 4 histories each are more than 6 rows: choose fe",
        ),
        (Kept(0.5, "1" * 63), r"^A mask has a 0 or 1 for each of 8 x 8 squares\.$"),
    ],
)
def test_parts_out_of_range(small, photo, kept, words):
    with pytest.raises(InputError, match=words):
        completions(small, small.catalogue.first, photo, kept, Wanted(2))


def test_a_drawing_is_that_of_the_pipeline(small, photo, tiny_folder):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    painted = "0" * 20 + "1" * 9 + "0" * 35
    mask = np.array([*map(int, painted)], bool).reshape(8, 8)
    *_, drawn = completions(small, small.catalogue.first, photo, Kept(0.5, painted, 2), Wanted(2, seed=3))
    expected = model.complete(photo["path"], mask=mask, particles=2, num_samples=2, seed=3)
    np.testing.assert_array_equal(drawn.ids, expected.ids)
    *_, drawn = samples(small, small.catalogue.first, Wanted(2, 0.9, 5, 0.8, 3))
    np.testing.assert_array_equal(drawn.ids, model.sample(2, temperature=0.9, top_k=5, top_p=0.8, seed=3).ids)


# --- masks


def test_masks():
    mask = np.asarray(views.mask_of("010001", (2, 3), 1), bool)
    assert mask.tolist() == [[False, True, False], [False, False, True]]
    twice = np.asarray(views.mask_of("010001", (2, 3), 2), bool)
    np.testing.assert_array_equal(twice, mask.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "painted", [None, "", "01000", "0100010", "01000x", "01000\u0661", 10001, ["0"] * 6, b"010001"]
)
def test_what_is_no_mask(painted):
    with pytest.raises(InputError, match=r"^A mask has a 0 or 1 for each of 2 x 3 squares\.$"):
        views.mask_of(painted, (2, 3), 1)


# --- names in HTML


def gathered(count: int = 4) -> Gathered:
    images = [Image.new("RGB", (8, 8), (40 * number, 0, 0)) for number in range(count)]
    features = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    return Gathered([EVIL] * count, images, features, count, [])


def test_names_stay_words():
    row = SimpleNamespace(name=EVIL, baseline=False, metrics=SimpleNamespace(top1=0.5))
    curve: Any = Curve((row,))  # type: ignore[arg-type]
    shown = [
        near_html(gathered(), [(0, 0.5), (1, 0.25)]),
        plane_html(gathered(), "principal components"),
        plane_html(gathered(8), "t-SNE"),
        curve_html(curve),
        table({EVIL: EVIL}),
        problem(EVIL),
    ]
    for html in shown:
        assert "<script" not in html and "'x'" not in html
        assert ESCAPED in html


def test_a_map_takes_three_pictures():
    with pytest.raises(InputError, match="at least 3"):
        plane_html(gathered(2), "principal components")


def test_no_problem_takes_no_room():
    assert problem() == problem("") == ""


# --- uploads


@pytest.mark.parametrize("upload", [None, "", [], {}, {"url": "x"}, {"path": None}, {"path": 7}, [None, "x"]])
def test_no_picture(place, upload):
    with pytest.raises(InputError, match=r"^Choose a picture first: "):
        read_photo(upload)


def test_a_picture_is_called_by_its_name_and_not_by_its_folder(place, photo):
    assert read_photo(photo).size == (30, 20)
    bad = Path(photo["path"]).with_name("bad.png")
    bad.write_text("hello")
    empty = bad.with_name("empty.png")
    empty.touch()
    for path in (bad, empty, bad.with_name("gone.png")):
        with pytest.raises(InputError, match=rf"^{path.name}\b") as told:
            read_photo({"path": str(path)})
        assert str(place) not in str(told.value) and "abc" not in str(told.value)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", ["beside", "up", "link", "relative", "/etc/passwd", "nul", "long", "surrogate", "~"])
def test_what_was_not_uploaded_is_not_read(place, photo, kind, there, tmp_path, monkeypatch):
    """The same words whether there is anything or not."""
    outside = tmp_path / "outside.png"
    link = place / f"{tmp_path.name}.png"
    link.symlink_to(outside)
    if there:
        outside.write_bytes(Path(photo["path"]).read_bytes())
    monkeypatch.chdir(tmp_path)
    path = {
        "beside": str(outside),
        "up": f"{place}/abc/../../{os.path.relpath(outside, place.parent)}",
        "link": str(link),
        "relative": "outside.png",
        "nul": f"{place}/a\0b",
        "long": "x" * 10**5,
        "surrogate": "\ud800",
    }.get(kind, kind)
    for asked in ({"path": path}, [{"path": photo["path"]}, {"path": path}]):
        with pytest.raises(InputError, match=r"^That is no file that was uploaded: upload it first\.$"):
            paths_of(asked)
        with pytest.raises(InputError, match=r"^That is no file that was uploaded: upload it first\.$"):
            read_photo(asked)


def test_who_asks():
    def request(path: str, **more: Any) -> Any:
        told = {"username": None, "session_hash": None, "client": SimpleNamespace(host="10.0.0.7"), **more}
        return SimpleNamespace(url=SimpleNamespace(path=path), **told)

    page = "/gradio_api/queue/join"
    assert client_of(request(page, username="ada", session_hash="s")) == "ada"
    assert client_of(request(page, session_hash="s")) == "s"
    assert client_of(request(page)) == "nobody"
    call = "/gradio_api/call/sample"  # a session of its own for each call, so sessions would be no clients
    assert client_of(request(call, session_hash="s")) == "10.0.0.7"
    assert client_of(request(call, username="ada", session_hash="s")) == "ada"
    assert client_of(request("/proxied/gradio_api/call/sample", session_hash="s")) == "10.0.0.7"


# --- files that are handed out


@pytest.mark.parametrize("stopped", [False, True])
def test_files_of_a_drawing(place, tiny_folder, stopped):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    ids = model.sample(3, seed=0).ids
    if stopped:
        ids[:, 20:] = -1
    known = np.zeros(ids.shape, bool)
    paths = [Path(path) for path in write_files(new_folder(), model, Drawn("tiny", ids, known, 0))]
    assert [path.name for path in paths] == ["sheet.png", *(f"sample-{at}.png" for at in (1, 2, 3)), "drawing.gif"]
    assert {path.parent for path in paths} == {paths[0].parent}
    for path, image in zip(paths[1:4], model.decode(ids), strict=True):
        found = Image.open(path)
        scale = found.width // 8
        np.testing.assert_array_equal(np.asarray(found)[::scale, ::scale], np.asarray(image))
    with Image.open(paths[-1]) as gif:
        assert gif.n_frames == (1 + 3 if stopped else 1 + 8)  # a row each, and the part of one
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("RGB")).astype(int)
    sheet = np.asarray(Image.open(paths[0]).convert("RGB")).astype(int)
    assert last.shape == sheet.shape
    assert (np.abs(last - sheet).max(2) == 0).mean() > 0.9


def test_files_go_after_a_while(place):
    old, young = new_folder(), new_folder()
    (old / "x.png").write_bytes(b"x")
    past = time.time() - KEPT_SECONDS
    os.utime(old, (past - 1, past - 1))
    os.utime(young, (past + 60, past + 60))
    stray = old.parent / "stray"
    stray.write_text("x")
    os.utime(stray, (past - 1, past - 1))
    newest = new_folder()
    assert not old.exists() and young.is_dir() and newest.is_dir()
    assert newest.parent == place / "made"


# --- the guard


class Asked:
    """An app that tells what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body")
        self.bodies.append(body)
        self.then = await receive()
        html = b'<p>hello</p><script>window.gradio_api_info = {"a": "nano;"};</script><p>bye</p>'
        headers = [(b"content-type", b"text/html"), (b"content-length", str(len(html)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": html[:20], "more_body": True})
        await send({"type": "http.response.body", "body": html[20:]})


def through(
    body: bytes = b"",
    method: str = "POST",
    path: str = "/gradio_api/queue/join",
    headers: tuple = ((b"content-type", b"application/json"),),
    size: int = 1 << 20,
    app: Any = None,
) -> tuple[int, dict[str, str], bytes, Asked]:
    """Send a request through the guard: status, headers, body, and the app behind it."""
    behind, sent = Asked(), []
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "app": app}
    asyncio.run(Guard(behind)(scope, receive, send))
    assert [message["type"] for message in sent[:2]] == ["http.response.start", "http.response.body"]
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    if "content-length" in found:
        assert int(found["content-length"]) == len(content)
    return sent[0]["status"], found, content, behind


def is_guarded(headers: dict[str, str]) -> bool:
    return all(headers.get(name.decode()) == value.decode() for name, value in HEADERS)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_question_comes_through_as_it_was(size):
    body = json.dumps({"data": [{"path": "/tmp/http://x", "url": "http://x"}, "http://x", None]}).encode()
    status, headers, _, behind = through(body, size=size)
    assert (status, behind.bodies) == (200, [body])
    assert behind.then == {"type": "http.disconnect"}  # what came after the body comes after it still
    assert is_guarded(headers)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x.png", "https://example.com/x.png"])
@pytest.mark.parametrize("where", ["file", "list", "deep", "beside", "twice"])
def test_addresses_are_refused_wherever_they_are(address, where):
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    data: Any = {
        "file": file,
        "list": [1, [file]],
        "deep": {"a": [{"b": {"c": [file]}}]},
        "beside": {"path": {"path": address}},
        "twice": [{"path": "/tmp/x"}, file],
    }[where]
    status, headers, content, behind = through(json.dumps({"data": [data]}).encode())
    assert (status, json.loads(content)) == (400, {"detail": "Upload the file: addresses are not fetched."})
    assert behind.bodies == [] and is_guarded(headers)


def test_the_first_kind_of_content_counts():
    """A second header would be a way around: Gradio reads the first."""
    body = json.dumps({"data": [{"path": "http://x"}]}).encode()
    kinds = [(b"content-type", b"application/json"), (b"content-type", b"multipart/form-data; boundary=x")]
    assert through(body, headers=tuple(kinds))[0] == 400
    assert through(body, headers=())[0] == 400
    assert through(body, headers=((b"content-type", b"multipart/form-data; boundary=x"),))[0] == 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_other_encodings_of_json(encoding):
    assert through(json.dumps({"data": [{"path": "http://x"}]}).encode(encoding))[0] == 400


@pytest.mark.parametrize("body", [b"", b"no json", b"[" * 10**5, b"\xff\xfe\x00", b"username=a&password=b", b"[1e999]"])
def test_what_is_no_json_is_left_to_the_app(body):
    status, headers, _, behind = through(body)
    assert (status, behind.bodies) == (200, [body]) and is_guarded(headers)


def test_what_is_too_large_is_refused():
    status, headers, content, behind = through(b" " * (MOST_BYTES + 1), size=1 << 16)
    assert (status, json.loads(content)) == (413, {"detail": "A request has at most 8 MiB."})
    assert behind.bodies == [] and is_guarded(headers)
    assert through(b" " * MOST_BYTES, size=1 << 16)[0] == 200
    upload = ((b"content-type", b"multipart/form-data; boundary=x"),)
    assert through(b" " * (MOST_BYTES + 1), headers=upload)[0] == 200  # Gradio has a limit of its own for files


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "path", ["/gradio_api/file=http://x/y", "/gradio_api/proxy=https://x", "/gradio_api/file/http://x"]
)
def test_addresses_in_paths_are_refused(method, path):
    status, headers, _, behind = through(method=method, path=path)
    assert (status, behind.bodies) == (400, []) and is_guarded(headers)


def test_other_kinds_of_connection_are_left_alone():
    seen = []

    async def app(*parts):
        seen.append(parts)

    asyncio.run(Guard(app)({"type": "lifespan"}, 1, 2))  # type: ignore[arg-type]
    assert seen == [({"type": "lifespan"}, 1, 2)]


def gradio_app(**tokens: str) -> Any:
    return SimpleNamespace(auth={"ada": "secret"}, cookie_id="id", tokens=tokens)


@pytest.mark.parametrize("cookie", [b"", b"access-token-id=x", b"access-token-other=good", b"good", b"\xff;;=", None])
@pytest.mark.parametrize(
    "path", ["/config", "/gradio_api/info", "/gradio_api/file=/x", "/nothing", "/assets", "/loginx", "//"]
)
def test_strangers_get_nothing(cookie, path):
    headers = () if cookie is None else ((b"cookie", cookie),)
    status, headers, content, behind = through(method="GET", path=path, headers=headers, app=gradio_app(good="ada"))
    assert (status, behind.bodies) == (401, []) and is_guarded(headers)
    assert json.loads(content) == {"detail": {"error": "Not authenticated", "auth_message": None}}


@pytest.mark.parametrize("name", [b"access-token-id", b"access-token-unsecure-id"])
def test_who_has_logged_in_gets_everything(name):
    headers = ((b"cookie", b"a=b; " + name + b"=good"),)
    status, _, content, _ = through(method="GET", path="/", headers=headers, app=gradio_app(good="ada"))
    assert status == 200 and b"nano" in content
    assert through(method="GET", path="/config", headers=headers, app=gradio_app(good="ada"))[0] == 200


@pytest.mark.parametrize("path", ["/", "/login", "/login/", "/assets/x.js", "/static/img/x.svg", "/theme.css"])
def test_strangers_get_the_way_in(path):
    status, headers, content, _ = through(method="GET", path=path, headers=(), app=gradio_app())
    assert status == 200 and is_guarded(headers)
    told = b"" if path == "/" else b'window.gradio_api_info = {"a": "nano;"};'  # of the functions behind it
    assert content == b"<p>hello</p><script>" + told + b"</script><p>bye</p>"


def test_without_names_nobody_is_a_stranger():
    app = SimpleNamespace(auth=None, cookie_id="id", tokens={})
    status, _, content, _ = through(method="GET", path="/", headers=(), app=app)
    assert status == 200 and b"nano" in content


def test_the_rules_for_the_browser_name_nobody_else():
    assert "http" not in guard.POLICY and "*" not in guard.POLICY
    assert "default-src 'self'" in guard.POLICY


def test_a_picture_as_an_address():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    kind, _, content = views.data_uri(image).partition(";base64,")
    assert kind == "data:image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), np.asarray(image))


@pytest.mark.parametrize("layer", [None, "4", 1.5, float("nan"), [], True, 10**400])
def test_layers_that_are_no_numbers(layer):
    with pytest.raises(InputError, match="layer must be a"):
        whole("layer", layer)


def test_a_map_of_a_kind_that_there_is_not():
    gathered = Gathered(["a"] * 3, [Image.new("RGB", (2, 2))] * 3, np.eye(3, dtype=np.float32), 3, [])
    with pytest.raises(InputError, match="map must be one of principal components, t-SNE"):
        plane_html(gathered, "<b>")  # pyright: ignore[reportArgumentType]
