"""imagegpt push and pull, as processes of their own: with a Hub in a thread, and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fake_hub import TOKEN, serving_hub
from imagegpt.cli.main import main


@pytest.fixture
def hub(tmp_path):
    """A Hub, and a function that runs a command against it."""
    with serving_hub() as (address, server):
        own = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}

        def run(*arguments, **settings):
            command = [sys.executable, "-m", "imagegpt", *map(str, arguments)]
            environment = {**os.environ, **own, **settings}
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

        yield run, server


def test_there_and_back(hub, folder, tmp_path):
    run, server = hub
    (folder / "secret.txt").write_text("x")
    done = run("push", folder, "me/tiny", "--private", "--message", "hello", "--license", "mit", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["left_out"] == ["secret.txt"]
    assert (server.messages, server.private) == (["hello"], {"me/tiny"})
    assert b"license: mit" in server.repos["me/tiny"]["main"]["README.md"]
    done = run("pull", "me/tiny", "--to", tmp_path / "back")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"of main at {record['commit'][:12]}" in done.stdout
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_errors_are_one_sentence(hub, folder, tmp_path):
    run, _ = hub
    done = run("push", folder, "me/tiny", HF_TOKEN="hf_wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: me/tiny is not there, or not for everyone, and you are not logged in: log in with `hf auth login`.\n"
    )
    done = run("pull", "me/none", "--to", tmp_path / "x", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: me/none can't be reached: HF_HUB_OFFLINE=1 is set")
    assert not (tmp_path / "x").exists()


def test_a_card_alone_needs_no_network(folder, capsys):
    assert main(["push", str(folder), "me/tiny", "--card-only", "--license", "mit", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["written"] == [str(folder / "README.md")]
    assert record["card"] == (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    assert main(["push", str(folder), "me/tiny", "--card-only"]) == 0
    assert "it is kept" in capsys.readouterr().out
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["push", "nowhere", "me/tiny"], "is no model folder"),
        (["push", "nowhere", "tiny", "--card-only"], "is no id of the Hugging Face Hub: give owner/name"),
        (["pull", "tiny", "--to", "x"], "is no id of the Hugging Face Hub"),
        (["pull", "me/tiny"], "--to"),
    ],
)
def test_what_is_refused(arguments, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
