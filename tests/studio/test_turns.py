"""Whose work runs, and when: clients in a line, pieces in turn, and requests that go at any moment."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegpt.errors import InputError
from imagegpt.studio.limits import Limits
from imagegpt.studio.turns import Busy, Turns

PATIENCE = 20


def scene(test):
    """A test in an event loop of its own, which does not hang."""

    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 2 * PATIENCE))

    return run


async def until(true) -> None:
    """Let others go on until something holds."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def steps(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def end_of(task: asyncio.Task) -> Any:
    """What a task gave or raised."""
    return (await asyncio.gather(task, return_exceptions=True))[0]


class Piece:
    """Something to compute, which takes until it is let go; `pieces` of such."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.log.append(self.name)
        self.began.set()
        assert self.go.wait(PATIENCE)
        self.log.append(f"{self.name} ended")
        return self.name


def quick(log: list[str], name: str):
    """Something to compute that takes no time."""
    return functools.partial(log.append, name)


class Pieces:
    """An iterator of numbers that tells what becomes of it."""

    def __init__(self, count: int, log: list[Any] | None = None, name: str = "") -> None:
        self.left, self.count, self.log, self.name = iter(range(count)), 0, log, name
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self) -> int:
        assert not self.closed
        assert threading.current_thread() is not threading.main_thread()
        self.count += 1
        if self.log is not None:
            self.log.append(self.name)
        return next(self.left)

    def close(self) -> None:
        self.closed = True


async def whole(stream) -> list[Any]:
    return [piece async for piece in stream]


# --- the line


@scene
async def test_what_is_computed_comes_back_from_a_thread():
    turns = Turns(Limits())
    assert await turns.run("a", threading.current_thread) is not threading.current_thread()
    assert await whole(turns.stream("a", lambda: Pieces(3))) == [0, 1, 2]
    assert (turns.running, turns.waiting) == (0, 0)


@scene
async def test_of_those_who_wait_each_clients_first_runs_before_anyones_second():
    turns, log = Turns(Limits(running=1)), []
    first = Piece(log, "a0")
    tasks = [asyncio.create_task(turns.run("a", first))]
    await until(first.began.is_set)
    for client, number in ["a1", "a2", "a3", "b1", "c1", "b2"]:
        tasks.append(asyncio.create_task(turns.run(client, quick(log, client + number))))
    await until(lambda: turns.waiting == 6)
    assert log == ["a0"]
    first.go.set()
    await asyncio.gather(*tasks)
    assert log == ["a0", "a0 ended", "a1", "b1", "c1", "a2", "b2", "a3"]
    assert (turns.running, turns.waiting) == (0, 0)


@scene
async def test_no_more_run_or_wait_than_may():
    turns, log = Turns(Limits(running=2, waiting=3)), []
    tasks = [asyncio.create_task(turns.run(str(number), quick(log, str(number)))) for number in range(5)]
    await asyncio.sleep(0)
    assert (turns.running, turns.waiting) == (2, 3)
    with pytest.raises(Busy, match=r"^The queue is full: 3 requests are waiting\. Try again in a moment\.$") as full:
        await turns.run("x", quick(log, "x"))
    assert isinstance(full.value, InputError)
    with pytest.raises(Busy):
        await whole(turns.stream("y", lambda: Pieces(1, log, "y")))
    await asyncio.gather(*tasks)
    assert log == ["0", "1", "2", "3", "4"]
    await turns.run("x", quick(log, "x"))  # there is room again


@scene
async def test_one_client_does_not_take_the_whole_line():
    turns, log = Turns(Limits(running=1, waiting=9, share=2)), []
    tasks = [asyncio.create_task(turns.run("a", quick(log, "a"))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Busy, match=r"^The queue is full for you: 2 of your requests are waiting\. Try again in a mom"):
        await turns.run("a", quick(log, "x"))
    tasks.append(asyncio.create_task(turns.run("b", quick(log, "b"))))
    await asyncio.gather(*tasks)
    assert log == ["a", "a", "b", "a"]


# --- going before it is over


@scene
async def test_who_goes_while_waiting_leaves_the_line():
    turns, log = Turns(Limits(running=1)), []
    first = Piece(log, "first")
    running = asyncio.create_task(turns.run("a", first))
    await until(first.began.is_set)
    goes, stays = (asyncio.create_task(turns.run("b", quick(log, name))) for name in ("goes", "stays"))
    await until(lambda: turns.waiting == 2)
    goes.cancel()
    assert isinstance(await end_of(goes), asyncio.CancelledError)
    assert turns.waiting == 1
    first.go.set()
    await asyncio.gather(running, stays)
    assert log == ["first", "first ended", "stays"]
    assert (turns.running, turns.waiting) == (0, 0)


@scene
async def test_the_cores_are_given_on_only_after_the_thread_is_done():
    turns, log = Turns(Limits(running=2)), []
    first = Piece(log, "first")
    goes = asyncio.create_task(turns.run("a", first))
    await until(first.began.is_set)
    next_one = asyncio.create_task(turns.run("b", quick(log, "second")))
    await until(lambda: turns.running == 2)
    for _ in range(3):  # also who is impatient waits for the thread
        goes.cancel()
        await steps()
    assert not goes.done()
    assert log == ["first"]
    first.go.set()
    assert isinstance(await end_of(goes), asyncio.CancelledError)
    await next_one
    assert log == ["first", "first ended", "second"]
    assert turns.running == 0


@scene
async def test_a_piece_that_fails_after_its_request_has_gone_is_no_noise():
    turns, told = Turns(Limits()), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    began, go = threading.Event(), threading.Event()

    def fail() -> None:
        began.set()
        go.wait(PATIENCE)
        raise ValueError("too late")

    task = asyncio.create_task(turns.run("a", fail))
    await until(began.is_set)
    task.cancel()
    await steps()
    go.set()
    assert isinstance(await end_of(task), asyncio.CancelledError)
    del task
    await steps()
    assert told == []


@pytest.mark.parametrize("first", ["the turn comes", "the request goes"])
@scene
async def test_a_turn_that_comes_as_its_request_goes_is_not_lost(first):
    """One of two who wait goes in the very step of the loop in which the turn is its."""
    turns, log = Turns(Limits(running=1)), []
    go = asyncio.Event()

    async def hold() -> None:
        async with turns._admitted("a"):
            await go.wait()

    holding = asyncio.create_task(hold())
    await steps()
    goes, stays = (asyncio.create_task(turns.run(name, quick(log, name))) for name in ("goes", "stays"))
    await until(lambda: turns.waiting == 2)
    if first == "the turn comes":
        go.set()
        await asyncio.sleep(0)  # `hold` runs to its end and gives the turn to `goes`, which does not know it yet
        assert turns.waiting == 1 and not goes.done()
        goes.cancel()
    else:
        holding.cancel()
        goes.cancel()  # is awake only after `hold`, which finds it in the line
    assert isinstance(await end_of(goes), asyncio.CancelledError)
    await stays
    assert log == ["stays"]
    await end_of(holding)
    assert (turns.running, turns.waiting) == (0, 0)


@scene
async def test_all_go_at_once():
    turns = Turns(Limits(running=2))
    tasks = [asyncio.create_task(whole(turns.stream(str(number % 3), lambda: Pieces(10**6)))) for number in range(9)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert all([isinstance(await end_of(task), asyncio.CancelledError) for task in tasks])
    assert (turns.running, turns.waiting) == (0, 0)
    assert await whole(turns.stream("x", lambda: Pieces(2))) == [0, 1]


# --- streams


@pytest.mark.parametrize("leave", ["close", "cancel"])
@scene
async def test_leaving_closes_what_makes_the_pieces(leave):
    turns, pieces = Turns(Limits(running=1)), Pieces(1000)
    if leave == "close":
        stream: Any = turns.stream("a", lambda: pieces)
        assert [await anext(stream), await anext(stream)] == [0, 1]
        assert turns.running == 1
        await stream.aclose()
        assert pieces.count == 2
    else:
        task = asyncio.create_task(whole(turns.stream("a", lambda: pieces)))
        await until(lambda: pieces.count > 2)
        task.cancel()
        assert isinstance(await end_of(task), asyncio.CancelledError)
    count = pieces.count
    assert pieces.closed and turns.running == 0
    await asyncio.sleep(0.01)
    assert pieces.count == count < 1000


@scene
async def test_nothing_is_made_for_who_goes_while_waiting():
    turns, made = Turns(Limits(running=1)), []
    first = Piece([], "first")
    running = asyncio.create_task(turns.run("a", first))
    await until(first.began.is_set)
    task = asyncio.create_task(whole(turns.stream("b", lambda: made.append(1) or Pieces(1))))
    await until(lambda: turns.waiting == 1)
    task.cancel()
    await end_of(task)
    first.go.set()
    await running
    assert made == [] and turns.running == 0


@scene
async def test_pieces_of_several_streams_alternate():
    turns, log = Turns(Limits(running=3)), []
    await asyncio.gather(*(whole(turns.stream(name, functools.partial(Pieces, 20, log, name))) for name in "abc"))
    rounds = ["".join(sorted(log[at : at + 3])) for at in range(0, 60, 3)]
    assert rounds == ["abc"] * 20


@scene
async def test_a_short_request_does_not_wait_for_a_long_one():
    turns, log = Turns(Limits(running=2)), []
    long = asyncio.create_task(whole(turns.stream("a", lambda: Pieces(200, log, "piece"))))
    await until(lambda: len(log) > 3)
    await turns.run("b", quick(log, "short"))
    assert log.index("short") < len(log)
    assert not long.done()
    await long
    assert log.count("piece") == 201  # the last finds that there is no more


@pytest.mark.parametrize("where", ["start", "piece", "run"])
@scene
async def test_what_fails_gives_its_turn_back(where):
    def fail(*_: Any) -> Any:
        raise InputError("no picture")

    class Failing(Pieces):
        def __next__(self) -> int:
            return fail() if self.count == 2 else super().__next__()

    turns, pieces = Turns(Limits(running=1)), Failing(9)
    with pytest.raises(InputError, match="no picture"):
        if where == "run":
            await turns.run("a", fail)
        else:
            await whole(turns.stream("a", fail if where == "start" else lambda: pieces))
    assert pieces.closed == (where == "piece")
    assert turns.running == 0
    assert await turns.run("a", lambda: 7) == 7


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The line's clock, which goes where it is told."""
    told = SimpleNamespace(now=0.0)
    monkeypatch.setattr("imagegpt.studio.turns.time", SimpleNamespace(monotonic=lambda: told.now))
    return told


@scene
async def test_time_is_limited(clock):
    turns: Any = Turns(SimpleNamespace(running=1, waiting=1, share=1, seconds=0.05))  # type: ignore[arg-type]
    pieces, found = Pieces(10**6), []
    with pytest.raises(InputError, match=r"^Stopped after 0\.05 seconds, the limit: ask for fewer pictures\.$"):
        async for piece in turns.stream("a", lambda: pieces):
            found.append(piece)
            clock.now += 0.02
    assert found == [0, 1, 2]
    assert pieces.closed and turns.running == 0


@scene
async def test_time_in_the_line_does_not_count(clock):
    turns: Any = Turns(SimpleNamespace(running=1, waiting=1, share=1, seconds=0.2))  # type: ignore[arg-type]
    first = Piece([], "first")
    running = asyncio.create_task(turns.run("a", first))
    await until(first.began.is_set)
    waits = asyncio.create_task(whole(turns.stream("b", lambda: Pieces(3))))
    await until(lambda: turns.waiting == 1)
    clock.now += 0.3
    first.go.set()
    await running
    assert await waits == [0, 1, 2]


# --- anything at any moment


@settings(max_examples=60)
@given(
    running=st.integers(1, 3),
    waiting=st.integers(1, 6),
    share=st.integers(1, 3),
    requests=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 6), st.none() | st.integers(0, 12)),
        min_size=1,
        max_size=14,
    ),
)
def test_whatever_happens_nobody_is_lost(running, waiting, share, requests):
    """Requests: of whom, how many pieces (0 fails), steps of the loop before it comes, and after how many it goes."""
    limits = Limits(running=running, waiting=waiting, share=share)
    computing, most, made = [], [], []

    class Counted(Pieces):
        def __next__(self) -> int:
            computing.append(self)
            most.append(len(computing))
            time.sleep(0.0002)
            computing.remove(self)
            return super().__next__()

    async def main() -> None:
        turns = Turns(limits)
        seen = []

        def start(count: int) -> Pieces:
            if not count:
                raise InputError("nothing")
            made.append(Counted(count))
            return made[-1]

        async def ask(client: str, count: int) -> list[int]:
            found = []
            async for piece in turns.stream(client, lambda: start(count)):
                seen.append((turns.running, turns.waiting))
                found.append(piece)
            return found

        tasks, goes = [], []
        for client, count, before, after in requests:
            for _ in range(before):
                await asyncio.sleep(0.0001)
            tasks.append(task := asyncio.create_task(ask(client, count)))
            if after is not None:

                async def go(task=task, after=after) -> None:
                    for _ in range(after):
                        await asyncio.sleep(0 if after % 2 else 0.0002)
                    task.cancel()

                goes.append(asyncio.create_task(go()))
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        await asyncio.gather(*goes)
        for (_, count, _, after), end in zip(requests, ends, strict=True):
            if isinstance(end, asyncio.CancelledError):
                assert after is not None
            elif isinstance(end, Exception):
                assert isinstance(end, Busy) or (isinstance(end, InputError) and count == 0), end
            else:
                assert end == list(range(count))
        assert all(0 < run <= running and wait <= waiting for run, wait in seen)
        assert (turns.running, turns.waiting) == (0, 0)
        assert await asyncio.gather(*(turns.run(str(at), lambda: 1) for at in range(running))) == [1] * running

    asyncio.run(main())
    assert all(count == 1 for count in most)
    assert all(pieces.closed for pieces in made if pieces.count)  # others were never begun
