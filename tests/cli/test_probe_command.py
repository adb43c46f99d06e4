"""imagegpt probe and imagegpt classify, end to end on pictures whose classes are plain to see."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from imagegpt.checkpoint import fingerprint
from imagegpt.cli.main import main
from imagegpt.extraction import Extraction
from imagegpt.probe.probe_file import load_probe

CLASSES = {"dark": (0, 90), "light": (165, 255)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve training and eight test pictures of each class, by split."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for name, (low, high) in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(low, high, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def probe(place, data, tiny_folder, capsys):
    """Runs the command on the data; its exit code, what it printed, and its errors."""

    def run(*arguments, train="train", test="test"):
        sides = ["--train", f"{data}:{train}" if train in ("train", "test") else train]
        sides += ["--test", f"{data}:{test}" if test in ("train", "test") else test]
        code = main(["probe", *sides, "--model", str(tiny_folder), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_curve(probe, place):
    code, out, err = probe("--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["name"] for row in told["rows"]] == ["pixels", "0", "1", "2"]
    assert told["rows"][0]["baseline"] and told["rows"][0]["metrics"]["top1"] == 1
    assert told["top1"] == 1 and told["best"] in ("0", "1", "2")
    assert {path.name for path in (place / "probe").iterdir()} == {
        *("curve.json", "curve.png", "confusion.png", "probe.safetensors")
    }
    kept = json.loads((place / "probe/curve.json").read_text())
    assert kept["rows"] == told["rows"] and kept["classes"] == list(CLASSES)
    assert (kept["train"]["count"], kept["test"]["count"]) == (24, 16)


def test_people_get_a_table(probe):
    code, out, _ = probe("--layers", "1", "--out", "made")
    assert code == 0
    assert "pixels" in out and "100.00" in out and "probe.safetensors" in out


def test_the_second_run_only_fits(probe, monkeypatch):
    assert probe()[0] == 0

    def never(*_, **__):
        raise AssertionError("features were made again")

    monkeypatch.setattr(Extraction, "run", never)
    code, out, _ = probe("--out", "other", "--solver", "sgd", "--json")
    assert code == 0 and json.loads(out)["rows"][1]["solver"] == "sgd"


def test_finished_rows_are_not_fitted_again(probe, monkeypatch):
    first = probe("--json")[1]
    monkeypatch.setattr("imagegpt.probe.sweep.measure", None)
    assert json.loads(probe("--json")[1])["rows"] == json.loads(first)["rows"]
    with pytest.raises(TypeError):  # other settings are another study
        probe("--seed", 1)


def test_options(probe):
    code, out, _ = probe(
        *("--layers", "1,2", "--concatenate", "1,2", "--no-pixels", "--no-knn", "--no-ridge"),
        *("--labels-per-class", "2,4", "--folds", 2, "--json"),
    )
    told = json.loads(out)
    assert code == 0
    assert [row["name"] for row in told["rows"]] == ["1", "2", "1+2"]
    assert {(row["knn"], row["ridge"]) for row in told["rows"]} == {(None, None)}
    assert [row["labels_per_class"] for row in told["low_data"]] == [2, 4]
    assert all(len(row["accuracies"]) == 2 and row["deviation"] is not None for row in told["low_data"])


def test_files_of_features(probe, data, tiny_folder, place, capsys):
    for split in ("train", "test"):
        assert main(["features", f"{data}:{split}", "--layer", "all", "--out", f"{split}.safetensors",
                     "--model", str(tiny_folder)]) == 0  # fmt: skip
    capsys.readouterr()
    code, out, _ = probe("--json", train="train.safetensors", test="test.safetensors")
    from_files = json.loads(out)
    assert code == 0
    from_pictures = json.loads(probe("--json", "--no-pixels", "--out", "other")[1])
    assert [row["metrics"] for row in from_files["rows"]] == [row["metrics"] for row in from_pictures["rows"]]
    assert load_probe(place / "probe/probe.safetensors").fingerprint == fingerprint(tiny_folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "7"], "layer must be 0 to 2"),
        (["--layers", "x"], "Layers are a number"),
        (["--concatenate", "1,a"], "--concatenate: give numbers"),
        (["--layers", "1", "--concatenate", "1,2"], "no features of 2"),
        (["--labels-per-class", "0"], "labels_per_class must be at least 1"),
        (["--labels-per-class", "13"], "13 labels a class are asked for"),
        (["--labels-per-class", "4,"], "--labels-per-class: give numbers"),
        (["--folds", "0"], "--folds must be at least 1"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--label-column", "x"], "has no columns"),
    ],
)
def test_bad_input(probe, arguments, words):
    code, out, err = probe(*arguments)
    assert code == 2 and words in " ".join(err.split()) and "Traceback" not in out + err


def test_data_without_labels(probe, data):
    code, _, err = probe(test=str(data / "test/dark"))
    assert code == 2 and "has no labels" in " ".join(err.split())


def test_other_classes(probe, data, place):
    shutil.copytree(data / "test", place / "renamed")
    (place / "renamed/dark").rename(place / "renamed/black")
    code, _, err = probe(test="renamed")
    assert code == 2 and "other classes: dark, light and black, light" in " ".join(err.split())


def test_features_of_one_side_only(probe):
    code, _, err = probe(test="x.safetensors")
    assert code == 2 and "for both" in err


def test_no_matplotlib_no_pictures(probe, place, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    code, _, err = probe("--layers", "1")
    assert code == 0 and "imagegpt[plot]" in " ".join(err.split())
    assert (place / "probe/probe.safetensors").exists() and not (place / "probe/curve.png").exists()
