"""The command in a process of its own, for tests that stop or share its work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start `imagegpt` with more environment variables; its output is piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "imagegpt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def parts_of(out: str) -> list[str]:
    """Names of the parts of a result that are there."""
    return sorted(path.name for path in Path(f"{out}.parts").glob("[!.]*-*"))


def wait_for_parts(process: subprocess.Popen[str], count: int, out: str = "a.npz") -> None:
    """Until so many parts are there; the process must still be at work."""
    until = time.monotonic() + 120
    while len(parts_of(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
