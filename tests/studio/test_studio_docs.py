"""The examples of docs/studio.md, run against a studio."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import asking
import pytest

from imagegpt import ImageGPT

pytest.importorskip("gradio", reason='needs the extra "studio"')
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "studio.md"
PRINTED = "http://127.0.0.1:7860"


def block(language):
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


@pytest.fixture(scope="module")
def address():
    with asking.studio(["nano"]) as found:
        yield found.rstrip("/")


@pytest.fixture(scope="module")
def expected():
    return (
        ImageGPT.from_pretrained("nano").complete("examples/chelsea.jpg", keep=0.5, num_samples=2, seed=0).ids.tolist()
    )


def test_the_python_example(address, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(block("py").replace(PRINTED, address), names)
    assert names["facts"]["ids"] == expected
    assert len(names["pictures"]) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_shell_example(address, expected):
    script = block("sh").replace(PRINTED, address)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "event: complete" in done.stdout
    assert str(expected)[1:-1] in done.stdout


def test_every_option_is_on_the_page():
    command = [sys.executable, "-m", "imagegpt", "studio", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "200", **os.environ})
    options = set(re.findall(r"--[a-z][a-z-]+", told.stdout)) - {"--help", "--no-hub", "--no-open", "--version"}
    missing = [option for option in options if f"`{option}" not in PAGE.read_text(encoding="utf-8").replace(", `", "`")]
    assert options
    assert not missing
