"""imagegpt convert and download: what they write, what they print, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bundles import write_release
from imagegpt.cli.main import main
from imagegpt.convert import download as release


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_release(tmp_path / "release")
    return tmp_path


@pytest.fixture
def told(capsys):
    """Run a command that works; what it prints as JSON."""

    def run(*arguments: str) -> dict:
        assert main([*arguments, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return json.loads(captured.out)

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that is refused; its one line."""

    def run(*arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert sorted(Path().rglob("*")) == before
        return captured.err

    return run


def test_there_and_back(place, told):
    record = told("convert", "release", "--to", "model")
    assert record["step"] == 1000
    assert record["objective"] == "autoregressive"
    assert record["seconds"] >= 0
    assert told("info", "model")["parameters"] == record["parameters"]
    back = told("convert", "model", "--to", "model.npz")
    assert back["written"] == ["model.npz"]
    told("convert", "model.npz", "--to", "again")
    assert Path("model/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_people_are_told_in_a_sentence(place, capsys):
    assert main(["convert", "release", "--to", "model"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"model: [\d,]+ parameters, autoregressive; left out: 45 tensors \([\d.]+ s\)\n", out)
    assert main(["convert", "model", "--to", "m.npz"]) == 0
    assert "m.npz: 21 variables" in capsys.readouterr().out


def test_steps_heads_and_palette(place, told, refused):
    write_release(Path("release"), 2000, seed=1)
    assert "steps: 1000, 2000; name one" in refused("convert", "release", "--to", "model")
    assert "q_proj has 2 heads, not 4" in refused("convert", "release", "--to", "m", "--step", "2000", "--n-head", "4")
    Path("release/kmeans_centers.npy").rename("mine.npy")
    assert "--palette" in refused("convert", "release", "--to", "model", "--step", "1000")
    record = told("convert", "release", "--to", "model", "--step", "2000", "--palette", "mine.npy", "--n-head", "2")
    assert record["step"] == 2000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing", "--to", "model"], "There is no TensorFlow checkpoint nothing"),
        (["release", "--to", "release"], "holds something"),
        (["release", "--to", "m.npz"], "is no model folder: it has no config.json"),
        (["release", "--to", "m.npz", "--step", "3"], "are for checkpoints of OpenAI's"),
        (["release"], "--to"),
        (["nano", "--to", "nano.npz"], "OpenAI's layers have no biases"),
    ],
)
def test_what_is_refused(place, refused, arguments, why):
    assert why in refused("convert", *arguments).replace("\n", " ")


def test_damage_is_one_sentence_that_names_the_file(place, refused):
    shard = Path("release/model.ckpt-1000.data-00001-of-00002")
    content = bytearray(shard.read_bytes())
    content[99] ^= 1
    shard.write_bytes(content)
    assert f"{shard.name} is damaged: the checksum of model/" in refused("convert", "release", "--to", "model")


def test_download(place, told, refused, monkeypatch):
    """Without a network: the server is a folder, which the tests of downloads have real ones for."""
    asked = []

    def fetch(url, path, size, on_bytes, pause):
        asked.append(url)
        shutil.copy(Path("release") / path.name.replace("1000000", "1000"), path)
        on_bytes(size)

    files = [path.name.replace("1000", "1000000") for path in Path("release").iterdir()]
    monkeypatch.setattr(release, "release_files", lambda size, step, bert: files)
    monkeypatch.setattr(release, "remote_size", lambda url, pause: 10)
    monkeypatch.setattr(release, "fetch", fetch)
    record = told("download", "small", "--to", "fetched", "--base", "https://example.org/x")
    assert (record["files"], record["bytes"]) == (4, 40)
    assert sorted(asked) == sorted(f"https://example.org/x/{name}" for name in files)
    assert told("convert", "fetched", "--to", "model")["step"] == 1000000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["huge", "--to", "x"], "small"),
        (["small", "--to", "release", "--step", "5"], "OpenAI released the steps 131000"),
        (["small", "--to", "new", "--base", "nowhere"], "is no address of a server"),
    ],
)
def test_downloads_that_are_refused(place, refused, arguments, why):
    assert why in refused("download", *arguments)


def test_an_interrupted_download_says_that_it_can_go_on(place, capsys, monkeypatch):
    def stop(url, pause):
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "remote_size", stop)
    assert main(["download", "small", "--to", "fetched"]) == 130
    assert "kept in fetched: the same command continues" in capsys.readouterr().err.replace("\n", " ")
