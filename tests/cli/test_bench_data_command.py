"""imagegpt bench data: what it measures, what it prints, what it refuses, and that Ctrl-C ends it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imagegpt.cli import bench_data
from imagegpt.cli.bench_data import measure
from imagegpt.cli.main import INTERRUPTED, main
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.preprocessor_file import find_codec
from imagegpt.train.rows import Batch
from making import KINDS, content, put, tokenise

QUICK = ["--seconds", "0.05", "--batch", "4"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with pictures, one of them broken, and ids of nano's palette on a grid of 8 x 16."""
    monkeypatch.chdir(tmp_path)
    KINDS["folder"](tmp_path / "pictures", range(9), [0] * 9)
    put(tmp_path / "pictures" / "cat" / "0004.png", b"text")
    ids = np.random.default_rng(0).integers(0, 512, (9, 128)).astype(np.uint16)
    tokenise(tmp_path / "tokens", ids, codec=find_codec("nano").fingerprint, grid=[8, 16])
    return tmp_path


@pytest.fixture
def told(capsys):
    """Run a command that works; what it prints as JSON."""

    def run(*arguments: str) -> dict:
        assert main(["bench", "data", *arguments, *QUICK, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return json.loads(captured.out)

    return run


def test_pictures_are_timed(place, told):
    record = told("pictures", "--augment", "cifar", "--grid", "16x8")
    assert (record["records"], record["holds"], record["grid"], record["batch"]) == (9, "pictures", [16, 8], 4)
    assert record["augment"] == "pad,flip"
    assert record["pictures_per_s"] > 0
    assert record["ids_per_s"] == pytest.approx(128 * record["pictures_per_s"], abs=7)  # rounded to 0.1
    assert ["0004.png" in sentence for sentence in record["skipped"]] == [True]
    assert "training_limit_pictures_per_s" not in record
    assert told("pictures", "--limit", "4")["records"] == 4


def test_ids_are_timed_on_their_own_grid(place, told, monkeypatch):
    ticks = itertools.count()  # of 4 ms, one at each look
    monkeypatch.setattr(bench_data, "time", SimpleNamespace(perf_counter=lambda: 0.004 * next(ticks)))
    record = told("tokens", "--augment", "cifar")
    assert (record["records"], record["holds"], record["grid"], record["skipped"]) == (9, "ids", [8, 16], [])
    assert record["batches"] > 10


def test_ids_are_timed_with_their_own_palette(place, told):
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (5, 3)))
    made = {"codec": codec.fingerprint, "grid": [2, 3], "clusters": codec.clusters.tolist()}
    tokenise(place / "own", np.zeros((9, 6), np.uint16), **made)
    record = told("own")
    assert (record["grid"], record["codec"]) == ([2, 3], "palette of 5")


def test_a_models_limit_stands_beside_it(place, told, monkeypatch):
    assert told("tokens", "--model", "nano", "--device", "cpu")["training_limit_pictures_per_s"] > 0
    monkeypatch.setattr(bench_data, "_training_limit", lambda spec, batch, device: spec.n_layer + batch + 0.25)
    assert told("tokens", "--model", "nano")["training_limit_pictures_per_s"] == 12.2


def test_people_get_a_table(place, capsys):
    assert main(["bench", "data", "tokens", *QUICK]) == 0
    assert "pictures_per_s" in capsys.readouterr().out


def test_the_rate_is_that_of_the_batches_after_the_first(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(bench_data, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    class Slow:
        def stream(self, position):
            assert position == 0
            for number in range(1000):
                clock.now += 0.5 if number == 0 else 0.0625
                yield Batch(number, np.zeros((3, 7), np.int64), None, np.arange(3))

    record = measure(Slow(), 0.25)  # pyright: ignore[reportArgumentType]
    assert record == {"first_batch_s": 0.5, "batches": 4, "pictures_per_s": 48.0, "ids_per_s": 336}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pictures", "--batch", "10"], "A batch of 10 is larger than the data set, which has 9 pictures"),
        (["pictures", "--batch", "0"], "batch must be at least 1"),
        (["pictures", "--seconds", "0"], "--seconds must be above 0"),
        (["pictures", "--seconds", "nan"], "--seconds must be above 0"),
        (["pictures", "--augment", "turn"], "There is no augmentation 'turn'"),
        (["pictures", "--grid", "32"], "--grid is HEIGHTxWIDTH"),
        (["pictures", "--codec", "none.npy"], "none.npy: there is no such file"),
        (["pictures", "--model", "none/"], "none/"),
        (
            ["tokens", "--augment", "imagenet", "--batch", "4"],
            "tokens holds ids of a palette of 512, and the augmentation crop needs",
        ),
        (["tokens", "--grid", "32x32", "--batch", "4"], "tokens holds ids on a grid of 8 x 16"),
        (["nothing"], "nothing: there is no such file or folder"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_sentence(place, capsys, arguments, words):
    assert main(["bench", "data", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("pictures", "windows"))]


INTERRUPTED_ITSELF = """
import os, signal, sys, threading, time
from imagegpt.cli.main import main

def interrupt():
    while not any(thread.name.startswith("pictures") for thread in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
sys.exit(main(["bench", "data", sys.argv[2], "--batch", "8", "--seconds", "300"]))
"""


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_ctrl_c_ends_it_at_once(tmp_path, after):
    for number in range(40):
        put(tmp_path / f"{number}.png", content(number))
    arguments = [sys.executable, "-c", INTERRUPTED_ITSELF, str(after), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (INTERRUPTED, "")
    assert "Interrupted" in done.stderr
