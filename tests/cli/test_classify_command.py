"""imagegpt classify: by a class head, or by a probe; pictures, or DATA."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from classifiers import CLASSES, MULTI, REGRESSION, make, pictures, save_pictures
from imagegpt.classifier import Classifier
from imagegpt.cli import classify as verb
from imagegpt.cli.main import main
from making import samples, shard, tokenise

LEVELS = {"dark": (0, 90), "light": (165, 255)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("data"), pictures(6), ["cat", "dog"] * 3)


@pytest.fixture
def classify(capsys, tmp_path, monkeypatch):
    """Runs the command; its exit code, what it printed (JSON, read, if asked for), and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEGPT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        code = main(["classify", *map(str, arguments), "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and not code else out, " ".join(err.split())

    return run


def check(entries, folder, paths, top, **how):
    """Against the library."""
    expected = Classifier.from_pretrained(folder, device="cpu").predict(paths, **how)
    assert [entry["image"] for entry in entries] == list(map(str, paths))
    for entry, row in zip(entries, expected, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        assert list(entry["classes"]) == [CLASSES[at] for at in best]
        np.testing.assert_allclose(list(entry["classes"].values()), row[best], atol=1e-5)


@pytest.mark.parametrize("views", ["none", "ten"])
def test_pictures_and_their_folder_are_told_the_same(classify, model, folder_of_pictures, views):
    paths = sorted(folder_of_pictures.rglob("*.png"))
    for given in (paths, [folder_of_pictures]):
        code, told, err = classify(*given, "--model", model, "--views", views, "--top", 2, "--json")
        assert (code, err) == (0, "")
        check(told["images"], model, paths, 2, views=views)
        assert (told["views"], told["skipped"], told["model"]) == (views, [], str(model))


def test_one_picture_is_a_picture_and_a_limit_counts(classify, model, folder_of_pictures):
    paths = sorted(folder_of_pictures.rglob("*.png"))
    check(classify(paths[0], "--model", model, "--json")[1]["images"], model, paths[:1], 3)
    check(classify(*paths, "--limit", 2, "--model", model, "--json")[1]["images"], model, paths[:2], 3)
    check(classify(folder_of_pictures, "--limit", 2, "--model", model, "--json")[1]["images"], model, paths[:2], 3)


def test_shards_arrays_and_ids(classify, model, tmp_path):
    shard(tmp_path / "a.tar", samples([0, 1, 2], [0, 1, 0]))
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(3)))
    codec = Classifier.from_pretrained(model).codec
    ids = np.random.default_rng(0).integers(0, 16, (3, 64)).astype(np.uint16)
    tokenise(tmp_path / "tokens", ids, codec=codec.fingerprint, grid=[8, 8])
    for data in ("a.tar", "a.npz", "tokens"):
        code, told, _ = classify(data, "--model", model, "--json")
        assert code == 0 and len(told["images"]) == 3
        assert all(data in entry["image"] for entry in told["images"])


def test_people_get_a_table_and_many_pictures_one_after_another(classify, model, folder_of_pictures, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # long paths are cut elsewhere
    code, out, _ = classify(folder_of_pictures, "--model", model, "--top", 1)
    assert code == 0 and out.count("probability") == 1 and out.count("png") == 6
    monkeypatch.setattr(verb, "BATCH", 4)
    code, again, _ = classify(folder_of_pictures, "--model", model, "--top", 1)
    assert code == 0 and again.split() == out.split()  # one batch of 256, printed as soon as it is there


def test_many_labels_are_marked_and_numbers_are_told(classify, tmp_path, folder_of_pictures):
    several = make(tmp_path / "several", problem=MULTI)
    code, told, _ = classify(folder_of_pictures, "--model", several, "--top", 7, "--json")
    assert code == 0 and told["problem"] == MULTI
    for entry in told["images"]:
        assert set(entry["labels"]) == {name for name, value in entry["classes"].items() if value >= 0.5}
    assert {0} < {len(entry["labels"]) for entry in told["images"]} | {0}  # not all are empty
    marks = classify(folder_of_pictures, "--model", several, "--top", 7)[1].count(" *")
    assert marks == sum(len(entry["labels"]) for entry in told["images"])

    numbers = make(tmp_path / "numbers", ("age", "height"), REGRESSION)
    told = classify(folder_of_pictures, "--model", numbers, "--json")[1]["images"]
    expected = Classifier.from_pretrained(numbers).predict([entry["image"] for entry in told])
    np.testing.assert_allclose([list(entry["values"].values()) for entry in told], expected, atol=1e-4)
    assert all(list(entry["values"]) == ["age", "height"] for entry in told)
    assert "number" in classify(folder_of_pictures, "--model", numbers)[1]


def test_votes(classify, tmp_path, folder_of_pictures):
    bert = make(tmp_path / "bert", start=False, causal=False)
    told = classify(folder_of_pictures, "--model", bert, "--votes", 3, "--seed", 2, "--json")[1]
    check(told["images"], bert, [entry["image"] for entry in told["images"]], 3, votes=3, seed=2)


def test_bad_pictures_are_named_or_left_out(classify, model, folder_of_pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    good = sorted(folder_of_pictures.rglob("*.png"))[0]
    code, _, err = classify(good, "bad.png", "--model", model)
    assert code == 2 and "bad.png" in err and "Traceback" not in err
    code, told, _ = classify(good, "bad.png", "--model", model, "--on-error", "skip", "--json")
    assert code == 0 and len(told["images"]) == 1 and "bad.png" in told["skipped"][0]
    code, out, _ = classify("bad.png", "--model", model, "--on-error", "skip")
    assert code == 0 and "skipped: bad.png" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Give --model DIR, a model with a class head, or --probe FILE"),
        (("--model", "nano"), "no class head (score.weight): make one with `imagegpt finetune`"),
        (("--model", "{model}", "--votes", "5"), "no bidirectional (BERT) classifier"),
        (("--model", "{model}", "--top", "0"), "--top must be at least 1"),
        (("--model", "{model}", "--limit", "0"), "limit must be at least 1"),
        (("--model", "{model}", "--views", "nine"), "nine"),
        (("--model", "nothing-here"), "There is no model"),
        (("--probe", "p.safetensors", "--views", "ten"), "are for models with a class head"),
        (("--probe", "p.safetensors"), "There is no probe"),
    ],
)
def test_bad_input(classify, model, folder_of_pictures, arguments, words):
    code, out, err = classify(folder_of_pictures, *(part.format(model=model) for part in arguments))
    assert code == 2 and words in err and "Traceback" not in err and not out


def test_a_folder_among_pictures(classify, model, folder_of_pictures):
    code, _, err = classify(folder_of_pictures, folder_of_pictures, "--model", model)
    assert code == 2 and "give picture files, or one folder alone" in err


def test_damaged_weights(classify, tmp_path, folder_of_pictures):
    broken = make(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:900])
    code, _, err = classify(folder_of_pictures, "--model", broken)
    assert code == 2 and "damaged" in err


# --- by a probe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("levels"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 8)):
        for name, (low, high) in LEVELS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(low, high, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def probe(data, tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe")
    sides = ["--train", f"{data}:train", "--test", f"{data}:test", "--layers", "1,2", "--concatenate", "1,2"]
    assert main(["probe", *sides, "--model", str(tiny_folder), "--no-pixels", "--out", str(out)]) == 0
    return out / "probe.safetensors"


def test_a_probe_tells_classes(classify, probe, data):
    pictures = [data / "test/light/0.png", data / "test/dark/1.png"]
    code, told, _ = classify(*pictures, "--probe", probe, "--json")
    assert code == 0 and told["probe"] == str(probe)
    assert [(entry["image"], next(iter(entry["classes"]))) for entry in told["images"]] == [
        *((str(pictures[0]), "light"), (str(pictures[1]), "dark"))
    ]
    for entry in told["images"]:
        assert sum(entry["classes"].values()) == pytest.approx(1, abs=1e-5)
        assert list(entry["classes"].values()) == sorted(entry["classes"].values(), reverse=True)
    code, out, _ = classify(*pictures, "--probe", probe, "--top", "1")
    assert code == 0 and "light" in out and "dark" in out


def test_a_probe_takes_data_too(classify, probe, data, tmp_path, monkeypatch):
    code, told, _ = classify(f"{data}:test", "--probe", probe, "--top", 1, "--json")
    names = [next(iter(entry["classes"])) for entry in told["images"]]
    assert code == 0 and names == ["dark"] * 8 + ["light"] * 8
    (tmp_path / "bad.png").write_bytes(b"nothing")
    code, told, _ = classify("bad.png", "--probe", probe, "--on-error", "skip", "--json")
    assert code == 0 and told["images"] == [] and len(told["skipped"]) == 1


def test_a_probe_refuses_another_model(classify, probe, data, folder):
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    code, _, err = classify(data / "test/light/0.png", "--probe", probe, "--model", folder)
    assert code == 2 and "another model" in err


@pytest.mark.parametrize("content", [b"", b"no probe"])
def test_what_is_no_probe(classify, data, tmp_path, content):
    (tmp_path / "p.safetensors").write_bytes(content)
    code, _, err = classify(data / "test/light/0.png", "--probe", "p.safetensors")
    assert code == 2 and "p.safetensors" in err and "Traceback" not in err
