"""imagegpt score: what it prints, for people and for programs; what it writes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.cli.main import main
from imagegpt.pipeline import ImageGPT
from imagegpt.score_file import COLUMNS

COUNT = 6


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (10, 8, 3), np.uint8)


def save(number: int) -> None:
    path = Path("data", "cat" if number < 4 else "dog", f"{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with pictures of two classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        save(number)
    return tmp_path


@pytest.fixture
def model(tiny_folder) -> list[str]:
    return ["--model", str(tiny_folder), "--device", "cpu", "--backend", "onnx"]


@pytest.fixture(scope="module")
def expected(tiny_folder):
    opened = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")
    return opened.score([pixels(number) for number in range(COUNT)])


def test_json(place, model, expected, capsys):
    assert main(["score", "data", *model, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    told = json.loads(captured.out)
    values = [entry["log_likelihood"] for entry in told["images"]]
    np.testing.assert_allclose(values, expected.log_likelihood, rtol=1e-6)
    assert [entry["number"] for entry in told["images"]] == list(range(COUNT))
    assert told["images"][5]["picture"].endswith("dog/5.png")
    assert [entry["label"] for entry in told["images"]] == [0, 0, 0, 0, 1, 1]
    nats = expected.nats_per_token
    assert told["nats_per_token"] == pytest.approx(nats.mean())
    assert told["standard_error"] == pytest.approx(nats.std(ddof=1) / COUNT**0.5)
    assert told["bits_per_dim"] == pytest.approx(nats.mean() / np.log(2) / 3)
    assert (told["pictures"], told["codec"], told["method"]) == (COUNT, "palette of 16", "likelihood")
    assert told["skipped"] == []
    assert [path.name for path in place.iterdir()] == ["data"]


def test_csv(model, expected, capsys):
    assert main(["score", "data", *model, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert tuple(rows[0]) == COLUMNS
    np.testing.assert_allclose([float(row["log_likelihood"]) for row in rows], expected.log_likelihood, rtol=1e-6)


def test_by_steps(model, expected, capsys):
    assert main(["score", "data", *model, "--steps", "--json"]) == 0
    values = [entry["log_likelihood"] for entry in json.loads(capsys.readouterr().out)["images"]]
    np.testing.assert_allclose(values, expected.log_likelihood, rtol=1e-6)


def test_one_picture(model, expected, capsys):
    assert main(["score", "data/cat/1.png", *model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"][0]["log_likelihood"] == pytest.approx(expected.log_likelihood[1], rel=1e-6)
    assert "standard_error" not in told  # of one there is none


def test_a_table_for_people(model, expected, capsys):
    assert main(["score", "data", *model]) == 0
    out = capsys.readouterr().out
    for number in range(COUNT):
        assert f"{number}.png" in out
        assert f"{expected.log_likelihood[number]:.1f}" in out
        assert f"{expected.nats_per_token[number]:.4f}" in out
    assert "palette of 16" in out


def test_of_many_the_likeliest_and_the_least_likely(model, tiny_folder, capsys):
    for number in range(COUNT, 25):
        save(number)
    opened = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")
    assert main(["score", "data", *model]) == 0
    out = capsys.readouterr().out
    files = sorted(Path("data").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    values = opened.score(files).log_likelihood
    order = np.argsort(-values)
    likeliest, unlikeliest = out.split("the least likely 10")
    for text, rows in ((likeliest, order[:10]), (unlikeliest, order[::-1][:10])):
        at = [text.index(f"{values[row]:.1f}") for row in rows]
        assert at == sorted(at)
    assert f"{values[order[12]]:.1f}" not in out


def test_a_file(place, model, expected, capsys):
    assert main(["score", "data", *model, "--out", "a.csv", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] == ["a.csv"]
    assert (told["made"], told["pictures"], told["backend"]) == (COUNT, COUNT, "onnx")
    assert told["nats_per_token"] == pytest.approx(expected.nats_per_token.mean())
    assert sorted(path.name for path in place.iterdir()) == ["a.csv", "a.csv.json", "data"]


@pytest.mark.parametrize("out", [[], ["--out", "a.npz"]])
def test_pictures(model, out, capsys):
    assert main(["score", "data", *model, "--heatmap", "maps", *out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in Path("maps").iterdir())
    assert names == [f"{number:06}-{number}.png" for number in range(COUNT)] + ["likeliest.png", "unlikeliest.png"]
    if out:
        assert told["written"] == ["a.npz", str(Path("maps/likeliest.png")), str(Path("maps/unlikeliest.png"))]


def test_unreadable_pictures(model, expected, capsys):
    Path("data/cat/1.png").write_bytes(b"none")
    assert main(["score", "data", *model]) == 2
    assert "cat/1.png is not a picture" in capsys.readouterr().err
    assert main(["score", "data", *model, "--on-error", "skip", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["number"] for entry in told["images"]] == [0, 2, 3, 4, 5]
    assert len(told["skipped"]) == 1
    assert main(["score", "data", *model, "--on-error", "skip", "--csv"]) == 0
    *rows, last = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert len(rows) == 5
    assert "cat/1.png" in last["skipped"]


def test_no_readable_picture_at_all(place, model, capsys):
    for path in Path("data").rglob("*.png"):
        path.write_bytes(b"none")
    for more in ([], ["--json"], ["--out", "a.npz"], ["--out", "a.csv"]):
        assert main(["score", "data", *model, "--on-error", "skip", *more]) == 2
        captured = capsys.readouterr()
        assert "data: none of its 6 pictures can be read: data/cat/0.png is not a picture" in captured.err
        assert (captured.out, len(captured.err.splitlines())) == ("", 1)
        assert [path.name for path in place.iterdir()] == ["data"]


def test_a_broken_picture_may_then_be_skipped_or_mended(place, model, capsys):
    Path("data/cat/1.png").write_bytes(b"none")
    assert main(["score", "data", *model, "--out", "a.csv"]) == 2
    assert "cat/1.png is not a picture" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["data"]
    assert main(["score", "data", *model, "--out", "a.csv", "--on-error", "skip"]) == 0
    save(1)
    assert main(["score", "data", *model, "--out", "b.csv"]) == 0


def test_a_bidirectional_model(folder, capsys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_causal": False}))
    assert main(["score", "data", "--model", str(folder), "--device", "cpu", "--passes", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "pseudo-likelihood"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "no such file"),
        (["data", "--json", "--csv"], "give one of them"),
        (["data", "--maps"], "--out"),
        (["data", "--csv", "--out", "a.csv"], "--csv"),
        (["data", "--out", "a.csv", "--maps"], "no room for maps"),
        (["data", "--out", "a.txt"], "a.txt"),
        (["data", "--out", "gone/a.csv"], "gone"),
        (["data", "--heatmap", "data/cat/1.png"], "is a file"),
        (["data", "--passes", "3"], "bidirectional"),
        (["data", "--batch-size", "0"], "batch_size"),
        (["data", "--limit", "0"], "limit"),
        (["data", "--model", "gone"], "gone"),
    ],
)
def test_what_it_refuses(place, model, arguments, words, capsys):
    assert main(["score", *(model if "--model" not in arguments else []), *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert [path.name for path in place.iterdir()] == ["data"]
