"""Signals that ask a run for its end."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from imagegpt.train.stopping import stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_asks_and_handlers_are_as_before_after_it(kind):
    before = [signal.getsignal(each) for each in SIGNALS]
    with stopping() as stop:
        assert not stop.asked
        signal.raise_signal(kind)
        assert stop.asked
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.timeout(60)
def test_signals_that_come_while_another_is_handled():
    """At every line of the handler and of what it calls; a lock that is not re-entrant would never be free."""
    left = 50

    def again(*_):
        nonlocal left
        if left:
            left -= 1
            signal.raise_signal(signal.SIGINT)
        return again

    tracing = sys.gettrace()
    with stopping() as stop:
        sys.settrace(again)
        signal.raise_signal(signal.SIGINT)
        sys.settrace(tracing)
    assert stop.asked
    assert left < 50


def test_in_another_thread_signals_are_left_alone():
    found = []

    def look():
        with stopping() as stop:
            found.extend([stop.asked, signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [False, before]
