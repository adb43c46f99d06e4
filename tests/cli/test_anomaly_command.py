"""imagegpt anomaly fit and score, on a tiny model, against the same in Python."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest

from anomalies import FPR, fitted, noisy, striped, write
from imagegpt.anomaly import Detector
from imagegpt.anomaly.judging import judge
from imagegpt.anomaly.methods import METHODS
from imagegpt.cli.main import main
from imagegpt.metrics import auroc


@pytest.fixture(scope="module")
def home(tiny_folder, tmp_path_factory):
    """A folder with pictures of all kinds, and a detector."""
    home = tmp_path_factory.mktemp("anomaly")
    write(home / "normal", striped(80))
    write(home / "others", striped(12, seed=1))
    write(home / "odd", noisy(9))
    write(home / "one", striped(1))
    (home / "text").write_text("nothing")
    fitted(tiny_folder).save(home / "made.safetensors")
    return home


@pytest.fixture
def anomaly(capsys, home, monkeypatch):
    """Runs the command; its exit code, what it printed (JSON, read, if asked for), and its errors."""
    monkeypatch.chdir(home)

    def run(*arguments):
        code = main(["anomaly", *map(str, arguments), "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and not code else out, " ".join(err.split())

    return run


def test_fit_makes_the_detector_that_python_makes(anomaly, home, tiny_folder):
    arguments = ("fit", "--normal", "normal", "--model", tiny_folder, "--fpr", FPR, "--out", "fit.safetensors")
    code, told, err = anomaly(*arguments, "--json")
    assert (code, err) == (0, "")
    made, expected = Detector.load(home / "fit.safetensors", device="cpu"), fitted(tiny_folder)
    assert np.array_equal(made.fitted.heldout_HS, expected.fitted.heldout_HS)
    assert told["pictures"] == {"background": 40, "reference": 20, "held out": 20} and told["skipped"] == []
    for method, limit in made.thresholds().items():
        assert told["methods"][method]["threshold"] == limit
        assert told["methods"][method]["mean"] == pytest.approx(made.heldout[method].mean())
    code, out, _ = anomaly(*arguments, "--limit", 60, "--holdout", 0.5, "--seed", 3, "--compressor", "zlib")
    assert code == 0 and "density" in out and "20 background, 10 reference, 30 held out" in out
    assert Detector.load(home / "fit.safetensors", device="cpu").facts.seed == 3


def test_each_picture_gets_a_score(anomaly, home):
    code, told, err = anomaly("score", "made.safetensors", "odd", "--json")
    expected = Detector.load(home / "made.safetensors", device="cpu").score(noisy(9))
    assert (code, err) == (0, "")
    assert [image["image"] for image in told["images"]] == [f"odd/{number:03}.png" for number in range(9)]
    for name, values in (("score", expected.scores["density"]), ("p_value", expected.p_values["density"])):
        assert [image[name] for image in told["images"]] == pytest.approx(values.tolist(), rel=1e-4)
    for method in METHODS:
        found = [image[method] for image in told["images"]]
        assert found == pytest.approx(expected.scores[method].tolist(), rel=1e-4)
    assert told["pictures"] == told["flagged"] == 9 and told["fpr"] == FPR
    assert all(image["anomaly"] for image in told["images"])


def test_another_method_and_another_rate(anomaly, home):
    told = anomaly("score", "made.safetensors", "others", "--method", "typicality", "--fpr", 0.5, "--json")[1]
    expected = Detector.load(home / "made.safetensors", device="cpu").score(striped(12, seed=1), fpr=0.5)
    assert [image["anomaly"] for image in told["images"]] == expected.flagged("typicality").tolist()
    assert told["threshold"] == expected.thresholds["typicality"] and told["fpr"] == 0.5
    assert [image["score"] for image in told["images"]] == [image["typicality"] for image in told["images"]]


def test_people_get_a_table(anomaly):
    code, out, _ = anomaly("score", "made.safetensors", "odd", "--limit", 3)
    assert code == 0 and out.count("anomaly") == 3 and "odd/002.png" in out and "flagged" in out


def test_tables_of_many_pictures_come_one_by_one(anomaly, monkeypatch):
    monkeypatch.setattr("imagegpt.scoring.BATCH", 64)
    monkeypatch.setattr("imagegpt.cli.anomaly.TABLE", 70)
    assert anomaly("score", "made.safetensors", "normal")[1].count("p-value") == 2
    monkeypatch.setattr("imagegpt.cli.anomaly.TABLE", 80)
    assert anomaly("score", "made.safetensors", "normal")[1].count("p-value") == 1


def test_against_anomalies(anomaly, home):
    command = ("score", "made.safetensors", "others", "--against", "odd", "normal", "--out", "rows.csv")
    code, told, _ = anomaly(*command, "--json")
    detector = Detector.load(home / "made.safetensors", device="cpu")
    usual, odd = detector.score(striped(12, seed=1)), detector.score(noisy(9))
    assert code == 0 and [one["data"] for one in told["against"]] == ["odd", "normal"]
    found = {one["method"]: one for one in told["against"][0]["methods"]}
    assert list(found) == list(METHODS)
    for method, one in found.items():
        both = np.concatenate([usual.scores[method], odd.scores[method]])
        assert one["auroc"] == pytest.approx(auroc(both, np.repeat([0, 1], [12, 9])))
        assert one["found"] == odd.flagged(method).mean() and one["mistaken"] == usual.flagged(method).mean()
        lowest = np.sort(usual.scores[method])[11]  # at least 95 % of twelve are all
        assert one["fpr95"] == (odd.scores[method] <= lowest).mean()
    rows = list(csv.DictReader((home / "rows.csv").open()))
    assert [row["data"] for row in rows] == ["others"] * 12 + ["odd"] * 9 + ["normal"] * 80
    code, out, _ = anomaly(*command)
    assert code == 0 and "AUROC" in out and "FPR at 95 % TPR" in out and "typicality" in out


def test_rows_as_csv(anomaly, home):
    code, out, _ = anomaly("score", "made.safetensors", "others", "--csv", "--out", "rows.csv")
    assert code == 0 and out == (home / "rows.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(out)))
    expected = Detector.load(home / "made.safetensors", device="cpu").score(striped(12, seed=1))
    assert [float(row["density"]) for row in rows] == pytest.approx(expected.scores["density"].tolist(), rel=1e-4)
    assert [row["anomaly"] for row in rows] == [str(flag) for flag in expected.flagged()]


def test_bad_pictures_stop_it_or_are_left_out(anomaly, home, tiny_folder, tmp_path):
    spoiled = shutil.copytree(home / "normal", tmp_path / "spoiled")
    (spoiled / "007.png").write_bytes(b"nothing")
    for command in (
        ("fit", "--normal", spoiled, "--model", tiny_folder, "--fpr", FPR, "--out", "y.safetensors"),
        ("score", "made.safetensors", spoiled),
    ):
        code, _, err = anomaly(*command)
        assert code == 2 and "007.png" in err
        code, told, _ = anomaly(*command, "--on-error", "skip", "--json")
        assert code == 0 and len(told["skipped"]) == 1 and "007.png" in told["skipped"][0]
    code, out, err = anomaly("score", "made.safetensors", spoiled, "--on-error", "skip", "--csv")
    assert code == 0 and len(out.splitlines()) == 80 and "007.png" in err
    for path in spoiled.iterdir():
        path.write_bytes(b"nothing")
    code, _, err = anomaly("score", "made.safetensors", spoiled, "--on-error", "skip", "--out", "none.csv")
    assert code == 2 and "none of its 80 pictures can be read" in err and not (home / "none.csv").exists()


def test_bad_input(anomaly, home, tiny_folder):
    fit = ("fit", "--model", tiny_folder, "--out", "x.safetensors", "--normal")
    cases = [
        ((*fit, "one"), "1 normal pictures are too few"),
        ((*fit, "normal", "--fpr", 0), "above 0 and below 1"),
        ((*fit, "normal", "--fpr", 1), "above 0 and below 1"),
        ((*fit, "normal", "--fpr", 0.01), "0.01 needs 99 held-out normal pictures"),
        ((*fit, "normal", "--holdout", 1), "holdout must be a part"),
        ((*fit, "normal", "--limit", 0), "limit must be at least 1"),
        ((*fit, "normal", "--seed", -1), "seed must be at least 0"),
        ((*fit, "normal", "--compressor", "jpeg"), "jpeg"),
        ((*fit, "nowhere"), "there is no such file or folder"),
        ((*fit[:3], "--out", "x.txt", "--normal", "normal"), "ends in .safetensors"),
        ((*fit[:3], "--out", "nowhere/x.safetensors", "--normal", "normal"), "can't be written"),
        (("score", "made.safetensors", "nowhere"), "there is no such file or folder"),
        (("score", "nowhere.safetensors", "odd"), "There is no file nowhere.safetensors"),
        (("score", "odd", "made.safetensors"), "odd is a folder"),
        (("score", "odd/000.png", "odd"), "damaged or no safetensors file"),
        (("score", tiny_folder / "model.safetensors", "odd"), "is no anomaly detector"),
        (("score", "made.safetensors", "odd", "--model", "nano"), "fitted to another model"),
        (("score", "made.safetensors", "odd", "--model", "nowhere"), "There is no model"),
        (("score", "made.safetensors", "odd", "--fpr", 0.01), "0.01 needs 99"),
        (("score", "made.safetensors", "odd", "--fpr", 2), "above 0 and below 1"),
        (("score", "made.safetensors", "odd", "--method", "luck"), "luck"),
        (("score", "made.safetensors", "odd", "--against", "nowhere"), "there is no such file or folder"),
        (("score", "made.safetensors", "odd", "--out", "x.txt"), "ends in .csv"),
        (("score", "made.safetensors", "odd", "--csv", "--json"), "not both"),
        (("score", "made.safetensors"), "DATA"),
    ]
    for arguments, words in cases:
        code, out, err = anomaly(*arguments)
        assert code == 2 and words in err and "Traceback" not in err and not out, (arguments, err)
    assert not (home / "x.safetensors").exists() and not (home / "x.csv").exists()


def test_a_model_that_was_moved_is_named(anomaly, home, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "there")
    fit = ("fit", "--normal", "normal", "--model", model, "--fpr", FPR, "--out", "moved.safetensors")
    assert anomaly(*fit)[0] == 0
    moved = model.rename(tmp_path / "elsewhere")
    code, _, err = anomaly("score", "moved.safetensors", "odd")
    assert code == 2 and "there" in err
    assert anomaly("score", "moved.safetensors", "odd", "--model", moved)[0] == 0


def test_judging_is_the_same_for_the_command_and_for_python():
    normal = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([1.0, 1.0, 1.0])}
    odd = {"a": np.array([2.0, 3.0]), "b": np.array([1.0, 1.0])}
    first, second = judge(normal, odd, {"a": 1.5, "b": 0.5})
    assert (first.method, first.auroc, first.fpr95) == ("a", 5.5 / 6, 0.5)
    assert (first.found, first.mistaken) == (1, pytest.approx(1 / 3))
    assert (second.auroc, second.fpr95, second.found, second.mistaken) == (0.5, 1, 1, 1)
