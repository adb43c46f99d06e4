import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagegpt.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks("python", text)])
def test_the_code_of_a_page_runs(page, checkout):
    """In a process of its own: a page may register classes for the whole process."""
    for code in blocks("python", PAGES[page]):
        done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
