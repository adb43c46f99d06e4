"""Many people at once: what they get, and what is left in memory after them."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
from asking import Client, Refused, new_session, running
from PIL import Image

from running import free_port

pytest.importorskip("gradio", reason="Gradio is not installed")

from imagegpt import ImageGPT

FULL = "The queue is full"
SEEDS = 4
KINDS = ["complete", "complete", "sample", "surprise", "surprise", "cancel", "hang up"]


def photo() -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_of(kind: str, seed: int, image: Any, model: str) -> tuple[str, list[Any]]:
    """What is asked for a kind of request."""
    plain = [1 + seed % 2, 1.0, 0, 1.0, seed]
    if kind == "surprise":
        return kind, [image, model]
    if kind == "complete":
        return kind, [image, 0.75, "", 1, *plain, model]
    return "sample", [*plain, model]


class Person:
    """Asks for one thing after another until the time is over, and it has got a few results.

    Args:
        number: of the person; every third is a program, others are pages.
        programs: whether there are programs at all.
    """

    def __init__(self, address: str, model: str, number: int, programs: bool) -> None:
        self.client = Client(address, None if programs and number % 3 == 0 else new_session())
        self.model, self.random = model, random.Random(number)
        self.found: list[tuple[str, int, Any]] = []
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []

    def work(self, until: float) -> Person:
        with self.client:
            image = self.client.upload(photo())
            while time.monotonic() < until or (len(self.found) < 2 and not self.wrong):
                kind, seed = self.random.choice(KINDS), self.random.randrange(SEEDS)
                try:
                    self.one(kind, seed, image)
                except Refused as told:
                    if not str(told).startswith(FULL):
                        self.wrong.append(f"{kind}: {told}")
                    self.count["refused"] += 1
                    time.sleep(0.2)
                except Exception as error:
                    self.wrong.append(f"{kind}: {error!r}")
        return self

    def one(self, kind: str, seed: int, image: Any) -> None:
        function, data = data_of(kind, seed, image, self.model)
        if kind in ("cancel", "hang up"):
            event = self.client.start(function, data)
            if kind == "hang up":
                self.hang_up(function, event)
            time.sleep(self.random.uniform(0, 0.5))
            self.client.cancel(function, event)
        else:
            answer = self.client.ask(function, *data)
            self.found.append((kind, seed, answer[-1]))
        self.count[kind] += 1

    def hang_up(self, function: str, event: str) -> None:
        """Listen for a moment, and go without a word."""
        if self.client.session is None:
            where, parameters = f"/gradio_api/call/{function}/{event}", {}
        else:
            where, parameters = "/gradio_api/queue/data", {"session_hash": self.client.session}
        with self.client.http.stream("GET", where, params=parameters) as answer:
            next(answer.iter_lines(), None)


def load(address: str, model: str, people: int, seconds: float, programs: bool) -> list[Person]:
    everybody = [Person(address, model, number, programs) for number in range(people)]
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(people) as pool:
        return list(pool.map(lambda person: person.work(until), everybody))


def idle(process: psutil.Process, seconds: float) -> int:
    """Let it come to rest: nothing is computed, for so long; bytes that it then holds."""
    end, still = time.monotonic() + 60, 0.0
    while still < seconds:
        busy = process.cpu_percent(0.5)
        still = still + 0.5 if busy < 20 else 0.0
        assert time.monotonic() < end, f"it goes on computing: {busy} %"
    return process.memory_info().rss


def check(model: ImageGPT, people: list[Person]) -> None:
    """All that was drawn is what the pipeline draws."""
    assert [wrong for person in people for wrong in person.wrong] == []
    expected: dict[tuple[str, int], Any] = {}
    for person in people:
        for kind, seed, answer in person.found:
            if (kind, seed) not in expected:
                options: Any = {"seed": seed}
                if kind == "complete":
                    done = model.complete(photo(), keep=0.75, num_samples=1 + seed % 2, **options).ids.tolist()
                elif kind == "sample":
                    done = model.sample(1 + seed % 2, **options).ids.tolist()
                else:
                    done = float(model.score(photo()).log_likelihood[0])
                expected[kind, seed] = done
            found = answer["log_likelihood"] if kind == "surprise" else answer["ids"]
            assert found == (pytest.approx(expected[kind, seed]) if kind == "surprise" else expected[kind, seed])


def figures(people: list[Person], seconds: float, before: int, after: int) -> str:
    count = sum((person.count for person in people), Counter())
    done = sum(len(person.found) for person in people)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(count.items()))
    growth = 100 * (after / before - 1)
    return (
        f"{len(people)} clients, {seconds:.1f} s: {done} results, {done / seconds:.2f}/s ({kinds}); "
        f"resident {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after: {growth:+.1f} %"
    )


def run(name: str, people: int, warm: float, seconds: float, rest: float, programs: bool) -> tuple[list[Person], str]:
    """Serve a model to people, twice: so that memory is as it is in use, and for what is measured."""
    with running("--model", name, "--port", str(free_port())) as studio:
        address, process = studio.address, psutil.Process(studio.process.pid)
        if programs:
            with Client(address) as client:  # as many as Gradio remembers, a session each
                for _ in range(220):
                    client.ask("models")
        first = load(address, name, people, warm, programs)
        before = idle(process, rest)
        began = time.monotonic()
        everybody = load(address, name, people, seconds, programs)
        took = time.monotonic() - began
        after = idle(process, rest)
        with Client(address) as client:  # and it goes on
            assert client.ask("models") == [[name]]
        assert studio.end() == 0
        assert "Traceback" not in studio.output, studio.output
    told = figures(everybody, took, before, after)
    assert after <= 1.1 * before, told
    return [*first, *everybody], told


def test_a_few_at_once(tiny_folder):
    people, told = run(str(tiny_folder), people=3, warm=2, seconds=3, rest=0.5, programs=False)
    check(ImageGPT.from_pretrained(tiny_folder, device="cpu"), people)
    assert sum(len(person.found) for person in people) > 10, told


@pytest.mark.slow
def test_twenty_at_once_for_a_minute(capsys):
    people, told = run("nano", people=20, warm=40, seconds=60, rest=3, programs=True)
    with capsys.disabled():
        print(f"\n{told}")
    check(ImageGPT.from_pretrained("nano", device="cpu"), people)
    assert all(person.found or person.count["refused"] for person in people), told
