"""Thousands of samples into one file: exactly so many, whatever interrupts, by one process or several."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imagegpt import __version__, checkpoint
from imagegpt.bulk import Bulk
from imagegpt.cli.main import main
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from running import start, wait_for_parts

OPTIONS = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "seed": 0}


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(model: ImageGPT, num: int, **options) -> np.ndarray:
    """What one call draws, as one array."""
    return np.stack([np.asarray(image) for image in model.sample(num, **{"seed": 0, **options}).images[0]])


def arr_0(path: str | Path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"]


def command(tiny_folder: Path, *arguments: str) -> list[str]:
    return ["sample", "--model", str(tiny_folder), "--device", "cpu", "--out", "a.npz", *arguments]


def parts() -> list[str]:
    return sorted(path.name for path in Path("a.npz.parts").glob("ids-*.npy"))


# --- one process


@pytest.mark.parametrize(("num", "batch_size"), [(1, 4), (4, 4), (5, 2), (7, 3), (9, None), (40, None)])
def test_the_file_holds_what_one_call_draws(place, model, num, batch_size):
    told = []
    bulk = Bulk(model, num, Path("a.npz"), OPTIONS, batch_size=batch_size)
    assert bulk.run(lambda *at: told.append(at)) == num
    found = arr_0("a.npz")
    assert (found.shape, found.dtype) == ((num, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(found, pixels(model, num))
    assert [path.name for path in place.iterdir()] == ["a.npz"]
    size = batch_size or 32
    assert told == [(min(done, num), num) for done in [*range(0, num, size), num]]


def test_options_reach_the_model(place, model):
    options = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 4}
    Bulk(model, 5, Path("a.npz"), options, batch_size=2).run()
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 5, **options))
    assert not np.array_equal(arr_0("a.npz"), pixels(model, 5))


def test_no_two_samples_are_the_same(place, model):
    Bulk(model, 40, Path("a.npz"), OPTIONS, batch_size=7).run()
    assert len(np.unique(arr_0("a.npz").reshape(40, -1), axis=0)) == 40


def test_the_file_says_what_made_it(place, model):
    Bulk(model, 3, Path("a.npz"), {**OPTIONS, "seed": 8}, batch_size=2).run()
    with zipfile.ZipFile("a.npz") as archive:
        assert sorted(archive.namelist()) == ["arr_0.npy", "run.json"]
        facts = json.loads(archive.read("run.json"))
    assert facts == {
        **{"model": checkpoint.fingerprint(model.path), "palette": model.codec.fingerprint, "num": 3, "grid": [8, 8]},
        **{"precision": "fp32", "part": 2, "imagegpt": __version__, **OPTIONS, "seed": 8},
    }


def test_a_file_that_is_there_is_not_overwritten(place, model):
    Path("a.npz").write_bytes(b"old")
    with pytest.raises(InputError, match=r"a\.npz is there already"):
        Bulk(model, 3, Path("a.npz"), OPTIONS).run()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"a.npz": b"old"}


def test_a_folder_that_is_missing(place, model):
    with pytest.raises(InputError, match=r"gone/a\.npz\.parts can't be made"):
        Bulk(model, 3, Path("gone/a.npz"), OPTIONS).run()
    assert list(place.iterdir()) == []


# --- interrupted runs


class StoppedError(Exception):
    """What ends a run in a test."""


def stop_after(model: ImageGPT, monkeypatch, calls: int) -> list[tuple[int, int]]:
    """Have `sample` fail after so many calls; holds the number and the first of each call."""
    made, sample = [], ImageGPT.sample

    def fail(self, n, *, first, **options):
        if len(made) == calls:
            raise StoppedError
        made.append((n, first))
        return sample(self, n, first=first, **options)

    monkeypatch.setattr(ImageGPT, "sample", fail)
    return made


@pytest.mark.parametrize("resumed_with", [3, 1, 100, None])
def test_a_run_continues_where_it_was_stopped(place, model, monkeypatch, resumed_with):
    with monkeypatch.context() as patch:
        made = stop_after(model, patch, 2)
        with pytest.raises(StoppedError):
            Bulk(model, 11, Path("a.npz"), OPTIONS, batch_size=3).run()
    assert made == [(3, 0), (3, 3)]
    assert parts() == ["ids-000000000.npy", "ids-000000003.npy"]
    assert not Path("a.npz").exists()
    with monkeypatch.context() as patch:
        made = stop_after(model, patch, 99)
        assert Bulk(model, 11, Path("a.npz"), OPTIONS, batch_size=resumed_with).run() == 5
    assert made == [(3, 6), (2, 9)]
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 11))
    assert [path.name for path in place.iterdir()] == ["a.npz"]


@pytest.fixture
def stopped(place, tiny_folder, model, monkeypatch) -> Path:
    """The folder of a run of 6 that was stopped after one part of two."""
    with monkeypatch.context() as patch:
        stop_after(model, patch, 1)
        with pytest.raises(StoppedError):
            Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()
    return Path("a.npz.parts")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "was", "value"),
    [
        ("seed", "0", 1),
        ("temperature", "1.0", 0.5),
        ("top_k", "None", 3),
        ("top_p", "None", 0.5),
        ("min_p", "None", 0.1),
        ("num", "6", 7),
    ],
)
def test_parts_of_other_settings_are_refused(stopped, model, name, was, value):
    before = listing(stopped)
    num, options = (value, OPTIONS) if name == "num" else (6, {**OPTIONS, name: value})
    with pytest.raises(InputError, match=rf"a\.npz\.parts holds samples with {name} {was}, not {value}: "):
        Bulk(model, num, Path("a.npz"), options, batch_size=2).run()
    assert listing(stopped) == before


def test_parts_of_another_model_palette_or_precision_are_refused(stopped, folder, tiny_folder):
    refused = {"precision fp32, not int8": ImageGPT.from_pretrained(tiny_folder, precision="int8")}
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "clusters": config["clusters"][::-1]}))
    refused["palette"] = ImageGPT.from_pretrained(folder, device="cpu")
    other = shutil.copytree(tiny_folder, folder.parent / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    refused["model"] = ImageGPT.from_pretrained(other, device="cpu")
    for words, model in refused.items():
        with pytest.raises(InputError, match=f"holds samples with {words}"):
            Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"part": 0}', b'{"part": "2"}', b"\xff"])
def test_a_damaged_record_of_the_run_is_told(stopped, model, content):
    (stopped / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged; remove the folder a\.npz\.parts"):
        Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()


def test_a_part_with_another_number_of_samples_is_told(stopped, model):
    np.save(stopped / "ids-000000000.npy", np.zeros((3, 64), np.uint16))
    with pytest.raises(InputError, match=r"ids-000000000\.npy holds 3 samples, not 2; remove it and run again"):
        Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()
    assert not Path("a.npz").exists()
    (stopped / "ids-000000000.npy").unlink()
    assert Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run() == 2
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 6))


@pytest.mark.parametrize("length", [0, 20, 200])
def test_a_part_that_is_cut_off_is_told(stopped, model, length):
    path = stopped / "ids-000000000.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"ids-000000000\.npy"):
        Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()
    assert not Path("a.npz").exists()


def test_what_a_kill_left_half_written_does_no_harm(stopped, model):
    (stopped / ".ids-000000002-0badf00d.npy").write_bytes(b"half")
    Bulk(model, 6, Path("a.npz"), OPTIONS, batch_size=2).run()
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 6))
    assert not stopped.exists()


def test_a_disk_that_is_full_at_the_end_keeps_the_parts(place, model, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", full)
        with pytest.raises(InputError, match=r"a\.npz can't be written: No space left"):
            Bulk(model, 4, Path("a.npz"), OPTIONS, batch_size=2).run()
    assert not Path("a.npz").exists()
    assert len(parts()) == 2
    assert Bulk(model, 4, Path("a.npz"), OPTIONS, batch_size=2).run() == 0
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 4))


# --- several processes, one after the other: each draws its own parts


def test_each_process_draws_its_share(place, model):
    drawn = [Bulk(model, 11, Path("a.npz"), OPTIONS, rank, 3, 2).run() for rank in (1, 2)]
    assert drawn == [4, 3]  # parts 1 and 4; 2 and 5, which has one sample
    assert parts() == [f"ids-{first:09}.npy" for first in (2, 4, 8, 10)]
    assert Bulk(model, 11, Path("a.npz"), OPTIONS, 0, 3, 2).run() == 4
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 11))


def test_the_first_process_waits_for_the_others(place, tiny_folder, model):
    first = start(command(tiny_folder, "--num", "6", "--batch-size", "2", "--json"), RANK="0", WORLD_SIZE="2")
    try:
        wait_for_parts(first, 2)
        time.sleep(1)
        assert first.poll() is None
        assert not Path("a.npz").exists()
        Bulk(model, 6, Path("a.npz"), OPTIONS, 1, 2, 2).run()
        out, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert (first.returncode, err) == (0, "")
    assert json.loads(out)["drawn"] == 4
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 6))


def test_a_process_without_a_share_that_comes_late_is_content(place, model):
    """torchrun takes one process that fails for a failure of all."""
    assert Bulk(model, 2, Path("a.npz"), OPTIONS, 0, 2, 4).run() == 2
    assert Bulk(model, 2, Path("a.npz"), OPTIONS, 1, 2, 4).run() == 0
    assert [path.name for path in place.iterdir()] == ["a.npz"]


def test_two_real_processes(place, tiny_folder, model):
    arguments = command(tiny_folder, "--num", "61", "--batch-size", "4", "--json")
    both = [start(arguments, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    try:
        (told, errors), other = (process.communicate(timeout=120) for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert other == ("", "")
    assert errors == ""
    assert json.loads(told)["drawn"] == 8 * 4
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 61))
    assert [path.name for path in place.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("how", [f"--no-python -- {Path(sys.executable).with_name('imagegpt')}", "-m -- imagegpt"])
def test_torchrun(place, tiny_folder, model, how):
    """The two dashes are needed: torchrun takes --num for an abbreviation of an option of its own."""
    done = subprocess.run(
        [
            *f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 {how}".split(),
            *command(tiny_folder, "--num", "21", "--batch-size", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.npz (")
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 21))


# --- the command, and what ends it


def test_the_command(place, tiny_folder, model, capsys):
    assert main(command(tiny_folder, "--num", "5", "--batch-size", "2", "--seed", "3", "--top-k", "4", "--json")) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record.pop("seconds") > 0
    assert record == {"model": str(tiny_folder), "written": ["a.npz"], "num": 5, "drawn": 5, "seed": 3}
    assert captured.err == ""
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 5, seed=3, top_k=4))


def test_int8_goes_into_the_file(place, tiny_folder):
    assert main(command(tiny_folder, "--num", "3", "--precision", "int8")) == 0
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(ImageGPT.from_pretrained(tiny_folder, precision="int8"), 3))
    with zipfile.ZipFile("a.npz") as archive:
        assert json.loads(archive.read("run.json"))["precision"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num", "0"], "--num must be at least 1"),
        (["--out", "gone/a.npz"], "gone/a.npz can't be written"),
        (["--num", "4", "--temperature", "-1"], "temperature must be"),
        (["--num", "4", "--top-k", "0"], "top_k must be"),
        (["--num", "4", "--seed", "-1"], "seed must be"),
        (["--num", "4", "--batch-size", "0"], "batch_size must be"),
        (["--num", "4", "--batch-size", "-3"], "batch_size must be"),
        (["--num", "4", "--model", "nonsuch"], "no model 'nonsuch'"),
        (["--num", "4", "--precision", "int8", "--backend", "torch"], "int8"),
    ],
    ids=str,
)
def test_what_can_not_be_drawn_is_one_sentence_and_leaves_nothing(place, tiny_folder, capsys, arguments, words):
    given = {"--out": "a.npz", "--model": str(tiny_folder), **dict(zip(arguments[::2], arguments[1::2], strict=True))}
    assert main(["sample", *(word for pair in given.items() for word in pair)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err
    assert list(place.iterdir()) == []


def test_killed_twice_the_same_command_finishes_and_nothing_is_lost_or_twice(place, tiny_folder, model):
    num = 400
    arguments = command(tiny_folder, "--num", str(num), "--batch-size", "2", "--json")
    there = 0
    for _ in range(2):
        process = start(arguments, most=there + 8)
        try:
            wait_for_parts(process, there + 3)
        finally:
            process.kill()  # no signal that could be caught
            process.communicate()
        assert not Path("a.npz").exists()
        assert there + 3 <= len(parts()) < num / 2
        there = len(parts())
    done = subprocess.run([sys.executable, "-m", "imagegpt", *arguments], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["drawn"] == num - 2 * there
    found = arr_0("a.npz")
    np.testing.assert_array_equal(found, pixels(model, num))
    assert len(np.unique(found.reshape(num, -1), axis=0)) == num
    assert [path.name for path in place.iterdir()] == ["a.npz"]


def test_ctrl_c_says_where_the_parts_are_and_how_to_go_on(place, tiny_folder, model):
    arguments = command(tiny_folder, "--num", "400", "--batch-size", "2")
    process = start(arguments, most=8)
    try:
        wait_for_parts(process, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted; the samples drawn so far are kept in a.npz.parts: the same command continues.\n"
    there = len(parts())
    assert 3 <= there < 200
    assert not Path("a.npz").exists()
    assert main([*arguments]) == 0
    np.testing.assert_array_equal(arr_0("a.npz"), pixels(model, 400))


def test_ctrl_c_while_waiting_for_others(place, tiny_folder):
    process = start(command(tiny_folder, "--num", "4", "--batch-size", "2"), RANK="0", WORLD_SIZE="2")
    try:
        wait_for_parts(process, 1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.startswith("Interrupted; the samples drawn so far are kept in a.npz.parts")
    assert parts() == ["ids-000000000.npy"]
