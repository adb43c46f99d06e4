"""What programs ask of the studio over HTTP: results, refusals, going away, files that are not theirs, logging in."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from asking import FILE, Client, Refused, bomb, new_session, studio
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed")

from imagegpt import ImageGPT
from imagegpt.engine.machine import peak_memory
from imagegpt.painting import Decoding
from imagegpt.studio.turns import Turns

PLAIN = (1, 1.0, 0, 1.0, 0)  # num, temperature, top_k, top_p, seed
PATIENCE = 60


class Pace:
    """How fast ids are drawn by all who draw in this process, how many were so far, and the lines they wait in."""

    delay = 0.0
    drawn = 0
    lines: list[Turns] = []


@pytest.fixture(scope="module", autouse=True)
def measured() -> Iterator[None]:
    iterate = Decoding.__iter__

    def counted(self):
        for position in iterate(self):
            Pace.drawn += 1
            time.sleep(Pace.delay)
            yield position

    make = Turns.__init__

    def made(self, limits):
        make(self, limits)
        Pace.lines.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "__iter__", counted)
        patch.setattr(Turns, "__init__", made)
        yield


@pytest.fixture
def slow() -> Iterator[None]:
    """A picture of the tiny model takes some seconds."""
    Pace.delay = 0.05
    yield
    Pace.delay = 0.0


@pytest.fixture(scope="module")
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


@pytest.fixture(scope="module")
def address(tiny) -> Iterator[str]:
    limits = {"running": 2, "waiting": 5, "share": 3, "samples": 4, "rows": 8, "upload": 1 << 20}
    with studio([tiny, "nano"], **limits) as found:
        yield found


@pytest.fixture(params=["rest", "page"])
def client(address, request) -> Iterator[Client]:
    with Client(address, new_session() if request.param == "page" else None) as found:
        yield found


@pytest.fixture
def rest(address) -> Iterator[Client]:
    with Client(address) as found:
        yield found


@pytest.fixture(scope="module")
def model(tiny) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny, device="cpu")


def noise(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def until(true) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting() -> int:
    """How many requests wait."""
    return sum(turns.waiting for turns in Pace.lines)


def stands_still() -> bool:
    """Whether nothing is drawn any more."""
    before = Pace.drawn
    time.sleep(5 * Pace.delay + 0.1)
    return Pace.drawn == before


# --- the same as the pipeline's


def test_complete(client, tiny, model):
    photo = client.upload(noise())
    files, facts = client.ask("complete", photo, 0.25, "", 1, 3, 0.9, 7, 0.95, 5, tiny)
    options = {"temperature": 0.9, "top_k": 7, "top_p": 0.95, "seed": 5}
    expected = model.complete(noise(), keep=0.25, num_samples=3, **options)
    assert facts == {"model": tiny, "seed": 5, "given": 16, "ids": expected.ids.tolist()}
    assert [file["orig_name"] for file in files] == ["1.png", "2.png", "3.png"]
    for file, image in zip(files, expected.images[0], strict=True):
        found = Image.open(io.BytesIO(client.http.get(file["url"]).raise_for_status().content))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_complete_what_is_painted(client, tiny, model):
    painted = "0" * 27 + "1" * 5 + "0" * 32
    _, facts = client.ask("complete", client.upload(noise()), 0.5, painted, 2, 3, 1, 0, 1, 5, tiny)
    mask = np.array([*map(int, painted)], bool).reshape(8, 8)
    expected = model.complete(noise(), mask=mask, particles=2, num_samples=3, seed=5)
    assert facts["ids"] == expected.ids.tolist()


def test_sample(client, tiny, model):
    files, facts = client.ask("sample", 2, 1.0, 0, 1.0, 9, tiny)
    assert (facts["ids"], facts["given"]) == (model.sample(2, seed=9).ids.tolist(), 0)
    assert len(files) == 2


def test_a_seed_that_was_made_up_is_told(rest, tiny, model):
    _, facts = rest.ask("sample", 1, 1.0, 0, 1.0, -1, tiny)
    assert facts["ids"] == model.sample(1, seed=facts["seed"]).ids.tolist()


def test_surprise(client, tiny, model):
    (found,) = client.ask("surprise", client.upload(noise()), tiny)
    scores = model.score(noise())
    np.testing.assert_allclose(found.pop("surprise"), scores.surprise[0], rtol=1e-6)
    assert found == pytest.approx(
        {
            "log_likelihood": float(scores.log_likelihood[0]),
            "nats_per_token": float(scores.nats_per_token[0]),
            "bits_per_dim": float(scores.bits_per_dim[0]),
            "codec": "palette of 16",
        }
    )


def test_models(client, tiny):
    assert client.ask("models") == [[tiny, "nano"]]


def test_the_embedded_model(rest):
    expected = ImageGPT.from_pretrained("nano", device="cpu").complete(noise(), keep=0.9, num_samples=2, seed=1)
    _, facts = rest.ask("complete", rest.upload(noise()), 0.9, "", 1, 2, 1.0, 0, 1.0, 1, "nano")
    assert facts["ids"] == expected.ids.tolist()


def test_gradios_own_client(address, tiny, model, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    path = tmp_path / "a picture.png"
    path.write_bytes(noise())
    client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path))
    try:
        photo = gradio_client.handle_file(str(path))
        files, facts = client.predict(photo, 0.5, "", 1, 2, 1.0, 0, 1.0, 3, tiny, api_name="/complete")
        expected = model.complete(noise(), num_samples=2, seed=3)
        assert facts["ids"] == expected.ids.tolist()
        np.testing.assert_array_equal(np.asarray(Image.open(files[1])), np.asarray(expected.images[0][1]))
        _, facts = client.predict(num=1, seed=4, api_name="/sample")  # the rest as the pipeline would have it
        assert facts["ids"] == model.sample(1, seed=4).ids.tolist()
        scores = client.predict(photo, api_name="/surprise")
        assert scores["nats_per_token"] == pytest.approx(float(model.score(noise()).nats_per_token[0]))
        assert client.predict(api_name="/models") == [tiny, "nano"]
        with pytest.raises(Exception, match="The number of pictures must be 1 to 4, not 5"):
            client.predict(num=5, api_name="/sample")
    finally:
        client.close()


def test_functions_have_the_names_that_are_told(rest):
    info = rest.http.get("/gradio_api/info").json()
    assert sorted(info["named_endpoints"]) == ["/complete", "/models", "/sample", "/surprise"]
    names = [parameter["parameter_name"] for parameter in info["named_endpoints"]["/complete"]["parameters"]]
    assert names == ["image", "keep", "mask", "particles", "num", "temperature", "top_k", "top_p", "seed", "model"]


def test_two_at_once_get_their_own(address, tiny, model):
    expected = {seed: model.complete(noise(seed), keep=0.5, seed=seed).ids.tolist() for seed in range(4)}

    def ask(seed: int) -> list:
        with Client(address, new_session() if seed % 2 else None) as client:
            photo = client.upload(noise(seed))
            return [client.ask("complete", photo, 0.5, "", 1, 1, 1, 0, 1, seed, tiny)[1]["ids"] for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert found == [[expected[seed]] * 3 for seed in range(4)]


def test_on_the_way_it_is_told_how_far_it_is(rest, tiny, slow):
    told = list(rest.listen("sample", rest.start("sample", [*PLAIN, tiny])))
    parts = [content[1]["drawn"] for kind, content in told if kind == "generating" and "drawn" in content[1]]
    assert len(parts) >= 3 and parts == sorted(set(parts)) and 0 < parts[0] < parts[-1] <= 1
    kind, (files, facts) = told[-1]
    assert (kind, len(files), np.shape(facts["ids"])) == ("complete", 1, (1, 64))


# --- what can't be done is told in words


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"hello, I am a text\n", "notes.png", "notes.png is not a picture in a format that can be read."),
        (b"", "empty.png", "empty.png is not a picture in a format that can be read."),
        (noise()[:200], "half.png", "half.png"),
        (bomb(), "bomb.png", "bomb.png"),
    ],
    ids=["text", "empty", "half", "bomb"],
)
def test_files_that_are_no_pictures(client, tiny, content, name, words):
    photo = client.upload(content, name)
    for function, rest in [("complete", (0.5, "", 1, *PLAIN)), ("surprise", ())]:
        with pytest.raises(Refused) as told:
            client.ask(function, photo, *rest, tiny)
        assert str(told.value).startswith(words)
        assert str(Path(photo["path"]).parent) not in str(told.value)


def test_a_bomb_takes_no_memory(rest, tiny):
    before, packed = peak_memory(), bomb()
    assert len(packed) < 1 << 20  # so it comes through the door
    with pytest.raises(Refused, match=r"bomb\.png"):
        rest.ask("surprise", rest.upload(packed, "bomb.png"), tiny)
    assert peak_memory() < before + (200 << 20)  # of 900 MB


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num": 5}, "The number of pictures must be 1 to 4, not 5."),
        ({"num": 0}, "The number of pictures must be 1 to 4, not 0."),
        ({"num": "many"}, "num must be a number, not 'many'."),
        ({"num": 1.5}, "num must be a whole number, not 1.5."),
        ({"num": True}, "num must be a number, not True."),
        ({"num": None}, "num must be a number, not None."),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature must be a number"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 2}, "top_p"),
        ({"seed": 2**32}, f"seed must be 0 to {2**32 - 1}, or -1 for a new one"),
        ({"keep": 1}, "keep"),
        ({"keep": [0.5]}, "keep must be a number"),
        ({"mask": "01"}, "A mask has a 0 or 1 for each of 8 x 8 squares."),
        ({"mask": "2" * 64}, "A mask has a 0 or 1 for each of 8 x 8 squares."),
        ({"mask": ["1"] * 64}, "A mask has a 0 or 1 for each of 8 x 8 squares."),
        ({"mask": "1" * 64, "particles": 0}, "particles"),
        ({"mask": "1" * 64, "particles": 9}, "1 pictures of 9 histories each are more than 8 rows: choose fewer."),
        ({"model": "none"}, "There is no model 'none': choose one of "),
        ({"model": "/etc"}, "There is no model '/etc': choose one of "),
        ({"model": None}, "A model has a name, which None is not."),
        ({"image": None}, "Choose a picture first"),
    ],
    ids=str,
)
def test_numbers_and_words_that_can_not_be(rest, tiny, changes, words):
    good = {"keep": 0.5, "mask": "", "particles": 1, "num": 1, "temperature": 1, "top_k": 0, "top_p": 1, "seed": 0}
    asked = {"image": rest.upload(noise()), **good, "model": tiny, **changes}
    with pytest.raises(Refused) as told:
        rest.ask("complete", *asked.values())
    assert str(told.value).startswith(words)
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("data", [[], [1], ["x"] * 6, [None] * 6, [{}] * 6, [*PLAIN, "x", "y"]], ids=str)
def test_after_nonsense_the_studio_goes_on(rest, tiny, data):
    with pytest.raises(Refused):
        rest.ask("sample", *data)
    assert rest.ask("models")[0][0] == tiny


@pytest.mark.parametrize("path", ["call/none", "call/page", "run/sample", "api/sample", "queue/join", "call/v2/none"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"data": 7}', b'{"data": [1, 1, 0, 1, 0, "nano"]}'])
def test_there_is_no_other_way_in(rest, path, body):
    """Nor past the line: what Gradio calls "run" would not wait in it."""
    if path.startswith("call/page") and body.startswith(b'{"data": ['):
        pytest.skip("a function of the page, which refuses in its own way")
    drawn = Pace.drawn
    answer = rest.http.post(f"/gradio_api/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code >= 400
    assert Pace.drawn == drawn


def test_what_is_too_large(rest, tiny):
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        rest.upload(b"x" * ((1 << 20) + 1))
    answer = rest.http.post("/gradio_api/call/sample", json={"data": ["x" * (9 << 20)]})
    assert (answer.status_code, answer.json()) == (413, {"detail": "A request has at most 8 MiB."})


def test_every_answer_has_rules_for_the_browser(rest):
    for path in ["/", "/config", "/theme.css", "/gradio_api/file=/etc/passwd", "/nothing"]:
        headers = rest.http.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


# --- the line, and leaving it


def test_cancelling_stops_the_sampler(client, tiny, slow):
    event = client.start("sample", [4, *PLAIN[1:], tiny])
    drawn = Pace.drawn
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: list(client.listen("sample", event)))
        until(lambda: Pace.drawn > drawn + 3)
        client.cancel("sample", event)
        until(stands_still)
        assert Pace.drawn < drawn + 40  # of 64, and of a batch that is drawn together
        heard.result(PATIENCE)


def test_who_hangs_up_stops_the_sampler(client, tiny, slow):
    drawn = Pace.drawn
    event = client.start("sample", [4, *PLAIN[1:], tiny])
    listening = client.listen("sample", event)
    if client.session is None:
        assert next(listening)[0] == "generating"
        listening.close()  # type: ignore[attr-defined]
    else:
        with client.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": client.session}) as answer:
            next(line for line in answer.iter_lines() if "process_generating" in line)
    at = Pace.drawn
    assert at > drawn
    until(stands_still)
    assert Pace.drawn < drawn + 50 < drawn + 64


def test_the_line_is_full_in_words_and_clears(address, rest, tiny, slow):
    """Two run, three of a client wait; calls by REST are of one client, whatever Gradio takes them for."""
    with ThreadPoolExecutor(8) as pool:
        events = [rest.start("sample", [*PLAIN, tiny]) for _ in range(5)]
        heard = [pool.submit(lambda event=event: list(rest.listen("sample", event))) for event in events]
        until(lambda: waiting() == 3)
        Pace.delay = 0.5  # none comes to its end before the others have asked
        with pytest.raises(Refused, match=r"^The queue is full for you: 3 of your requests are waiting\. Try again"):
            rest.ask("sample", *PLAIN, tiny)
        with Client(address, new_session()) as other:
            mine = [other.start("sample", [*PLAIN, tiny]) for _ in range(2)]
            waits = [pool.submit(lambda event=event: list(other.listen("sample", event))) for event in mine[:1]]
            until(lambda: waiting() == 5)
            full = r"^The queue is full: 5 requests are waiting\. Try again in a moment\.$"
            with Client(address, new_session()) as third, pytest.raises(Refused, match=full):
                third.ask("surprise", third.upload(noise()), tiny)
            Pace.delay = 0.0
            assert all(each.result(PATIENCE)[-1][0] == "complete" for each in [*heard, *waits])
    assert rest.ask("sample", *PLAIN, tiny)


# --- files that are not the client's


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> Path:
    """A picture on this machine that nobody uploaded."""
    path = tmp_path_factory.mktemp("private") / "secret.png"
    path.write_bytes(noise(9))
    return path


def asked_paths(beside: Path, uploaded: str) -> list[str]:
    folder = Path(uploaded).parent
    link = folder / "link.png"
    if not link.is_symlink():
        link.symlink_to(beside)
    up = "/".join([".."] * (len(folder.parts) - 1))
    return [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        str(beside),
        f"file://{beside}",
        f"{folder}/{up}{beside}",
        f"{folder}/..{folder}/../../../..{beside}",
        str(link),
        "/",
        f"{beside}\0.png",
        "/proc/self/environ",
    ]


@pytest.mark.parametrize("meta", [{"meta": FILE}, {}, {"meta": {}}, {"meta": FILE, "is_stream": True}], ids=str)
@pytest.mark.parametrize("function", ["complete", "surprise"])
def test_paths_of_files_that_were_not_uploaded(rest, tiny, beside, function, meta):
    uploaded = rest.upload(noise())["path"]
    data = [*((0.5, "", 1, *PLAIN) if function == "complete" else ()), tiny]
    for path in asked_paths(beside, uploaded):
        with pytest.raises(Refused) as told:
            rest.ask(function, {"path": path, **meta}, *data)
        assert str(told.value) in ("None", "That is no file that was uploaded: upload it first."), path
    assert rest.ask(function, {"path": uploaded, "meta": FILE}, *data)


def test_files_are_not_given_out(rest, beside):
    uploaded = rest.upload(noise())["path"]
    assert rest.http.get(f"/gradio_api/file={uploaded}").content == noise()
    for path in [*asked_paths(beside, uploaded), str(Path(uploaded).parent)]:
        for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/svelte/"):
            for quoted in (path, path.replace("..", "%2e%2e"), path.replace("/", "%2f")):
                if "\0" in quoted:
                    quoted = quoted.replace("\0", "%00")
                answer = rest.http.get(prefix + quoted)
                assert answer.status_code >= 400, (prefix, quoted)
                assert noise(9) not in answer.content and b"root:" not in answer.content


class Listener:
    """Whom this process asks, while somebody listens."""

    asked: list[Any] | None = None


def _hear(event: str, arguments: tuple) -> None:
    if Listener.asked is not None and event in ("socket.connect", "socket.getaddrinfo"):
        Listener.asked.append(arguments[1] if event == "socket.connect" else arguments[:2])


@pytest.fixture
def heard(address) -> Iterator[list[Any]]:
    """Addresses that are asked by anything in this process, but for the studio's own."""
    if not getattr(Listener, "there", False):
        sys.addaudithook(_hear)
        Listener.there = True
    Listener.asked = found = []
    try:
        yield found
    finally:
        Listener.asked = None
    port = httpx.URL(address).port
    assert [each for each in found if port not in each] == []


def test_addresses_are_not_fetched(address, tiny, heard):
    urls = ["http://example.com/x.png", "https://8.8.8.8/x.png", "http://127.0.0.1:9/x.png", "HTTP://example.com/x"]
    rest = Client(address)
    for url in urls:
        for payload in (
            {"path": url, "meta": FILE},
            {"path": url},
            {"path": None, "url": url, "meta": FILE},
            {"path": "x.png", "url": url, "meta": FILE},
            {"url": url},
            url,
        ):
            try:
                with pytest.raises(Refused):
                    rest.ask("surprise", payload, tiny)
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == 400
                assert error.response.json() == {"detail": "Upload the file: addresses are not fetched."}
        twice = [("content-type", "application/json"), ("content-type", "multipart/form-data; boundary=x")]
        body = json.dumps({"data": [{"path": url, "meta": FILE}, tiny]})
        if not url.startswith("HTTP"):
            assert rest.http.post("/gradio_api/call/surprise", content=body, headers=twice).status_code == 400
        for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/file="):
            assert rest.http.get(prefix + url).status_code >= 400
            assert rest.http.head(prefix + url).status_code >= 400
    assert heard  # the client's own


# --- with users and passwords

USERS = [("ada", "secret:with colon"), ("bob", "other")]
OURS = [b"nano", b"keep", b"Surprise", b"/complete", b"particles", b"chelsea"]


@pytest.fixture(scope="module")
def locked(tiny) -> Iterator[tuple[str, Any]]:
    """A studio with users, and Gradio's app."""
    import gradio

    launch, apps = gradio.Blocks.launch, []

    def launched(self, *arguments, **named):
        found = launch(self, *arguments, **named)
        apps.append(found[0])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio.Blocks, "launch", launched)
        with studio([tiny], auth=USERS) as found:
            yield found, apps[0]


def routes_of(app: Any) -> list[tuple[str, str]]:
    """All methods and paths of an app, those of routers in it included."""
    found = set()

    def walk(routes):
        for route in routes:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
            if inner:
                walk(inner)
            else:
                found.update((method, route.path) for method in getattr(route, "methods", None) or ["GET"])

    walk(app.routes)
    return sorted(found)


KNOWN = """/ /config /gradio_api/info /gradio_api/openapi.json /gradio_api/file={path} /gradio_api/file/{path} /user
/gradio_api/upload /gradio_api/upload_progress?upload_id=x /gradio_api/queue/join /gradio_api/queue/data?session_hash=x
/gradio_api/queue/status /gradio_api/call/models /gradio_api/call/models/x /gradio_api/run/models /gradio_api/api/models
/gradio_api/heartbeat/x /gradio_api/startup-events /gradio_api/theme.css /theme.css /gradio_api/app_id /gradio_api/token
/gradio_api/user /gradio_api/reset /gradio_api/cancel /gradio_api/component_server /gradio_api/deep_link?session_hash=x
/gradio_api/dev/reload /gradio_api/login_check /monitoring /monitoring/summary /monitoring/x /robots.txt /manifest.json
/pwa_icon /logout /gradio_api/runs /gradio_api/mcp /gradio_api/mcp/sse /docs /redoc /openapi.json /gradio_api/vibe-code
/gradio_api/process_recording /gradio_api/stream/x/y/1/playlist.m3u8 /gradio_api/custom_component/x/client/y/z /nothing
/gradio_api/call/v2/models /?page=x /?deep_link=x /config?page= /gradio_api//info /./config"""


def test_the_list_of_routes_is_whole(locked):
    """Else the walk below would prove nothing."""
    paths = {path for _, path in routes_of(locked[1])}
    assert len(paths) > 50
    assert {"/config", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/heartbeat/{session_hash}"} <= paths


def test_without_a_login_nothing_is_there(locked, tiny):
    address, app = locked
    with Client(address) as ada:
        assert ada.login(*USERS[0]) == 200
        path = ada.upload(noise())["path"]
        assert ada.http.get(f"/gradio_api/file={path}").content == noise()
    values = {"path": path, "path_or_url": path, "api_name": "models", "session_hash": "x", "component_id": "1"}
    asked = {
        (method, where) for where in KNOWN.split() for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")
    }
    asked |= set(routes_of(app))
    opened = set()
    with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE) as http:
        for method, where in sorted(asked):
            for name, value in values.items():
                where = where.replace("{" + name + "}", value).replace("{" + name + ":path}", value)
            content = None if method in ("GET", "HEAD", "OPTIONS") else b'{"data": [], "session_hash": "x"}'
            answer = http.request(method, where, content=content, headers={"content-type": "application/json"})
            if answer.status_code == 200:
                opened.add(where)
                for word in [*OURS, tiny.encode(), noise()]:
                    assert word not in answer.content, (method, where, word)
            else:
                assert answer.status_code >= 400, (method, where, answer.status_code)
                assert tiny.encode() not in answer.content
    fine = {"/", "/?page=x", "/?deep_link=x", "/theme.css", "/gradio_api/theme.css", "/manifest.json", "/favicon.ico"}
    assert opened <= {*fine, "/gradio_api/startup-events"}
    assert "/" in opened


def test_the_way_in_is_shown(locked):
    with Client(locked[0]) as stranger:
        page = stranger.http.get("/").text
    assert '"auth_required":true' in page and "gradio_api_info = " not in page
    scripts = [part.split('"')[0] for part in page.split('src="./')[1:]]
    with Client(locked[0]) as stranger:
        assert scripts and all(stranger.http.get(f"/{script}").status_code == 200 for script in scripts)


@pytest.mark.parametrize(
    ("user", "password"),
    [("ada", "other"), ("bob", "secret:with colon"), ("eve", "x"), ("ada", ""), ("", ""), ("ADA", "secret:with colon")],
)
def test_wrong_passwords(locked, user, password):
    with Client(locked[0]) as client:
        assert client.login(user, password) in (400, 422)
        assert client.http.get("/config").status_code == 401
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            client.ask("models")


def test_cookies_that_nobody_gave(locked):
    with Client(locked[0]) as client:
        for name in (f"access-token-{locked[1].cookie_id}", f"access-token-unsecure-{locked[1].cookie_id}"):
            for value in ("", "x", "None", "null", "ada"):
                answer = client.http.get("/config", headers={"cookie": f"{name}={value}"})
                assert answer.status_code == 401


def test_with_a_login_everything_works(locked, tiny, model):
    with Client(locked[0], new_session()) as client:
        assert client.login(*USERS[1]) == 200
        page = client.http.get("/").text
        assert "gradio_api_info = {" in page and '"auth_required":true' not in page
        photo = client.upload(noise())
        _, facts = client.ask("complete", photo, 0.5, "", 1, *PLAIN, tiny)
        assert facts["ids"] == model.complete(noise(), seed=0).ids.tolist()
        client.http.get("/logout")
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            client.ask("models")
        assert client.http.get(f"/gradio_api/file={photo['path']}").status_code == 401


def test_gradios_own_client_logs_in(locked, tiny):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(locked[0], auth=USERS[0], verbose=False)
    assert client.predict(api_name="/models") == [tiny]
    client.close()
    with pytest.raises(Exception, match="Could not login"):
        gradio_client.Client(locked[0], auth=("ada", "wrong"), verbose=False)


class Tomorrow(datetime):
    """A clock that is a day ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(days=1)


def test_uploads_go_after_a_while_and_what_the_page_shows_stays(tiny, monkeypatch):
    monkeypatch.setattr("imagegpt.studio.app.SWEEP", (1, 3600))
    with studio([tiny]) as address, Client(address) as client:
        shown = set(re.findall(rf'"({address}gradio_api/file=[^"]+)"', client.http.get("/config").text))
        assert any("chelsea" in each for each in shown)
        gone = [f"/gradio_api/file={client.upload(noise())['path']}", client.ask("sample", *PLAIN, tiny)[0][0]["url"]]
        assert {client.http.get(each).status_code for each in [*shown, *gone]} == {200}
        monkeypatch.setattr("gradio.route_utils.datetime", Tomorrow)
        # An answer that is on its way while its file goes would have no end.
        until(lambda: not any(Path(each.partition("file=")[2]).exists() for each in gone))
        until(lambda: {client.http.get(each).status_code for each in gone} == {403})
        assert {client.http.get(each).status_code for each in shown} == {200}


def test_nothing_is_left_running():
    """All that was asked above has come to its end."""
    until(stands_still)
    assert threading.active_count() < 60
