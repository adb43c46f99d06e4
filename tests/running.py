"""The command in a process of its own, for tests that stop or share its work or ask a server."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

WAITING = """
import itertools, sys, time
from imagegpt import parts
from imagegpt.cli.main import entry
make, numbers, most = parts._Work.make, itertools.count(), int(sys.argv.pop(1))
parts._Work.make = lambda *given: time.sleep(600) if next(numbers) >= most else make(*given)
entry()
"""


def start(arguments: list[str], most: int | None = None, **variables: str) -> subprocess.Popen[str]:
    """Start `imagegpt` with more environment variables; its output is piped.

    Args:
        arguments: of the command.
        most: so many parts are made at most; then it waits for a signal, for which it may be too fast else.
        variables: of the environment.
    """
    how = ["-m", "imagegpt"] if most is None else ["-c", WAITING, str(most)]
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
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


_PORTS = itertools.count(97 * os.getpid())  # each of the processes that run tests begins elsewhere


def free_port() -> int:
    """A port below those that systems hand out by themselves: no connection or server of another test takes it."""
    while True:
        port = next(_PORTS) % 12000 + 20000
        with suppress(OSError), socket.socket() as made:
            made.bind(("127.0.0.1", port))
            return port
