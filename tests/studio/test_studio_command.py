"""imagegpt studio as a process: what is refused, what is warned of, the end of it, and that it asks nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from asking import PATIENCE, Client, running

from running import free_port

pytest.importorskip("gradio", reason="Gradio is not installed")

from imagegpt.cli.main import main
from imagegpt.errors import InputError
from imagegpt.studio.serve import read_auth

# --- what can't be


def refused(capsys, *arguments: str) -> str:
    """The one sentence of a command that starts nothing."""
    assert main(["studio", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0].removeprefix("error: ")


@pytest.fixture
def tiny(tiny_folder) -> tuple[str, ...]:
    return "--model", str(tiny_folder), "--device", "cpu"


def test_a_port_in_use(capsys, tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(capsys, *tiny, "--port", str(port))
        assert told == f"127.0.0.1:{port} can't be listened on: address already in use."


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1"])
def test_ports_that_are_none(capsys, port):
    assert "port" in refused(capsys, f"--port={port}").lower()


@pytest.mark.parametrize("host", ["999.1.1.1", "a b", "", "x" * 300])
def test_hosts_that_are_none(capsys, tiny, host, monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # no test asks for names
    told = refused(capsys, *tiny, "--host", host, "--auth", "a:b")
    assert told == f"{host} can't be listened on: name or service not known."


@pytest.mark.parametrize("option", ["max-queue", "max-concurrency", "max-samples", "max-pictures", "timeout"])
@pytest.mark.parametrize("value", ["0", "-3", "x", "1.5"])
def test_limits_that_are_none(capsys, option, value):
    assert main(["studio", f"--{option}={value}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing"], "There is no model 'nothing'"),
        (["--model", "nano", "--model", "nothing"], "There is no model 'nothing'"),
        (["--models", "nowhere"], "There is no folder nowhere."),
        (["--data", "nowhere"], "nowhere"),
        (["--probe", "nowhere"], "nowhere"),
        (["--auth", "nobody"], "--auth must be user:password, or --auth a file with such lines."),
        (["--precision", "int8", "--backend", "torch"], "int8"),
        (["--backend", "jax"], "jax"),
        (["--device", "toaster"], "toaster"),
    ],
    ids=str,
)
def test_what_is_not_there(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # one of its own: other tests open studios meanwhile
    assert words in refused(capsys, *arguments)
    assert listing(tmp_path) == []


def test_without_gradio_the_extra_is_named(capsys, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(capsys, *tiny) == 'The studio needs gradio: pip install "imagegpt[studio]".'


# --- users


def test_users_and_passwords(tmp_path):
    assert read_auth("ada:secret") == [("ada", "secret")]
    assert read_auth("ada:a:b c") == [("ada", "a:b c")]
    file = tmp_path / "users"
    file.write_text("ada:secret\n\n  bob:other \nzoë:pä:ß\n", encoding="utf-8")
    assert read_auth(str(file)) == [("ada", "secret"), ("bob", "other"), ("zoë", "pä:ß")]


@pytest.mark.parametrize("text", ["ada", ":secret", "ada:", ":", " ada: ", "none/such/file"])
def test_no_user_and_password(text):
    with pytest.raises(InputError, match=r"^--auth must be user:password, or --auth a file with such lines\.$"):
        read_auth(text)


@pytest.mark.parametrize("text", ["", " "])
def test_nobody(text):
    with pytest.raises(InputError, match="names nobody"):
        read_auth(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ada:secret\nbob\n", r"^line 2 of .*users must be user:password, or --auth a file with such lines\.$"),
        (b"\n\n:x\n", r"^line 3 of .*users must be user:password"),
        (b"", r"^--auth .*users names nobody\.$"),
        (b"\n  \n", r"^--auth .*users names nobody\.$"),
        (b"ada:\xff\xfe\n", r"^--auth .*users can't be read: "),
    ],
)
def test_files_that_name_nobody(tmp_path, content, words):
    file = tmp_path / "users"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as told:
        read_auth(str(file))
    assert "secret" not in str(told.value)


# --- as a process


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("imagegpt"))


def test_it_serves_warns_and_ends(tiny_folder, tmp_path):
    """With users from a file, a proxy in the environment, and a picture on its way when Ctrl-C comes."""
    users = tmp_path / "users"
    users.write_text("ada:secret\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    arguments = ["--model", str(tiny_folder), "--model", "nano", "--port", str(free_port()), "--auth", str(users)]
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "TMPDIR": str(temporary)}
    with running(*arguments, **proxy) as studio, Client(studio.address) as client:
        assert "warning" not in studio.output  # on loopback, and with users
        assert len(listing(temporary)) == 1
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            client.ask("models")
        assert client.login("ada", "secret") == 200
        assert client.ask("models") == [[str(tiny_folder), "nano"]]
        client.start("sample", [16, 1, 0, 1, 0, "nano"])
        assert studio.end() == 0
        assert listing(temporary) == []
        assert "Traceback" not in studio.output
        assert studio.output.strip() == f"The studio is at {client.http.base_url} - Ctrl-C ends it."


def test_to_the_network_without_users_there_is_a_warning(tiny_folder, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    port = free_port()
    arguments = ["--model", str(tiny_folder), "--host", "0.0.0.0", "--port", str(port)]
    with running(*arguments, TMPDIR=str(temporary)) as studio:
        assert studio.address == f"http://localhost:{port}/"
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        assert studio.end(signal.SIGTERM) == 0  # as a service manager ends it
        assert "warning: Anybody who reaches this machine may use the studio: see --auth." in studio.output
    assert listing(temporary) == []


# --- it asks nobody

WATCH = """
import json, os, sys

def heard(event, arguments, told=os.environ["WHO_IS_ASKED"]):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        with open(told, "a") as file:
            file.write(json.dumps([event, repr(arguments[1:] if "connect" in event else arguments)]) + "\\n")

sys.addaudithook(heard)
"""

UP = """
import fcntl, os, socket, struct, sys

with socket.socket() as one:  # what `ip link set lo up` does
    name = b"lo".ljust(16, b"\\0")
    flags, = struct.unpack("16xH", fcntl.ioctl(one, 0x8913, name + bytes(16))[:18])
    fcntl.ioctl(one, 0x8914, name + struct.pack("H", flags | 1) + bytes(14))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

# A client inside of the same namespace: starts the studio, asks for pictures, and looks for a way out.
INSIDE = """
import socket, subprocess, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from asking import Client, running

for address in ("1.1.1.1", "192.168.0.1", "169.254.169.254"):
    try:
        socket.create_connection((address, 80), 2)
        sys.exit("there is a way out to " + address)
    except OSError:
        pass
with running("--model", sys.argv[2], "--model", "nano", "--port", "7860") as studio:
    with Client(studio.address) as client:
        page = client.http.get("/")
        assert page.status_code == 200
        photo = client.upload(open(sys.argv[3], "rb").read())
        files, facts = client.ask("complete", photo, 0.9, "", 1, 2, 1.0, 0, 1.0, 5, "nano")
        picture = client.http.get(files[0]["url"]).raise_for_status().content
        surprise = client.ask("surprise", photo, sys.argv[2])
    assert studio.end() == 0, studio.output
    assert "Traceback" not in studio.output and "rror" not in studio.output, studio.output
import json
json.dump({"ids": facts["ids"], "picture": len(picture), "surprise": surprise[0]["nats_per_token"]}, sys.stdout)
"""


@pytest.fixture
def isolated(tmp_path) -> tuple[str, ...]:
    """The beginning of a command that runs Python where there is no network but loopback."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    up = tmp_path / "up.py"
    up.write_text(UP)
    for command in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
        trial = [*command, sys.executable, str(up), "-c", "import socket; socket.create_server(('127.0.0.1', 7860))"]
        if subprocess.run(trial, capture_output=True, timeout=PATIENCE).returncode == 0:
            return (*command, sys.executable, str(up))
    pytest.skip("no network namespace may be made here")


@pytest.fixture
def picture(tmp_path) -> Path:
    import numpy as np
    from PIL import Image

    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def watched(tmp_path) -> tuple[dict[str, str], Path]:
    """Environment variables under which every Python process writes down whom it asks, and where."""
    folder = tmp_path / "watch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH)
    told = tmp_path / "asked.jsonl"
    told.touch()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    # As a user's machine is: none of what keeps tests from the network.
    return {"PYTHONPATH": path, "WHO_IS_ASKED": str(told), "HF_HUB_OFFLINE": "0"}, told


LOOPBACK = r"""['"](127\.0\.0\.1|localhost|::1)['"]"""


def strangers(told: Path) -> list[str]:
    """Whom somebody asked who is not on loopback; sockets of files, such as asyncio's own, are no network."""
    asked = [json.loads(line) for line in told.read_text().splitlines()]
    assert asked  # else nothing was watched
    return [f"{event} {arguments}" for event, arguments in asked if not re.search(LOOPBACK, arguments)]


def test_the_watch_sees_who_asks(watched):
    variables, told = watched
    code = "import socket; socket.create_server(('127.0.0.1', 0)); socket.getaddrinfo('256.1.1.1', 80)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True)
    assert done.returncode == 1
    assert len(strangers(told)) == 1 and "256.1.1.1" in strangers(told)[0]


def test_with_nothing_but_loopback_it_draws(isolated, watched, tiny_folder, picture, tmp_path):
    from imagegpt import ImageGPT

    variables, told = watched
    inside = tmp_path / "inside.py"
    inside.write_text(textwrap.dedent(INSIDE))
    folder = Path(__file__).parent
    command = [*isolated, str(inside), str(folder), str(tiny_folder), str(picture)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **variables}, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=3 * PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the studio in it too
    assert process.returncode == 0, err
    found = json.loads(out)
    expected = ImageGPT.from_pretrained("nano", device="cpu").complete(picture, keep=0.9, num_samples=2, seed=5)
    assert found["ids"] == expected.ids.tolist()
    assert found["picture"] > 100 and found["surprise"] > 0
    # The client alone tried to get out.
    assert sorted(re.findall(r"'([\d.]+)', 80", "".join(strangers(told)))) == 2 * ["1.1.1.1"] + 2 * [
        "169.254.169.254"
    ] + 2 * ["192.168.0.1"]


def test_it_asks_nobody_where_it_could(watched, tiny_folder, picture):
    """Not even where there is a network: no version is looked up, no font, no statistics."""
    variables, told = watched
    port = free_port()
    with running("--model", str(tiny_folder), "--port", str(port), **variables) as studio:
        with Client(studio.address) as client:
            assert client.http.get("/").status_code == 200
            photo = client.upload(picture.read_bytes())
            client.ask("complete", photo, 0.5, "", 1, 1, 1.0, 0, 1.0, 5, str(tiny_folder))
            client.ask("surprise", photo, str(tiny_folder))
        assert studio.end() == 0
    assert strangers(told) == []
