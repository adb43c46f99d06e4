"""imagegpt finetune: what it makes of models, classes and labels of every kind, and what it refuses in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import imagegpt
from classifiers import MULTI, REGRESSION, SINGLE, configure
from imagegpt import ImageGPT
from imagegpt.classifier import Classifier
from imagegpt.cli.main import main
from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError
from imagegpt.metrics import average_precision
from imagegpt.train.finetune_recipe import FinetuneRecipe
from making import tokenise
from registering import registered
from training_runs import CODEC, checkpoints, classes, column, command, finetune_command, lit_pictures, log, tokens

HEAD = "score.weight"


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_folder) -> Path:
    """A folder to work in, with a model and ids in two classes in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    Path("tiny").symlink_to(tiny_folder)
    classes(Path("tokens"), 48)
    classes(Path("judge"), 24, 1)
    return tmp_path


def run(*more: str | int | float, model: str = "tiny", data: str = "tokens", out: str = "run") -> int:
    """Twelve updates, two epochs of the tokens."""
    return main(finetune_command(model, data, out, "--validation", "judge", "--epochs", 2, *more))


def made_by(out: str = "run") -> dict[str, Any]:
    return json.loads(Path(out, "model", "training.json").read_text())


def config_of(out: str = "run") -> dict[str, Any]:
    return json.loads(Path(out, "model", "config.json").read_text())


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


# What it makes and prints.


def test_what_is_printed_and_kept(place, capsys):
    assert run() == 0
    captured = capsys.readouterr()
    best = made_by()["best"]
    assert captured.out.startswith("run/model: 12 updates in ")
    assert captured.out.endswith(f"best validation {100 * best['accuracy']:.2f} % accuracy at update {best['step']}\n")
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["update 0 of 12", "update 6", "update 12"]
    assert "48 pictures, 1 x cpu" in lines[0]
    for line, record in zip(lines[1:], log("run", "validation"), strict=True):
        told = f"{100 * record['accuracy']:.2f} % accuracy, {record['class_loss']:.4f} class loss"
        assert f": {told}, {record['nats_per_token']:.4f} nats/token on validation" in line
    assert sorted(path.name for path in Path("run").iterdir()) == ["checkpoints", "log.jsonl", "model", "recipe.yaml"]
    assert sorted(path.name for path in Path("run/model").iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json", "training.json")
    ]
    config = config_of()
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert config["label2id"] == {"cat": 0, "dog": 1}
    assert (config["problem_type"], config["classifier_start"]) == (SINGLE, True)
    assert config["architectures"] == ["ImageGPTForImageClassification"]
    assert made_by()["recipe"]["grid"] == "8x8"


def test_json(place, capsys):
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    record = max(log("run", "validation"), key=lambda record: record["accuracy"])
    assert found["best"] == {"step": record["step"], "accuracy": record["accuracy"]}
    assert found["published"] == record["step"]
    assert found["model"] == "run/model"
    assert found["notes"] == []
    assert found["trained"] == sum(tensor.numel() for tensor in weights("run/model").values())


def test_a_recipe_in_yaml(place):
    values = {"model": "tiny", "train": "tokens", "validation": "judge", "epochs": 3, "layer": 1, "generative": 0}
    Path("mine.yaml").write_text(yaml.safe_dump({**values, "augment": "none", "batch": 8, "lr": "1e-2"}))
    assert main(["finetune", "--recipe", "mine.yaml", "--out", "run", "--device", "cpu", "--steps", "5"]) == 0
    kept = FinetuneRecipe.load("run/recipe.yaml")
    assert (kept.optimization.steps, kept.optimization.epochs, kept.optimization.lr) == (5, None, 0.01)
    assert (kept.head.layer, kept.head.generative, kept.data.validation) == (1, 0, "judge")
    assert config_of()["n_layer"] == 1
    assert main(["finetune", "--recipe", "run/recipe.yaml", "--out", "again"]) == 0
    assert weights("run/model").keys() == weights("again/model").keys()
    assert Path("run/model/model.safetensors").read_bytes() == Path("again/model/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", sorted(FinetuneRecipe.shipped()))
def test_recipes_that_come_with_the_package(place, name, capsys):
    """Each runs, shortened and on a tiny model."""
    small = ["--steps", 2, "--batch", 4, "--device", "cpu", "--layer", 1, "--precision", "fp32", "--no-compile"]
    data = ["--train", "tokens", "--validation", "judge", "--model", "tiny", "--out", "run"]
    assert main(["finetune", "--recipe", name, *map(str, small), *data, "--validate-every", "1"]) == 0
    assert len(log("run", "validation")) == 2


def test_nothing_is_said_of_how_long(place):
    """Twenty epochs; these end after three validations that are no better than the first."""
    still = ["--lr", "1e-30", "--head-rate", 0]
    assert main(finetune_command("tiny", "tokens", "run", "--validation", "judge", *still)) == 0
    assert (made_by()["steps"], made_by()["step"], made_by()["published"]) == (20 * 6, 4 * 6, 6)


@pytest.mark.parametrize("more", [[], pytest.param(["--optimizer", "muon"], marks=pytest.mark.slow)], ids=" ".join)
def test_find_lr(place, capsys, more):
    assert run("--find-lr", *more) == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("run/lr.json").read_text())
    assert printed.startswith(f"--lr {found['lr']:.2g}")
    assert ("--muon-lr" in printed) == bool(more)
    rates, losses = zip(*found["curve"], strict=True)
    assert min(losses) < losses[0] - 1
    assert found["lr"] < rates[losses.index(min(losses))]
    assert not Path("run/checkpoints").exists()
    flags = printed.partition(" (")[0].split()
    assert run("--epochs", 4, *more, *flags) == 0
    assert column("run")[-1] < losses[0] - 1


def test_help_names_every_option(capsys):
    assert main(["finetune", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in FinetuneRecipe().flat():
        assert f"--{name.replace('_', '-')}" in printed


def test_tensorboard(place):
    pytest.importorskip("tensorboard")
    assert run("--tracker", "tensorboard", "--layer", 1, "--generative", 0) == 0  # nats/token is null there
    assert list(Path("run/tensorboard").glob("events.*"))


def test_samples_of_a_classifier_that_draws(place):
    assert run("--sample-every", 6, "--samples", 2) == 0
    assert len(list(Path("run/samples").iterdir())) == 2
    assert run(out="unwatched") == 0
    assert column("run") == column("unwatched")


# Which model it begins with.


def test_the_weights_are_the_models_and_the_classifier_is_new(place):
    assert run("--lr", "1e-30") == 0
    ours, theirs = weights("run/model"), weights("tiny")
    assert ours.pop(HEAD).abs().max() < 1e-20
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not log("run", "note")


@pytest.mark.parametrize("start", ["paper", "informed"])
def test_new_weights_for_comparison(place, capsys, start):
    assert run("--start", start, "--lr", "1e-30") == 0
    theirs = weights("tiny")
    ours = weights("run/model")
    assert not any(torch.equal(ours[name], theirs[name]) for name in theirs if "attn.c_attn.weight" in name)
    assert [record["sentence"] for record in log("run", "note")] == ["The weights are new, in the shape of tiny."]
    assert "The weights are new, in the shape of tiny." in capsys.readouterr().err


@pytest.fixture
def fine_tuned(place) -> Path:
    assert run(out="first") == 0
    return Path("first/model")


def test_the_same_classes_go_on(fine_tuned, capsys):
    capsys.readouterr()
    assert run("--lr", "1e-30", model=str(fine_tuned)) == 0
    sentence = "The classifier of first/model tells these classes already and goes on."
    assert [record["sentence"] for record in log("run", "note")] == made_by()["notes"] == [sentence]
    assert capsys.readouterr().err.count(sentence) == 1
    ours, theirs = weights("run/model"), weights(fine_tuned)
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    assert log("run", "validation")[0]["accuracy"] == made_by("first")["best"]["accuracy"]


@pytest.mark.parametrize(
    ("names", "count"), [(["dog", "cat"], 2), (["cat", "emu"], 2), (["cat", "dog", "emu"], 3)], ids=str
)
def test_other_classes_begin_anew_on_the_same_network(fine_tuned, names, count):
    for name, seed in (("other", 0), ("judge", 1)):
        shutil.rmtree(name, ignore_errors=True)
        classes(Path(name), 48, seed, classes=names)
        np.save(f"{name}/labels.npy", np.arange(48) % count)
    assert run("--lr", "1e-30", model=str(fine_tuned), data="other") == 0
    ours, theirs = weights("run/model"), weights(fine_tuned)
    assert ours[HEAD].shape == (count, 32)
    assert ours.pop(HEAD).abs().max() < 1e-20
    assert theirs.pop(HEAD).any()
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    assert list(config_of()["id2label"].values()) == names
    assert not log("run", "note")


def test_another_problem_begins_anew(fine_tuned):
    for name, count in (("tokens", 48), ("judge", 24)):
        np.save(f"{name}/labels.npy", np.random.default_rng(count).integers(0, 2, (count, 2)))
    assert run("--lr", "1e-30", model=str(fine_tuned)) == 0
    assert weights("run/model")[HEAD].abs().max() < 1e-20
    assert config_of()["problem_type"] == MULTI


def test_a_classifier_of_a_checkpoint_and_one_that_draws_no_more(place):
    """A middle layer's classifier, fine-tuned again, without the loss of a head that it no longer has."""
    assert run("--layer", 1, out="first") == 0
    assert HEAD in weights("first/model")
    assert "lm_head.weight" not in weights("first/model")
    step = checkpoints("first")[-1]
    assert run(model=f"first/checkpoints/{step}", out="second") == 2
    assert run("--generative", 0, model=f"first/checkpoints/{step}", out="second") == 0
    assert "tells these classes already" in made_by("second")["notes"][0]
    assert column("second", "class_loss")[0] < column("first", "class_loss")[0]


# The result, opened in every way.


@pytest.fixture
def bert(place, tiny_folder) -> str:
    shutil.copytree(tiny_folder, "bert")
    configure(Path("bert"), is_causal=False)
    return "bert"


def stored(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def check_everyone_agrees(capsys, out: str, data: str) -> None:
    """The library, the command, transformers' class and its pipeline, on pictures; and `imagegpt evaluate`."""
    model, paths = f"{out}/model", stored(Path(data))
    names = list(config_of(out)["id2label"].values())
    expected = Classifier.from_pretrained(model, device="cpu").predict(paths)
    assert np.ptp(expected, 0).max() > 0.02, "all pictures are told the same"

    capsys.readouterr()
    assert main(["classify", *paths, "--model", model, "--top", str(len(names)), "--device", "cpu", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["images"]
    by_command = [[entry["classes"][name] for name in names] for entry in entries]
    np.testing.assert_allclose(by_command, expected, atol=1e-5)

    with registered():
        from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

        network = AutoModelForImageClassification.from_pretrained(model).eval()
        assert isinstance(network, imagegpt.ImageGPTForImageClassification)
        pixels = AutoImageProcessor.from_pretrained(model)([Image.open(path) for path in paths], return_tensors="pt")
        with torch.no_grad():
            logits = network(**pixels).logits
        np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-5)

        told = pipeline("image-classification", model=model, device="cpu")(paths, top_k=len(names))
        by_pipeline = [[{item["label"]: item["score"] for item in one}[name] for name in names] for one in told]  # type: ignore
        np.testing.assert_allclose(by_pipeline, expected, atol=1e-5)

    truth = [names.index(Path(path).parent.name) for path in paths]
    assert main(["evaluate", model, "--data", data, "--out", f"{out}/evaluation", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["top1"] == pytest.approx((expected.argmax(1) == truth).mean())
    assert report["classes"] == names
    best = made_by(out)["best"]["step"]
    [record] = [record for record in log(out, "validation") if record["step"] == best]
    assert report["top1"] == pytest.approx(record["accuracy"])
    assert report["nll"] == pytest.approx(record["class_loss"], abs=1e-4)
    if record["nats_per_token"] is not None and config_of(out).get("is_causal", True) and "nats_per_token" in report:
        assert report["nats_per_token"] == pytest.approx(record["nats_per_token"], abs=1e-4)


RESULTS = {
    "plain": [],
    "lora": ["--lora", "2"],
    "middle": ["--layer", "1"],
    "cut": ["--layer", "1", "--generative", "0"],
    "ema": ["--ema", "0.5"],
    "grid": ["--grid", "12x12"],
    "bert": ["--model", "bert"],
    "bert, grid": ["--model", "bert", "--grid", "10x6"],
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("middle", "bert", "grid"))) for kind in RESULTS],
)
def test_everyone_opens_it(place, bert, capsys, kind):
    pytest.importorskip("matplotlib")
    data = lit_pictures(place / "shown", 32), lit_pictures(place / "judged", 12, 100)
    more = ["--validation", data[1], "--epochs", 4, *RESULTS[kind]]
    assert main(finetune_command("tiny", data[0], "run", *more)) == 0
    assert column("run", "class_loss")[-1] < 0.6
    check_everyone_agrees(capsys, "run", data[1])
    if kind in ("middle", "cut"):
        with pytest.raises(InputError, match=r"lm_head\.weight"):
            ImageGPT.from_pretrained("run/model", device="cpu").sample(1)
    elif "bert" not in kind:
        model = ImageGPT.from_pretrained("run/model", device="cpu")
        assert np.asarray(model.sample(1, seed=0).images[0][0]).shape[:2] == model.grid


def test_another_grid(place, capsys):
    """Said in the output, in the log and beside the model."""
    data = lit_pictures(place / "shown", 16)
    assert run("--grid", "12x12", "--validation", data, data=data) == 0
    sentence = "The position embeddings are interpolated from 8 x 8 to 12 x 12."
    captured = capsys.readouterr()
    assert captured.err.count(sentence) == 1
    [note] = log("run", "note")
    assert (note["step"], note["sentence"]) == (0, sentence)
    assert made_by()["notes"] == [sentence]
    assert (config_of()["n_positions"], weights("run/model")["transformer.wpe.weight"].shape) == (144, (144, 32))
    assert np.load("run/data/train/ids.npy").shape == (16, 144)
    model = ImageGPT.from_pretrained("run/model", device="cpu")
    assert model.grid == (12, 12)
    assert model.framing == Framing(12, 12, crop="center")
    assert (
        run("--grid", "12x12", "--validation", data, "--epochs", 3, data=data) == 0
    )  # it goes on, and says it no more
    assert sentence not in capsys.readouterr().err
    assert len(log("run", "note")) == 1


# Several labels a picture, and numbers.


def lit_arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 8, 8, 3), and how bright their three colours are, (N, 3) from 0 to 1."""
    rng = np.random.default_rng(seed)
    light_NC = rng.random((count, 3))
    noise = rng.integers(0, 60, (count, 8, 8, 3))
    return (noise + 190 * light_NC[:, None, None]).astype(np.uint8), light_NC


@pytest.fixture
def data_of(place) -> Callable[[str, Callable[[np.ndarray], np.ndarray]], tuple[str, str]]:
    """A function: kind of files, labels of brightnesses -> training and validation data."""

    def make(kind: str, labels_of: Callable[[np.ndarray], np.ndarray]) -> tuple[str, str]:
        made = []
        for name, count, seed in (("shown", 64, 0), ("judged", 40, 1)):
            images, light_NC = lit_arrays(count, seed)
            if kind == "npz":
                np.savez(f"{name}.npz", images=images, labels=labels_of(light_NC))
                made.append(f"{name}.npz")
            else:
                ids = CODEC.encode(images).reshape(count, -1).astype(np.uint16)
                meta = {"codec": CODEC.fingerprint, "grid": [8, 8], "classes": ["red", "green", "blue"]}
                made.append(str(tokenise(Path(name), ids, labels_of(light_NC), **meta)))  # type: ignore
        return made[0], made[1]

    return make


@pytest.mark.parametrize("kind", [pytest.param("npz", marks=pytest.mark.slow), "tokens"])
def test_several_labels(data_of, capsys, kind):
    """Best by mean average precision, which is made here anew from the model's probabilities."""
    train, validation = data_of(kind, lambda light_NC: (light_NC > 0.5).astype(np.int64))
    assert run("--validation", validation, "--epochs", 8, "--class-weights", "balanced", data=train) == 0
    values = column("run", "average_precision", "validation")
    told = made_by()
    assert told["best"] == {"step": told["published"], "average_precision": max(values)}
    assert max(values) > values[0] + 0.1
    assert f"best validation {max(values):.4f} mean average precision at update" in capsys.readouterr().out
    names = ["red", "green", "blue"] if kind == "tokens" else ["0", "1", "2"]
    assert (list(config_of()["id2label"].values()), config_of()["problem_type"]) == (names, MULTI)
    images, light_NC = lit_arrays(40, 1)
    found = Classifier.from_pretrained("run/model", device="cpu").predict(list(images))
    assert average_precision(found, light_NC > 0.5).mean() == pytest.approx(max(values), abs=1e-6)
    scores = pytest.importorskip("sklearn.metrics").average_precision_score(light_NC > 0.5, found)
    assert scores == pytest.approx(max(values), abs=1e-6)
    assert main(["evaluate", "run/model", "--data", validation, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_average_precision"] == pytest.approx(max(values), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("npz", 1),
        pytest.param("npz", 3, marks=pytest.mark.slow),
        pytest.param("tokens", 1, marks=pytest.mark.slow),
        ("tokens", 3),
    ],
)
def test_numbers(data_of, capsys, kind, outputs):
    """Best by squared error, which is made here anew from what the model tells."""

    def labels_of(light_NC: np.ndarray) -> np.ndarray:
        return light_NC[:, 0] if outputs == 1 else light_NC

    train, validation = data_of(kind, labels_of)
    assert run("--validation", validation, "--epochs", 8, data=train) == 0
    values = column("run", "squared_error", "validation")
    told = made_by()
    assert told["best"] == {"step": told["published"], "squared_error": min(values)}
    assert min(values) < 0.6 * values[0]
    assert f"best validation {min(values):.4f} mean squared error at update" in capsys.readouterr().out
    assert (len(config_of()["id2label"]), config_of()["problem_type"]) == (outputs, REGRESSION)
    images, light_NC = lit_arrays(40, 1)
    found = Classifier.from_pretrained("run/model", device="cpu").predict(list(images))
    assert found.shape == (40, outputs)
    assert ((found - light_NC[:, :outputs]) ** 2).mean() == pytest.approx(min(values), abs=1e-6)
    assert main(["evaluate", "run/model", "--data", validation, "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mse"] == pytest.approx(min(values), abs=1e-6)


def test_whole_numbers_as_numbers(data_of):
    """An age is no class, if one says so."""
    train, validation = data_of("npz", lambda light_NC: (light_NC[:, 0] * 4).astype(np.int64))
    assert run("--validation", validation, "--problem", "regression", data=train) == 0
    assert config_of()["problem_type"] == REGRESSION
    assert run("--validation", validation, data=train, out="classes") == 0
    assert (config_of("classes")["problem_type"], len(config_of("classes")["id2label"])) == (SINGLE, 4)


def test_validation_pictures_whose_classes_have_other_numbers(place):
    """They are matched by name: folders that are ordered otherwise, and one class that is not judged."""
    data = lit_pictures(place / "shown", 16), lit_pictures(place / "judged", 12, 100)
    for number in range(4):
        Image.new("RGB", (8, 8), (250, 0, 0)).save(place / "shown" / "cat" / f"more-{number}.png")
    (place / "shown" / "ant").mkdir()
    for path in (place / "judged" / "cat").iterdir():
        Image.new("RGB", (8, 8), (250, 0, 0)).save(place / "shown" / "ant" / path.name)
    shutil.rmtree(place / "judged" / "cat")
    assert run("--validation", data[1], "--epochs", 6, data=data[0]) == 0
    assert list(config_of()["id2label"].values()) == ["ant", "cat", "dog"]
    truth = Classifier.from_pretrained("run/model", device="cpu").predict(stored(place / "judged")).argmax(1) == 2
    assert made_by()["best"]["accuracy"] == pytest.approx(truth.mean())


def test_pictures_that_can_not_be_read(place):
    """They are left out with their labels."""
    data = lit_pictures(place / "shown", 24), lit_pictures(place / "judged", 13, 100)
    for name in ("shown/cat/004.png", "judged/dog/003.png"):
        Path(name).write_bytes(b"no picture")
    assert run("--validation", data[1], data=data[0]) == 0
    assert (made_by()["skipped"], made_by()["pictures"]) == (2, 23)
    assert column("run", "pictures", "validation") == [12] * len(log("run", "validation"))
    Path("judged/dog/003.png").unlink()
    assert main(["evaluate", "run/model", "--data", data[1], "--device", "cpu", "--out", "e", "--json"]) == 0
    assert json.loads(Path("e/evaluation.json").read_text())["top1"] == pytest.approx(made_by()["best"]["accuracy"])


# What it refuses.


def refused(capsys, *words: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert captured.err.splitlines()[-1] in (errors[0], "See: imagegpt --help")
    for word in words:
        assert word in errors[0]


def damage(labels_or_ids: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(labels_or_ids, change(np.load(labels_or_ids)))


def _nan(labels: np.ndarray) -> np.ndarray:
    labels = labels.astype(np.float32)
    labels[3] = np.nan
    return labels


def _large(ids: np.ndarray) -> np.ndarray:
    ids[5, 7] = 99
    return ids


LABELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "an unknown class in validation": (
        lambda: damage("judge/labels.npy", lambda labels: labels + 1),
        ["judge has pictures of the class"],
    ),
    "one picture in a class": (
        lambda: damage("tokens/labels.npy", lambda labels: (np.arange(48) == 0).astype(int)),
        ["tokens: the class 'dog' has too few pictures, 1"],
    ),
    "all one class": (
        lambda: damage("tokens/labels.npy", np.zeros_like),
        ["tokens: all 48 pictures are of the class 'cat'"],
    ),
    "NaN": (lambda: damage("tokens/labels.npy", _nan), ["tokens: record 3 has the label nan"]),
    "NaN in validation": (lambda: damage("judge/labels.npy", _nan), ["judge: record 3 has the label nan"]),
    "no labels": (lambda: Path("tokens/labels.npy").unlink(), ["tokens has no labels"]),
    "no labels in validation": (lambda: Path("judge/labels.npy").unlink(), ["judge has no labels"]),
    "below 0": (lambda: damage("tokens/labels.npy", lambda labels: labels - 1), ["tokens", "-1"]),
    "the same numbers": (
        lambda: [
            damage(f"{name}/labels.npy", lambda labels: np.full(len(labels), 0.5)) for name in ("tokens", "judge")
        ],
        ["tokens: all pictures have the same label, 0.5"],
    ),
    "no label is ever true in validation": (
        lambda: [
            damage("tokens/labels.npy", lambda labels: np.eye(2, dtype=int)[labels]),
            damage("judge/labels.npy", lambda labels: np.zeros((24, 2), int)),
        ],
        ["judge: no picture has any label"],
    ),
    "numbers in validation alone": (lambda: damage("judge/labels.npy", lambda labels: labels + 0.5), ["judge"]),
    "several in validation alone": (
        lambda: damage("judge/labels.npy", lambda labels: np.eye(2, dtype=int)[labels]),
        ["judge"],
    ),
    "ids that are no colours": (lambda: damage("judge/ids.npy", _large), ["judge, row 5: id 99 is no colour"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_can_not_be_used(place, capsys, kind):
    spoil, words = LABELS[kind]
    spoil()
    assert run() == 2
    refused(capsys, *words)
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize("kind", ["class", "one", "all one", "none", "none to judge", "NaN"])
def test_labels_are_looked_at_before_ids_are_made(place, capsys, kind):
    """Which takes hours, of a large data set."""
    data = [lit_pictures(place / "shown", 16), lit_pictures(place / "judged", 8)]
    words: dict[str, list[str]] = {
        "class": ["judged has pictures of the class emu", "cat, dog"],
        "one": ["the class 'emu' has too few pictures, 1", "each must have 2"],
        "all one": ["all 8 pictures are of the class 'cat'"],
        "none": ["shown has no labels"],
        "none to judge": ["judged has no labels"],
        "NaN": ["shown.npz: record 2 has the label nan"],
    }
    if kind == "class":
        shutil.copytree("judged/dog", "judged/emu")
    elif kind == "one":
        Path("shown/emu").mkdir()
        shutil.copy("shown/cat/000.png", "shown/emu")
    elif kind == "all one":
        shutil.rmtree("shown/dog")
    elif kind in ("none", "none to judge"):
        folder = Path("shown" if kind == "none" else "judged")
        for path in stored(folder):
            shutil.move(path, folder)
    else:
        np.savez("shown.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=[0.5, 1, np.nan, 2])
        data[0] = "shown.npz"
    assert run("--validation", data[1], data=data[0]) == 2
    refused(capsys, *words[kind])
    assert not Path("run/data").exists()


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> Path:
    """The folder of a run of `imagegpt train`."""
    place = tmp_path_factory.mktemp("pretraining")
    assert main(command(tokens(place / "tokens", 8), place / "run", "--steps", 1)) == 0
    return place / "run"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "gone"], ["There is no model 'gone'"]),
        (["--model", "pretraining"], ["pretraining", "config.json"]),
        (["--model", "middle"], ["middle has no head that predicts ids: give --generative 0"]),
        (["--layer", "3"], ["--layer must be 1 to 2, the blocks of tiny, not 3"]),
        (["--layer", "0"], ["--layer must be 1 to 2"]),
        (["--freeze", "3"], ["--freeze must be 0 to 2"]),
        (["--layer", "1", "--freeze", "2"], ["--freeze must be 0 to 1"]),
        (["--lora", "2", "--freeze", "1"], ["--lora", "leave --freeze and --start out"]),
        (["--start", "informed", "--layer", "1", "--generative", "0"], ["--start informed needs the generative loss"]),
        (["--class-weights", "1,2,3"], ["--class-weights: 2 classes need as many numbers above 0, not '1,2,3'"]),
        (["--class-weights", "even"], ["--class-weights", "'even'"]),
        (["--smoothing", "1"], ["smoothing must be at least 0 and below 1"]),
        (["--generative", "-1"], ["generative must be at least 0"]),
        (["--mixup", "0.2", "--batch", "3"], ["--mixup mixes pairs"]),
        (["--mixup", "0.2", "--batch", "6", "--accumulate", "2"], ["--mixup mixes pairs"]),
        (["--probe-every", "3"], ["--probe-every is of `imagegpt train`"]),
        (["--layer", "1", "--sample-every", "3"], ["no head that draws: leave --sample-every out"]),
        (["--layer", "1", "--generative", "0", "--sample-every", "3"], ["leave --sample-every out"]),
        (["--recipe", "debug"], ["no recipe 'debug'", "It is one of `imagegpt train`"]),
        (["--recipe", "train.yaml"], ["train.yaml: a recipe has no 'size'"]),
        (["--recipe", "pretraining/recipe.yaml"], ["pretraining/recipe.yaml", "has no 'size'"]),
        (["--objective", "bert"], ["--objective"]),
        (["--problem", "multi"], ["shown", "row of 0 and 1"]),
        (["--batch", "17"], ["A batch of 17 is larger than the data set"]),
        (["--batch", "6", "--accumulate", "4"], ["A batch of 6 does not divide"]),
        (["--precision", "fp16"], ["fp16 needs a GPU"]),
        (["--validation", "other"], ["other holds ids on a grid of 4 x 16"]),
        (["--validation", "foreign"], ["foreign holds ids of the codec 0123456789abcdef"]),
        (["--train", "other"], ["other holds ids on a grid of 4 x 16"]),
        (["--train", "judge", "--augment", "crop"], ["judge holds ids", "needs pictures"]),
        (["--train", "gone"], ["gone: there is no such file or folder"]),
        (["--validation", "gone"], ["gone"]),
        (["--out", "pretraining"], ["pretraining holds a run of `imagegpt train`"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_what_can_not_be_used(place, pretraining, capsys, more, words):
    shutil.copytree(pretraining, "pretraining")
    if more == ["--model", "middle"]:
        assert run("--layer", 1, out="first") == 0
        Path("middle").symlink_to(Path("first/model"))
    meta = {"codec": CODEC.fingerprint, "grid": [4, 16]}
    tokenise(Path("other"), np.load("judge/ids.npy"), np.arange(24) % 2, **meta)
    tokenise(Path("foreign"), np.load("judge/ids.npy"), np.arange(24) % 2, grid=[8, 8])
    Path("train.yaml").write_text("size: nano\nsteps: 3\n")
    data = lit_pictures(place / "shown", 16), lit_pictures(place / "judged", 8)
    kept = [(path, path.read_bytes()) for path in Path("pretraining").rglob("*") if path.is_file()]
    capsys.readouterr()
    assert main(finetune_command("tiny", data[0], "run", "--validation", data[1], "--epochs", 2, *more)) == 2
    refused(capsys, *words)
    if more[0] != "--train" and "17" not in more:
        assert not Path("run/data").exists()
    assert not Path("run/checkpoints").exists() or not checkpoints("run")
    assert [(path, path.read_bytes()) for path in Path("pretraining").rglob("*") if path.is_file()] == kept


def test_nothing_to_stop_by(place, capsys):
    assert main(finetune_command("tiny", "tokens", "run")) == 2
    refused(capsys, "Fine-tuning stops by pictures that it is not trained on", "--patience 0 --publish last")
    assert not Path("run").exists()
    more = ["--patience", 0, "--publish", "last", "--epochs", 1]
    assert main(finetune_command("tiny", "tokens", "run", *more)) == 0
    assert (made_by()["best"], made_by()["published"]) == (None, 6)


def test_a_quantised_model(place, capsys):
    shutil.copytree("tiny", "small")
    configure(Path("small"), quantization_config={"quant_method": "torchao"})
    assert run(model="small") == 2
    refused(capsys, "small is quantised and can't be trained")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr", "0.5"], "lr 0.01, not 0.5"),
        (["--model", "copy"], "model tiny, not copy"),
        (["--generative", "0"], "generative 1.0, not 0.0"),
        (["--layer", "1"], "layer None, not 1"),
        (["--lora", "4"], "lora 0, not 4"),
        (["--mixup", "0.2"], "mixup 0.0, not 0.2"),
        (["--class-weights", "balanced"], "class_weights None, not balanced"),
        (["--augment", "flip"], "augment none, not flip"),
        (["--grid", "12x12"], "grid 8x8, not 12x12"),
        (["--train", "others"], "the classes cat, dog; those of others are cat, emu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_settings_in_the_same_folder(place, capsys, more, words):
    assert run() == 0
    shutil.copytree("tiny", "copy")
    classes(Path("others"), 48, classes=["cat", "emu"])
    classes(Path("judge of others"), 24, 1, classes=["cat", "emu"])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    validation = "judge of others" if "others" in more else "judge"
    assert run("--epochs", 3, "--validation", validation, *more) == 2
    refused(capsys, f"run holds a run with {words}", "choose another --out")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_pretraining_in_the_folder_of_a_fine_tuning(place, capsys):
    assert run() == 0
    capsys.readouterr()
    assert main(command(tokens(Path("plain")), "run")) == 2
    refused(capsys, "run holds a run of `imagegpt finetune`: choose another --out")


def test_a_class_without_pictures(place, capsys):
    data = lit_pictures(place / "shown", 16)
    np.savez("shown.npz", images=np.zeros((8, 8, 8, 3), np.uint8), labels=[0, 0, 0, 0, 2, 2, 2, 2])
    assert run("--validation", "shown.npz", data="shown.npz") == 0
    told = capsys.readouterr().err
    assert told.count("warning: shown.npz: no picture is of the class 1, which can't be learnt.") == 1
    Path(data, "emu").mkdir()
    assert run("--validation", data, data=data, out="folders") == 0
    assert len(config_of("folders")["id2label"]) == 2
