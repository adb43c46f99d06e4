"""Parts: who makes which, what a dead process leaves to the first one, what is told on the way."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagegpt import __version__, parts
from imagegpt.errors import InputError
from imagegpt.parts import NoResultError, Parts, recorded

FACTS = {"seed": 0, "layers": [1, 2], "limit": None, "rate": 0.5, "name": "ä"}
PATIENCE = parts.PATIENCE


class StoppedError(Exception):
    """What ends a run in a test."""


class Run:
    """A run of `total` items, each of which becomes its number in a line; holds what was made."""

    def __init__(self, total, size, rank=0, processes=1, facts=FACTS, during=lambda first: None):
        self.parts = Parts(Path("out.txt"), total, facts, "lines", "part", ".txt", rank, processes)
        self.size, self.during, self.made, self.told = size, during, [], []

    def __call__(self):
        return self.parts.run(self.size, self.make, self.join, self.joined, lambda *at: self.told.append(at))

    def make(self, first, count, path, tell):
        self.made.append((first, count))
        self.during(first)
        for item in range(count):
            tell(item + 1)
        path.write_text("".join(f"{item}\n" for item in range(first, first + count)))

    def join(self, path, files):
        path.write_text(json.dumps(self.parts.facts) + "\n" + "".join(file.read_text() for file in files))

    def joined(self):
        return json.loads(self.parts.out.read_text().splitlines()[0])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in sleep alone; tests add what happens meanwhile."""
    state = SimpleNamespace(now=1000.0, meanwhile=lambda: None, sleeps=0)

    def sleep(seconds):
        state.now += seconds
        state.sleeps += 1
        assert state.sleeps < 100_000
        state.meanwhile()

    monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: state.now, sleep=sleep))
    return state


def lines():
    return [int(line) for line in Path("out.txt").read_text().splitlines()[1:]]


def listing(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def other(total, size, first):
    """Another process finishes a part."""
    Run(total, size).make(first, min(size, total - first), Path(f"out.txt.parts/part-{first:09}.txt"), lambda _: None)


# One process.


@pytest.mark.parametrize(
    ("total", "size", "made"),
    [(1, 1, [(0, 1)]), (3, 9, [(0, 3)]), (6, 3, [(0, 3), (3, 3)]), (7, 3, [(0, 3), (3, 3), (6, 1)])],
)
def test_every_item_is_made_once_and_only_the_result_is_left(place, total, size, made):
    run = Run(total, size)
    assert run() == total
    assert run.made == made
    assert lines() == list(range(total))
    assert listing(place) == ["out.txt"]


def test_parts_are_joined_in_the_order_of_their_numbers():
    run = Run(25, 1)
    run()
    assert lines() == list(range(25))  # 10 after 9, not after 1


def test_progress_is_told_inside_a_part_and_at_its_end():
    run = Run(7, 3)
    run()
    assert run.told == [(0, 7), (1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]


def test_progress_begins_with_what_is_there(monkeypatch):
    def stop(first):
        if first == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        Run(8, 3, during=stop)()
    run = Run(8, 3)
    assert run() == 2
    assert run.told[0] == (6, 8)
    done = [at for at, _ in run.told]
    assert done == sorted(done)
    assert run.told[-1] == (8, 8)


def test_no_more_is_told_than_there_is_when_others_are_faster(clock):
    """What others finished while a part was made is counted when it ends."""
    total, size = 12, 3

    def during(first):
        if first == 0:
            other(total, size, 3)
            other(total, size, 9)

    run = Run(total, size, 0, 2, during=during)
    run()
    assert all(at <= of == total for at, of in run.told)
    assert run.told[-1] == (12, 12)
    assert run.made == [(0, 3), (6, 3)]


def test_a_run_without_progress():
    run = Run(7, 3)
    assert run.parts.run(3, run.make, run.join, run.joined) == 7
    assert lines() == list(range(7))


# What fails.


def test_a_part_that_fails_is_not_there_and_nothing_half_is(place):
    def make(first, count, path, tell):
        path.write_text("half")
        if first:
            raise StoppedError

    run = Run(6, 3)
    with pytest.raises(StoppedError):
        run.parts.run(3, make, run.join, run.joined)
    assert listing(place) == ["out.txt.parts", "out.txt.parts/part-000000000.txt", "out.txt.parts/run.json"]


def test_a_join_that_fails_keeps_the_parts(place):
    run = Run(6, 3)

    def join(path, files):
        path.write_text("half")
        raise StoppedError

    with pytest.raises(StoppedError):
        run.parts.run(3, run.make, join, run.joined)
    assert not Path("out.txt").exists()
    assert len(listing(place)) == 4  # the folder, two parts and the record
    again = Run(6, 3)
    assert (again(), again.made) == (0, [])
    assert lines() == list(range(6))


def test_a_continued_run_keeps_the_size_of_its_parts():
    def stop(first):
        if first == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        Run(9, 2, during=stop)()
    run = Run(9, 5)
    assert run() == 5
    assert run.made == [(4, 2), (6, 2), (8, 1)]
    assert lines() == list(range(9))


def test_the_record_says_what_is_made_by_which_version_in_which_parts():
    with pytest.raises(StoppedError):
        Run(9, 2, during=lambda _: (_ for _ in ()).throw(StoppedError))()
    record = json.loads(Path("out.txt.parts/run.json").read_text(encoding="utf-8"))
    assert record == {**FACTS, "part": 2, "imagegpt": __version__}


@pytest.mark.parametrize("name", FACTS)
def test_parts_of_other_facts_are_refused_and_stay(place, name):
    with pytest.raises(StoppedError):
        Run(9, 2, during=lambda first: (_ for _ in ()).throw(StoppedError) if first else None)()
    before = listing(place)
    run = Run(9, 2, facts={**FACTS, name: "other"})
    with pytest.raises(InputError, match=f"holds lines with {name} .*, not other: give the same command"):
        run()
    assert run.made == []
    assert listing(place) == before


def killed(facts=FACTS, size=2):
    """A run is killed in its first part."""
    with pytest.raises(StoppedError):
        Run(9, size, facts=facts, during=lambda _: (_ for _ in ()).throw(StoppedError))()
    Path("out.txt.parts/.part-0badf00d.txt").write_text("half")


@pytest.mark.parametrize("name", FACTS)
def test_a_folder_in_which_no_part_was_finished_is_taken_over(place, name):
    killed()
    run = Run(9, 4, facts={**FACTS, name: "other"})
    assert run() == 9
    assert run.made == [(0, 4), (4, 4), (8, 1)]  # in parts of its own size
    assert listing(place) == ["out.txt"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"part": 0}'])
def test_a_damaged_record_of_no_part_is_replaced(content):
    killed()
    Path("out.txt.parts/run.json").write_bytes(content)
    assert Run(9, 4)() == 9
    assert lines() == list(range(9))


def test_a_run_whose_folder_another_one_took_over_puts_no_part_into_it(place):
    """Both began before any part was finished: the parts of two settings are never mixed."""
    with pytest.raises(InputError, match=r"out\.txt\.parts holds another run's lines by now"):
        Run(9, 2, during=lambda _: killed({**FACTS, "seed": 1}))()
    assert "out.txt.parts/part-000000000.txt" not in listing(place)
    assert json.loads(Path("out.txt.parts/run.json").read_text(encoding="utf-8"))["seed"] == 1  # the other one's stays


def test_a_run_whose_folder_another_one_took_over_and_finished_leaves_its_result():
    with pytest.raises(InputError):
        Run(9, 2, during=lambda _: Run(9, 2, facts={**FACTS, "seed": 1})())()
    assert json.loads(Path("out.txt").read_text().splitlines()[0])["seed"] == 1


def refuse(at):
    def during(first):
        if first == at:
            raise InputError("4.png is no picture.")

    return during


def test_what_is_refused_before_any_part_is_done_leaves_nothing(place):
    with pytest.raises(InputError, match=r"4\.png"):
        Run(9, 2, during=refuse(0))()
    assert listing(place) == []


def test_what_is_refused_later_keeps_the_parts(place):
    with pytest.raises(InputError, match=r"4\.png"):
        Run(9, 2, during=refuse(4))()
    assert len(listing(place)) == 4  # the folder, two parts and the record
    run = Run(9, 2)
    run()
    assert run.made == [(4, 2), (6, 2), (8, 1)]


def test_a_process_among_several_leaves_the_folder_to_the_others():
    with pytest.raises(InputError, match=r"4\.png"):
        Run(9, 2, 1, 2, during=refuse(2))()
    assert Path("out.txt.parts/run.json").exists()


def test_parts_that_make_no_result_go(place):
    run = Run(6, 3)

    def join(path, files):
        raise NoResultError("None of them can be read.")

    with pytest.raises(InputError, match="None of them"):
        run.parts.run(3, run.make, join, run.joined)
    assert listing(place) == []


def test_a_fact_is_recorded_by_parts_alone():
    assert recorded(Path("out.txt"), "seed") is None
    killed()
    assert recorded(Path("out.txt"), "seed") is None
    with pytest.raises(InputError):
        Run(9, 2, during=refuse(4))()
    assert recorded(Path("out.txt"), "seed") == 0


# Several processes.


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_no_part_is_made_twice_and_none_is_left_out(clock, processes):
    made = []
    for rank in [*range(1, processes), 0]:
        run = Run(20, 2, rank, processes)
        assert run() == sum(count for _, count in run.made)
        made += run.made
    assert sorted(made) == [(first, 2) for first in range(0, 20, 2)]
    assert lines() == list(range(20))


def test_the_parts_of_a_dead_process_are_made_by_the_first(clock):
    run = Run(10, 2, 0, 2)
    assert run() == 10
    assert run.made == [(0, 2), (4, 2), (8, 2), (2, 2), (6, 2)]  # its own before the other's
    assert lines() == list(range(10))
    assert clock.now - 1000 >= PATIENCE


def test_a_process_is_waited_for_before_it_counts_as_dead(clock):
    began = clock.now
    times = []

    def during(first):
        times.append((first, clock.now - began))

    Run(4, 2, 0, 2, during=during)()
    assert times[0] == (0, 0)
    assert times[1][0] == 2
    assert PATIENCE <= times[1][1] < PATIENCE + 3


def test_a_process_that_goes_on_making_parts_is_not_dead(clock):
    """Each of its parts takes nearly as long as the first one's patience."""
    coming = iter([2, 6, 10, 14])
    state = {"next": clock.now + PATIENCE - 2}

    def meanwhile():
        if clock.now >= state["next"]:
            other(16, 2, next(coming))
            state["next"] = clock.now + PATIENCE - 2

    clock.meanwhile = meanwhile
    run = Run(16, 2, 0, 2)
    assert run() == 8
    assert run.made == [(0, 2), (4, 2), (8, 2), (12, 2)]
    assert lines() == list(range(16))


def test_patience_is_longer_where_parts_take_long(clock):
    """Two minutes for a part of one's own: another process may well need three."""

    def during(first):
        clock.now += 120

    def meanwhile():
        if clock.now >= 1000 + 120 + 180 and not Path("out.txt.parts/part-000000002.txt").exists():
            other(4, 2, 2)

    clock.meanwhile = meanwhile
    run = Run(4, 2, 0, 2, during=during)
    assert run() == 2
    assert run.made == [(0, 2)]


def test_a_process_that_wakes_up_again_is_given_its_parts_back(clock):
    made = {"by other": []}

    def meanwhile():
        there = [first for first in (2, 6, 10, 14) if Path(f"out.txt.parts/part-{first:09}.txt").exists()]
        missing = [first for first in (2, 6, 10, 14) if first not in there]
        if there and missing:  # the first process has made one of the other's
            made["by other"].append(missing[0])
            other(16, 2, missing[0])

    clock.meanwhile = meanwhile
    run = Run(16, 2, 0, 2)
    run()
    assert run.made[4:] == [(2, 2)]
    assert made["by other"] == [6, 10, 14]
    assert lines() == list(range(16))


def test_others_do_not_wait(clock):
    run = Run(10, 2, 1, 2)
    assert run() == 4
    assert clock.sleeps == 0
    assert not Path("out.txt").exists()


# What another process has joined.


def joined_by_another(facts=FACTS):
    Run(2, 4, 0, 2, facts)()
    assert Path("out.txt").exists()


@pytest.mark.parametrize("rank", [1, 2])
def test_a_process_without_a_share_that_comes_late_is_content(rank):
    joined_by_another()
    run = Run(2, 4, rank, 3)
    assert (run(), run.made) == (0, [])
    assert not Path("out.txt.parts").exists()


def test_the_first_process_refuses_what_is_there():
    joined_by_another()
    before = Path("out.txt").read_bytes()
    with pytest.raises(InputError, match=r"out\.txt is there already; remove it, or choose another --out"):
        Run(2, 4)()
    assert Path("out.txt").read_bytes() == before
    assert not Path("out.txt.parts").exists()


def test_others_refuse_a_result_of_other_facts():
    joined_by_another({**FACTS, "seed": 1})
    with pytest.raises(InputError, match="is there already"):
        Run(2, 4, 1, 2)()


@pytest.mark.parametrize("content", [b"", b"foreign", b"\xff\xfe", b"{}", b"[]", b"3"])
def test_others_refuse_a_file_that_is_no_result(content):
    Path("out.txt").write_bytes(content)
    with pytest.raises(InputError, match="is there already"):
        Run(2, 4, 1, 2)()
    assert Path("out.txt").read_bytes() == content


def test_a_slow_process_that_was_taken_for_dead_is_content_in_the_end(monkeypatch):
    """The first one has made its parts, joined all and removed the folder: torchrun must not call that a failure."""
    monkeypatch.setattr(parts, "PATIENCE", 0)
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_LOOKS", 0.01)
    begun, joined = threading.Event(), threading.Event()
    found = []

    def during(first):
        begun.set()
        assert joined.wait(60)

    slow = Run(6, 2, 1, 2, during=during)

    def run():
        try:
            found.append(slow())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    Run(6, 2, 0, 2)()
    joined.set()
    thread.join(60)
    assert lines() == list(range(6))
    assert isinstance(found[0], int), found[0]
