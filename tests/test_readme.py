import re
import shlex
import shutil
from pathlib import Path

import pytest

from imagegpt.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("imagegpt ")]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_has_commands_and_code():
    assert len(COMMANDS) >= 3 and len(blocks("python")) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, checkout, capsys):
    assert main(shlex.split(command, comments=True)[1:]) == 0


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs(code, checkout):
    exec(compile(code, "README.md", "exec"), {})


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
