"""imagegpt features: from a folder of pictures to a file, what it prints, what it refuses, and what ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt import extraction
from imagegpt.cli.main import main
from imagegpt.data.records import Source
from imagegpt.feature_file import read_features
from imagegpt.pipeline import ImageGPT
from running import start, wait_for_parts

COUNT = 6


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with pictures of two classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        path = Path("data", "cat" if number < 4 else "dog", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)
    return tmp_path


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (10, 8, 3), np.uint8)


@pytest.fixture
def model(tiny_folder) -> list[str]:
    return ["--model", str(tiny_folder), "--device", "cpu"]


@pytest.fixture(scope="module")
def expected(tiny_folder) -> dict[int, np.ndarray]:
    opened = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")
    return opened.features([pixels(number) for number in range(COUNT)], "all")


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# What it writes and prints.


@pytest.mark.parametrize("out", ["a.safetensors", "a.npz", "a.parquet"])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_features_of_a_folder(place, model, expected, capsys, out, backend):
    assert main(["features", "data", *model, "--backend", backend, "--layer", "2,0", "--out", out, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    record = json.loads(captured.out)
    assert record["seconds"] > 0
    assert record["pictures_per_s"] > 0
    told = {name: record[name] for name in ("written", "pictures", "made", "layers", "width", "backend", "skipped")}
    assert told == {
        **{"written": out, "pictures": COUNT, "made": COUNT, "layers": [2, 0], "width": 32},
        **{"backend": backend, "skipped": []},
    }
    found = read_features(out)
    assert set(found.layers) == {0, 2}
    for layer, values in found.layers.items():
        np.testing.assert_allclose(values, expected[layer], atol=1e-5)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.classes == ("cat", "dog")
    assert sorted(path.name for path in place.iterdir()) == [out, "data"]


def test_a_table_for_people(place, model, capsys):
    assert main(["features", "data", *model, "--backend", "onnx", "--out", "a.npz"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for word in ("a.npz", str(COUNT), "32", "onnx", "pictures"):
        assert word in captured.out
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(captured.out)


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [([], [1]), (["--layer", "2"], [2]), (["--layer", "1,0"], [1, 0]), (["--layer", "all"], [0, 1, 2])],
    ids=str,
)
def test_layers_as_they_are_typed(place, model, expected, capsys, arguments, layers):
    assert main(["features", "data", *model, *arguments, "--out", "a.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == layers
    found = read_features("a.npz")
    assert set(found.layers) == set(layers)
    for layer in layers:
        np.testing.assert_allclose(found.layers[layer], expected[layer], atol=1e-5)


def test_options_reach_the_file(place, model, expected, tiny_folder):
    options = ["--pool", "none", "--dtype", "float16", "--limit", "3", "--batch-size", "2", "--backend", "onnx"]
    assert main(["features", "data", *model, *options, "--out", "a.npz"]) == 0
    found = read_features("a.npz")
    assert (found.layers[1].shape, found.layers[1].dtype) == ((3, 64, 32), np.float16)
    np.testing.assert_allclose(found.layers[1].mean(1, dtype=np.float32), expected[1][:3], atol=3e-3)
    assert found.numbers.tolist() == [0, 1, 2]
    assert {name: found.facts[name] for name in ("pool", "dtype")} == {"pool": "none", "dtype": "float16"}


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_precisions(place, model, expected, precision):
    assert main(["features", "data", *model, "--precision", precision, "--out", "a.npz"]) == 0
    found = read_features("a.npz")
    assert 1e-5 < np.abs(found.layers[1] - expected[1]).max() < 0.3
    assert found.facts["precision"] == precision


def test_the_column_of_the_labels(place, model):
    images = np.stack([pixels(number) for number in range(4)])
    np.savez("data.npz", images=images, labels=np.zeros(4, int), fine=np.array([3, 1, 2, 0]))
    assert main(["features", "data.npz", *model, "--label-column", "fine", "--out", "a.npz"]) == 0
    assert read_features("a.npz").labels.tolist() == [3, 1, 2, 0]


def test_the_embedded_model_is_the_default(place):
    assert main(["features", "data", "--limit", "1", "--device", "cpu", "--out", "a.npz"]) == 0
    assert read_features("a.npz").layers[4].shape == (1, 192)


# Unreadable pictures.


def test_unreadable_pictures_are_counted_and_listed(place, model, expected, capsys):
    Path("data/cat/2.png").write_bytes(b"no picture")
    arguments = ["features", "data", *model, "--layer", "1", "--on-error", "skip", "--out"]
    assert main([*arguments, "a.npz", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pictures"] == COUNT - 1
    assert len(record["skipped"]) == 1
    assert "data/cat/2.png" in record["skipped"][0]
    found = read_features("a.npz")
    assert found.numbers.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found.layers[1], np.delete(expected[1], 2, 0), atol=1e-5)
    assert main([*arguments, "b.npz"]) == 0
    printed = capsys.readouterr()
    assert "cat/2.png" in (printed.out + printed.err).replace("\n", "")


def test_an_unreadable_picture_ends_the_run_and_is_named(place, model, capsys):
    Path("data/dog/4.png").write_bytes(b"no picture")
    assert main(["features", "data", *model, "--out", "a.npz"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "data/dog/4.png" in captured.err
    assert not Path("a.npz").exists()
    assert sorted(path.name for path in place.iterdir()) == ["data"]
    assert main(["features", "data", *model, "--out", "a.npz", "--on-error", "skip"]) == 0
    Path("a.npz").unlink()
    Image.fromarray(pixels(4)).save("data/dog/4.png")
    assert main(["features", "data", *model, "--out", "a.npz"]) == 0


def test_after_a_finished_part_other_data_are_refused_and_it_says_what_to_do(place, model, capsys, monkeypatch):
    monkeypatch.setattr(extraction, "PART", 2)
    Path("data/dog/4.png").write_bytes(b"no picture")
    assert main(["features", "data", *model, "--out", "a.npz"]) == 2
    capsys.readouterr()
    assert main(["features", "data", *model, "--out", "a.npz", "--on-error", "skip"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "on_error raise, not skip" in captured.err and "remove the folder" in captured.err


def test_where_no_picture_can_be_read_there_is_no_file(place, model, capsys):
    for path in Path("data").rglob("*.png"):
        path.write_bytes(b"no picture")
    before = listing(place)
    for out in ("a.npz", "a.safetensors", "a.parquet"):
        assert main(["features", "data", *model, "--on-error", "skip", "--out", out]) == 2
        captured = capsys.readouterr()
        assert (captured.out, len(captured.err.splitlines())) == ("", 1)
        assert "data holds no picture that can be read; the first: data/cat/0.png" in captured.err
    assert listing(place) == before


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "3"], "layer must be 0 to 2"),
        (["--layer", "0,9"], "layer must be 0 to 2"),
        (["--layer", "1,1"], "none twice"),
        (["--layer", "middle"], "Layers are a number"),
        (["--layer", "1.5"], "Layers are a number"),
        (["--layer", ""], "Layers are a number"),
        (["--layer", "1,,2"], "Layers are a number"),
        (["--layer=-1"], "layer must be 0 to 2"),
        (["--out", "a.pt"], "a.pt: give a file that ends in .safetensors, .npz, .parquet"),
        (["--out", "a"], "give a file that ends in"),
        (["--out", "gone/a.npz"], "gone/a.npz can't be written"),
        (["--out", "old.npz"], "old.npz is there already"),
        (["--model", "nonsuch"], "no model 'nonsuch'"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--label-column", "nonsuch"], "nonsuch"),
        (["--precision", "int8", "--backend", "torch"], "int8"),
        (["--precision", "bf16", "--backend", "onnx"], "bf16"),
        (["--device", "nonsense"], "nonsense"),
    ],
    ids=str,
)
def test_what_can_not_be_done_is_one_sentence_and_leaves_nothing(place, tiny_folder, capsys, arguments, words):
    Path("old.npz").write_bytes(b"old")
    before = listing(place)
    given = {"--out": "a.npz", "--model": str(tiny_folder), "--device": "cpu"}
    if len(arguments) > 1:
        given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
        arguments = []
    assert main(["features", "data", *(word for pair in given.items() for word in pair), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err
    assert listing(place) == before


@pytest.mark.parametrize(
    ("data", "words"),
    [("gone", "gone: there is no such file or folder"), ("empty", "empty"), ("data:nonsuch", "nonsuch")],
)
def test_data_that_is_not_there(place, model, capsys, data, words):
    Path("empty").mkdir()
    before = listing(place)
    assert main(["features", data, *model, "--out", "a.npz"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert words in captured.err
    assert listing(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["data"],
        ["--out", "a.npz"],
        ["data", "--out", "a.npz", "--pool", "max"],
        ["data", "--out", "a.npz", "--dtype", "float64"],
        ["data", "--out", "a.npz", "--on-error", "ignore"],
        ["data", "--out", "a.npz", "--batch-size", "2.5"],
        ["data", "--out", "a.npz", "--limit", "some"],
        ["data", "--out", "a.npz", "--nonsense"],
    ],
    ids=" ".join,
)
def test_commands_that_there_are_not(place, capsys, arguments):
    before = listing(place)
    assert main(["features", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "See: imagegpt --help"
    assert listing(place) == before


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "b"), ("0", "0")])
def test_processes_of_no_group(place, model, capsys, monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["features", "data", *model, "--out", "a.npz"]) == 2
    assert f"RANK={rank} and WORLD_SIZE={size}" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    assert main(["features", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--out", "--layer", "--pool", "--dtype", "--batch-size", "--model", "--device", "--precision"):
        assert option in printed
    for option in ("--backend", "--limit", "--label-column", "--on-error", "--json"):
        assert option in printed


# What ends it.


def parts() -> list[str]:
    return sorted(path.name for path in Path("a.npz.parts").glob("part-*"))


def test_ctrl_c_says_where_the_parts_are_and_how_to_go_on(place, model):
    count = 256 * 16
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    np.savez("data.npz", images=images)
    arguments = ["features", "data.npz", *model, "--backend", "onnx", "--out", "a.npz"]
    process = start(arguments, most=8)
    try:
        wait_for_parts(process, 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted; what is done is kept in a.npz.parts: the same command continues.\n"
    there = len(parts())
    assert 2 <= there < 16
    assert not Path("a.npz").exists()
    assert main(arguments) == 0
    assert len(read_features("a.npz").numbers) == count


@pytest.fixture
def interrupted(monkeypatch):
    """The network is interrupted, as by Ctrl-C; holds how often the data's fingerprint was taken."""
    taken, fingerprint = [], Source.fingerprint

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageGPT, "features_of", interrupt)
    monkeypatch.setattr(Source, "fingerprint", lambda self: taken.append(1) or fingerprint(self))
    return taken


def test_an_interruption_is_told_at_once(place, model, interrupted, capsys):
    """To take the fingerprint of the data once more is to read all of it."""
    assert main(["features", "data", *model, "--out", "a.npz"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Interrupted; what is done is kept in a.npz.parts: the same command continues.\n"
    assert len(interrupted) == 1


def test_an_interruption_before_anything_is_kept(place, model, monkeypatch, capsys):
    """While all data are read for their fingerprint: to begin that again would be no answer to Ctrl-C."""
    taken = []

    def fingerprint(self):
        taken.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Source, "fingerprint", fingerprint)
    before = listing(place)
    assert main(["features", "data", *model, "--out", "a.npz"]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("Interrupted")
    assert len(taken) == 1
    assert listing(place) == before


def test_two_processes_of_torchrun(place, tiny_folder, expected):
    """The two dashes are needed: torchrun takes options for abbreviations of its own."""
    how = f"--no-python -- {Path(sys.executable).with_name('imagegpt')}"
    done = subprocess.run(
        [
            *f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 {how}".split(),
            *["features", "data", "--model", str(tiny_folder), "--device", "cpu", "--layer", "1"],
            *["--out", "a.npz", "--json"],
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"] == COUNT
    np.testing.assert_allclose(read_features("a.npz").layers[1], expected[1], atol=1e-5)
    assert sorted(path.name for path in place.iterdir()) == ["a.npz", "data"]
