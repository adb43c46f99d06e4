"""imagegpt evaluate, against scikit-learn's measures of what the network says in torch."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn

from classifiers import CLASSES, MULTI, REGRESSION, T, change, configure, ids_of, make, pictures, save_pictures
from imagegpt.classifier import Classifier, hidden_ids
from imagegpt.cli.main import main
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.model.losses import id_loss
from making import tokenise

NAMES = ("gnu", "cat", "hen", "eel", "cat", "gnu", "dog", "hen", "cat")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures in folders of four of the seven classes, so that their numbers are others."""
    return save_pictures(tmp_path_factory.mktemp("data"), pictures(len(NAMES)), list(NAMES))


@pytest.fixture
def evaluate(capsys, tmp_path, monkeypatch):
    """Runs the command; its exit code, what it printed (JSON, read, if asked for), and its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["evaluate", *map(str, arguments), "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and not code else out, " ".join(err.split())

    return run


def network(folder, kind=ImageGPTForImageClassification):
    return kind.from_pretrained(folder).eval()


@torch.no_grad()
def logits_of(folder, ids):
    return network(folder)(torch.from_numpy(ids)).logits


def ids_and_labels(folder, data):
    paths = sorted(data.rglob("*.png"))
    ids = Classifier.from_pretrained(folder).encode(paths)
    return ids, np.array([CLASSES.index(path.parent.name) for path in paths])


def tokens(folder, ids, labels, model):
    """A tokenised folder; with `classes` names of the data's classes."""
    codec = Classifier.from_pretrained(model).codec.fingerprint
    return tokenise(folder, ids.astype(np.uint16), labels, codec=codec, grid=[8, 8], classes=[])


def nll(logits, y):
    return float(torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(y)))


def calibration_error(probabilities, y):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    total = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(y)


def test_everything_is_scikit_learns(evaluate, model, data, tmp_path):
    code, told, err = evaluate(model, "--data", data, "--json")
    assert (code, err) == (0, "")
    ids, y = ids_and_labels(model, data)
    probabilities = logits_of(model, ids).softmax(1).numpy()
    guesses, numbers = probabilities.argmax(1), list(range(7))
    assert told["pictures"] == 9 and told["classes"] == list(CLASSES)
    assert told["top1"] == pytest.approx(sklearn.accuracy_score(y, guesses))
    assert told["top5"] == pytest.approx(sklearn.top_k_accuracy_score(y, probabilities, k=5, labels=numbers))
    assert told["confusion"] == sklearn.confusion_matrix(y, guesses, labels=numbers).tolist()
    assert told["nll"] == pytest.approx(nll(logits_of(model, ids), y), abs=1e-4)
    assert told["brier"] == pytest.approx(np.square(probabilities - np.eye(7)[y]).sum(1).mean(), abs=1e-4)
    assert told["calibration_error"] == pytest.approx(calibration_error(probabilities, y), abs=1e-4)
    expected = [(guesses[y == at] == at).mean() if (y == at).any() else None for at in numbers]
    assert told["accuracy_per_class"] == expected and None in expected
    with torch.no_grad():
        drawing = network(model, ImageGPTForCausalImageModeling)
        assert told["nats_per_token"] == pytest.approx(float(drawing.image_loss(torch.from_numpy(ids))), abs=1e-4)
    kept = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert {name: told[name] for name in kept} == kept
    assert sorted(told["written"]) == sorted(f"evaluation/{path.name}" for path in (tmp_path / "evaluation").iterdir())
    for name in ("confusion", "reliability"):
        with Image.open(f"evaluation/{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_people_get_tables(evaluate, model, data):
    code, out, _ = evaluate(model, "--data", data, "--out", "made/here", "--no-nats")
    assert code == 0
    for words in ("top1", "calibration_error", "gnu", "accuracy", "made/here/confusion.png"):
        assert words in out
    assert "nats" not in out and "ibex" not in out  # of which there are no pictures


@pytest.mark.parametrize("draws", [False, True])
def test_nats_only_where_they_can_be_told(evaluate, tmp_path, data, draws):
    folder = make(tmp_path / "model", start=False, draws=draws)
    told = evaluate(folder, "--data", data, "--json")[1]
    assert ("nats_per_token" in told) == draws
    if draws:  # it draws behind SOS, whatever the class head reads
        ids = torch.from_numpy(ids_and_labels(folder, data)[0])
        with torch.no_grad():
            expected = float(network(folder, ImageGPTForCausalImageModeling).image_loss(ids))
        assert told["nats_per_token"] == pytest.approx(expected, abs=1e-4)


def test_a_bidirectional_model_is_asked_for_hidden_ids(evaluate, tmp_path, data):
    folder = make(tmp_path / "model", start=False, causal=False)
    code, told, _ = evaluate(folder, "--data", data, "--votes", 3, "--json")
    assert code == 0
    ids, _ = ids_and_labels(folder, data)
    drawing, total = network(folder, ImageGPTForCausalImageModeling), []
    for number, row in enumerate(torch.from_numpy(ids)):
        for copy in range(5):
            mask = torch.from_numpy(hidden_ids(0, np.array([number]), copy, T))[0]
            embedded = drawing.transformer.wte(row).masked_fill(mask[:, None], 0.0)
            with torch.no_grad():
                logits = drawing(inputs_embeds=embedded[None]).logits
            total.append(float(id_loss(logits[:, mask], row[None, mask], 16)))
    assert told["nats_per_token"] == pytest.approx(np.mean(total), abs=1e-4)


def test_views_and_limit(evaluate, model, data):
    told = evaluate(model, "--data", data, "--views", "flip", "--limit", 4, "--json", "--no-nats")[1]
    ids, y = ids_and_labels(model, data)
    probabilities = Classifier.from_pretrained(model, device="cpu").predict_ids(ids[:4], views="flip")
    assert told["pictures"] == 4 and told["views"] == "flip"
    assert told["nll"] == pytest.approx(nll(torch.from_numpy(probabilities).log(), y[:4]), abs=1e-4)


def test_ids_are_judged_as_their_pictures(evaluate, model, data, tmp_path):
    ids, y = ids_and_labels(model, data)
    folder = tokens(tmp_path / "tokens", ids, y, model)
    found = [evaluate(model, "--data", given, "--json")[1] for given in (data, folder)]
    for name in ("top1", "top5", "nll", "nats_per_token"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-6)
    assert found[0]["confusion"] == found[1]["confusion"]


def test_several_labels(evaluate, tmp_path):
    model = make(tmp_path / "model", problem=MULTI)
    ids = ids_of(12)  # no two are equal, and neither are their scores
    truth = np.random.default_rng(0).integers(0, 2, (len(ids), 7))
    truth[:, 3] = 0  # an eel is nowhere
    code, told, _ = evaluate(model, "--data", tokens(tmp_path / "tokens", ids, truth, model), "--json")
    probabilities = logits_of(model, ids).sigmoid().numpy()
    there = [at for at in range(7) if at != 3]
    expected = sklearn.average_precision_score(truth[:, there], probabilities[:, there], average="macro")
    assert code == 0 and told["mean_average_precision"] == pytest.approx(expected)
    assert told["f1"] == pytest.approx(sklearn.f1_score(truth, probabilities >= 0.5, average="micro"))
    assert told["exact_match"] == pytest.approx(sklearn.accuracy_score(truth, probabilities >= 0.5))
    assert told["average_precision_per_class"][3] is None and "confusion" not in told
    assert "average precision" in evaluate(model, "--data", tmp_path / "tokens")[1]


@pytest.mark.parametrize("classes", [("age",), ("age", "size")])
def test_numbers(evaluate, tmp_path, classes):
    model = make(tmp_path / "model", classes, REGRESSION)
    ids = ids_of(12)  # no two are equal, and neither are their scores
    target = np.random.default_rng(0).normal(size=(len(ids), len(classes)))
    labels = target[:, 0] if len(classes) == 1 else target
    code, told, _ = evaluate(model, "--data", tokens(tmp_path / "tokens", ids, labels, model), "--json")
    logits = logits_of(model, ids).numpy()
    assert code == 0
    assert told["mse"] == pytest.approx(sklearn.mean_squared_error(target, logits), rel=1e-4)
    assert told["mae"] == pytest.approx(sklearn.mean_absolute_error(target, logits), rel=1e-4)
    assert told["r2"] == pytest.approx(sklearn.r2_score(target, logits), rel=1e-4)
    assert evaluate(model, "--data", tmp_path / "tokens")[0] == 0


def test_bad_pictures_stop_it_or_are_left_out_with_their_labels(evaluate, model, data, tmp_path):
    spoiled = shutil.copytree(data, tmp_path / "spoiled")
    first = sorted(spoiled.rglob("*.png"))[0]
    first.write_bytes(b"nothing")
    code, _, err = evaluate(model, "--data", "spoiled")
    assert code == 2 and first.name in err
    told = evaluate(model, "--data", "spoiled", "--on-error", "skip", "--json", "--no-nats")[1]
    ids, y = ids_and_labels(model, data)
    assert told["pictures"] == 8 and first.name in told["skipped"][0]
    assert told["nll"] == pytest.approx(nll(logits_of(model, ids[1:]), y[1:]), abs=1e-4)
    for path in spoiled.rglob("*.png"):
        path.write_bytes(b"nothing")
    code, _, err = evaluate(model, "--data", "spoiled", "--on-error", "skip")
    assert code == 2 and "none of its 9 pictures can be read" in err


def test_bad_input(evaluate, model, data, tmp_path):
    save_pictures(tmp_path / "zoo", pictures(2), ["cat", "zebra"])
    (tmp_path / "file").write_text("")
    cases = [
        ((model, "--data", "zoo"), "pictures of the class zebra, which the model does not know: it knows cat, dog"),
        ((model, "--data", "zoo/cat"), "zoo/cat has no labels: give class folders"),
        (("nano", "--data", data), "no class head (score.weight): make one with `imagegpt finetune`"),
        ((model, "--data", "nowhere"), "there is no such file or folder"),
        (("nowhere", "--data", data), "There is no model"),
        ((model, "--data", data, "--votes", 5), "no bidirectional (BERT) classifier"),
        ((model, "--data", data, "--out", "file"), "file"),
        ((model, "--data", data, "--limit", 0), "limit must be at least 1"),
    ]
    for arguments, words in cases:
        code, out, err = evaluate(*arguments)
        assert code == 2 and words in err and "Traceback" not in err and not out, err
    assert not (tmp_path / "evaluation").exists()


def test_targets_that_are_no_numbers(evaluate, tmp_path, data):
    model = make(tmp_path / "model", ("age",), REGRESSION)
    ids, _ = ids_and_labels(model, data)
    labels = np.arange(9.0)
    labels[4] = np.nan
    code, _, err = evaluate(model, "--data", tokens(tmp_path / "tokens", ids, labels, model))
    assert code == 2 and "record 4 has the label nan" in err


def test_damaged_models(evaluate, tmp_path, data):
    model = make(tmp_path / "model")
    change(model, **{"score.weight": torch.full((7, 32), torch.inf)})
    code, _, err = evaluate(model, "--data", data)
    assert code == 2 and "not finite" in err
    configure(model, id2label={"0": "cat"})
    code, _, err = evaluate(model, "--data", data)
    assert code == 2 and "at least two classes" in err


def test_no_matplotlib_no_pictures(evaluate, model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    code, told, err = evaluate(model, "--data", data, "--no-nats", "--json")
    assert code == 0 and "imagegpt[plot]" in err
    assert told["written"] == ["evaluation/evaluation.json"]
