"""Ctrl-C and SIGTERM as a wish for the end, which a run fulfils after the update that it is at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether the end was asked for.

    A plain flag: a second signal may come while the first one's handler runs, and would wait for ever for the lock that
    a `threading.Event` takes to be set.
    """

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: object) -> None:
        """Ask for it; a signal's handler."""
        self.asked = True


@contextmanager
def stopping() -> Iterator[Stop]:
    """Have Ctrl-C and SIGTERM ask for the end, so that an update is finished and saved."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {kind: signal.signal(kind, stop.ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
