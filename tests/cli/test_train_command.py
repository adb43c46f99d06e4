"""imagegpt train: on data of every kind, what it prints and keeps, and what it refuses in one sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt import ImageGPT
from imagegpt.cli.main import main
from imagegpt.codec.palette import PaletteCodec
from imagegpt.train.recipe import Recipe
from making import KINDS
from training_runs import CODEC, checkpoints, column, command, log, pictures, tokens

COUNT = 8


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with ids and pictures in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    tokens(Path("tokens"), 24, labelled=True)
    return tmp_path


def run(*more: str | int, data: str = "tokens", out: str = "run") -> int:
    return main(command(data, out, *more))


# What it makes and prints.


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_data_of_every_kind(place, kind):
    data = KINDS[kind](place / "data", list(range(COUNT)), [number % 2 for number in range(COUNT)])
    assert run("--codec", "fit", "--colors", 4, "--validation", data, "--validate-every", 5, data=data) == 0
    assert column("run", "step") == list(range(1, 11))
    assert column("run", "pictures", "validation") == [COUNT, COUNT]
    model = ImageGPT.from_pretrained("run/model", device="cpu")
    assert model.codec.fingerprint == PaletteCodec.load("run/palette.npy").fingerprint
    assert len(model.codec) == 4


def test_tokenised_data(place, capsys):
    assert run("--validation", "tokens", "--validate-every", 5) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("run/model: 10 updates in ")
    assert "best validation" in captured.out
    lines = captured.err.splitlines()
    assert lines[0].startswith("update 0 of 10: ")
    assert "24 pictures, 1 x cpu" in lines[0]
    assert [line.split(":")[0] for line in lines] == ["update 0 of 10", "update 5", "update 10"]
    assert "on validation" in lines[1]
    found = sorted(path.name for path in Path("run").iterdir())
    assert found == ["checkpoints", "log.jsonl", "model", "recipe.yaml"]
    assert sorted(path.name for path in Path("run/model").iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json", "training.json")
    ]
    assert ImageGPT.from_pretrained("run/model", device="cpu").codec.fingerprint == CODEC.fingerprint


def test_json(place, capsys):
    assert run("--json", "--validation", "tokens", "--validate-every", 5) == 0
    found = json.loads(capsys.readouterr().out)
    best = min(log("run", "validation"), key=lambda record: record["nats_per_token"])
    assert found["best"] == {"step": best["step"], "nats_per_token": best["nats_per_token"]}
    told = {name: found[name] for name in ("step", "steps", "pictures", "skipped", "processes", "device", "model")}
    assert told == {
        **{"step": 10, "steps": 10, "pictures": 24, "skipped": 0, "processes": 1, "device": "cpu"},
        **{"model": "run/model"},
    }
    assert found["codec"] == CODEC.fingerprint


def test_the_log(place):
    assert run("--steps", 10, "--log-every", 4, "--batch", 6) == 0
    assert column("run", "step") == [4, 8, 10]
    for record in log("run"):
        assert set(record) == {
            *("step", "kind", "epoch", "loss", "grad_norm", "lr", "seconds", "ids_per_s", "pictures_per_s", "mfu")
        }
    assert column("run", "epoch") == [1.0, 2.0, 2.5]


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_validation(place, objective):
    """By hand, of the model that was kept."""
    assert run("--validation", "tokens", "--validate-every", 10, "--objective", objective, "--ema", "0.5") == 0
    [record] = log("run", "validation")
    assert record["bits_per_dim"] == pytest.approx(record["nats_per_token"] / np.log(2) / 3)
    assert (record["codec"], record["pictures"]) == ("palette of 16", 24)
    if objective == "ar":
        model = ImageGPT.from_pretrained("run/model", device="cpu", backend="torch")
        from imagegpt import ImageGPTForCausalImageModeling

        network = ImageGPTForCausalImageModeling.from_pretrained("run/model").eval()
        ids = torch.from_numpy(np.load("tokens/ids.npy").astype(np.int64))
        inputs = torch.cat([torch.full((24, 1), len(model.codec)), ids[:, :-1]], 1)
        with torch.no_grad():
            logits = network(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits[..., :16].transpose(1, 2), ids)
        assert record["nats_per_token"] == pytest.approx(loss.item(), abs=2e-2)


def test_epochs(place):
    small = ["--width", "32", "--layers", "2", "--heads", "2", "--grid", "8x8", "--batch", "8", "--log-every", "1"]
    assert main(["train", "--train", "tokens", "--out", "c", "--device", "cpu", "--epochs", "1.5", *small]) == 0
    assert column("c", "step") == [1, 2, 3, 4]  # 4.5, to the nearest even number


def test_samples(place):
    assert run("--sample-every", 5, "--samples", 4) == 0
    found = sorted(Path("run/samples").iterdir())
    assert [path.name for path in found] == ["step-00000005.png", "step-00000010.png"]
    sizes = {Image.open(path).size for path in found}
    assert len(sizes) == 1
    assert not Path("run/.export").exists()


def test_a_bidirectional_network_draws_nothing(place):
    assert run("--sample-every", 5, "--objective", "bert") == 0
    assert not Path("run/samples").exists()


def test_samples_and_probes_change_nothing(place):
    assert run() == 0
    watched = ["--sample-every", 2, "--probe-every", 3, "--validation", "tokens", "--validate-every", 4]
    assert run(*watched, out="watched") == 0
    assert column("run") == column("watched")
    assert Path("run/model/model.safetensors").read_bytes() == Path("watched/model/model.safetensors").read_bytes()


@pytest.mark.parametrize("data", ["tokens", "pictures"])
def test_the_probe(place, capsys, data):
    pictures(place / "pictures", 24)
    assert run("--probe-every", 5, "--validation", data, "--probe-layer", 1, data=data) == 0
    found = log("run", "probe")
    assert [(record["step"], record["layer"]) for record in found] == [(5, 1), (10, 1)]
    assert all(0 <= record["accuracy"] <= 1 for record in found)
    assert "update 5: linear probe " in capsys.readouterr().err


def test_tensorboard(place):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    assert run("--tracker", "tensorboard") == 0
    assert list(Path("run/tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed(place, capsys):
    if importlib.util.find_spec("trackio") is not None:
        pytest.skip("trackio is installed")
    assert run("--tracker", "trackio") == 2
    refused(capsys, "--tracker trackio needs trackio", "imagegpt[track]")


def test_what_is_typed_goes_over_the_recipe(place):
    """And its `train` and `palette`, which are names of verbs too, are taken like the rest."""
    shape = "width: 16\nlayers: 1\nheads: 2\ngrid: 8x8\n"
    data = pictures(place / "pictures", 8)
    Path("mine.yaml").write_text(f"{shape}steps: 3\nbatch: 4\nlr: 1e-3\ntrain: {data}\ncodec: fit\ncolors: 5\n")
    assert main(["train", "--recipe", "mine.yaml", "--out", "run", "--device", "cpu", "--steps", "2"]) == 0
    kept = Recipe.load("run/recipe.yaml")
    assert (kept.shape.width, kept.optimization.steps, kept.optimization.lr) == (16, 2, 1e-3)
    assert (kept.data.train, kept.shape.codec, kept.shape.colors) == (data, "fit", 5)
    assert main(["train", "--recipe", "run/recipe.yaml", "--out", "again"]) == 0
    assert Path("run/model/model.safetensors").read_bytes() == Path("again/model/model.safetensors").read_bytes()


def test_weights_to_start_from(place):
    assert run() == 0
    for start in ("run/model", "run/checkpoints/step-00000010"):
        assert run("--init", start, "--steps", 1, "--lr", "1e-30", out=f"from-{Path(start).name}") == 0
        ours = Path(f"from-{Path(start).name}/model/model.safetensors").read_bytes()
        assert ours == Path("run/model/model.safetensors").read_bytes()


def test_help_names_every_option(capsys):
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in Recipe().flat():
        assert f"--{name.replace('_', '-')}" in printed
    for name in ("--out", "--recipe", "--json"):
        assert name in printed


def test_the_help_says_nothing_of_other_verbs(capsys):
    assert main(["train", "--help"]) == 0
    told = plain(capsys.readouterr().out)
    assert "what the network is worth on the validation pictures. [default: 1000]" in told
    assert "once an epoch. [" not in told
    assert main(["finetune", "--help"]) == 0
    told = plain(capsys.readouterr().out)
    assert "what the network is worth on the validation pictures; default: once an epoch." in told


def plain(printed: str) -> str:
    """Help without its frames, and in one line."""
    return " ".join(printed.replace("│", " ").split())


# What it refuses.


def refused(capsys, *words: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line != "See: imagegpt --help"]
    assert "Traceback" not in captured.err
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors == lines[-1:]
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lrr", "0.1"], ["--lrr"]),
        (["--step", "5"], ["--step"]),
        (["--recipe", "debgu"], ["no recipe 'debgu'", "Did you mean debug?"]),
        (["--recipe", "nothing-like-it"], ["Give a YAML file, or one of", "debug", "paper-small"]),
        (["--recipe", "bad.yaml"], ["bad.yaml", "'learning_rat'"]),
        (["--recipe", "near.yaml"], ["near.yaml", "has no 'warmupp'", "Did you mean warmup?"]),
        (["--recipe", "text.yaml"], ["text.yaml holds no recipe"]),
        (["--recipe", "broken.yaml"], ["broken.yaml can't be read as a recipe"]),
        (["--recipe", "kind.yaml"], ["kind.yaml: batch must be a whole number"]),
        (["--optimizer", "sgd"], ["sgd"]),
        (["--batch", "4.5"], ["4.5"]),
        (["--batch", "0"], ["batch must be at least 1"]),
        (["--epochs", "2", "--steps", "3"], ["steps or epochs, not both"]),
        (["--grid", "8"], ["HEIGHTxWIDTH"]),
        (["--grid", "9x9"], ["9"]),
        (["--heads", "5"], ["No model can have this shape"]),
        (["--size", "huge"], ["huge"]),
        (["--augment", "zoom"], ["zoom"]),
        (["--augment", "crop"], ["tokens holds ids of a palette of 16, and the augmentation crop needs pictures"]),
        (["--codec", "nano"], ["tokens"]),
        (["--codec", "gone.npy"], ["gone.npy"]),
        (["--codec", "fit"], ["tokens holds ids"]),
        (["--batch", "25"], ["A batch of 25 is larger than the data set, which has 24 pictures"]),
        (["--batch", "6", "--accumulate", "4"], ["A batch of 6 does not divide", "4 or 8"]),
        (["--precision", "fp16"], ["fp16 needs a GPU"]),
        (["--device", "cuda"], ["cuda"]),
        (["--validation", "empty"], ["empty"]),
        (["--validation", "gone"], ["gone"]),
        (["--train", "gone"], ["gone: there is no such file or folder"]),
        (["--train", "empty"], ["empty"]),
        (["--train", "broken"], ["broken", "can be read"]),
        (["--train", "broken", "--augment", "crop"], ["broken", "can be read"]),
        (["--probe-every", "5"], ["--probe-every needs --validation"]),
        (["--probe-every", "5", "--validation", "unlabelled"], ["unlabelled has no labels"]),
        (["--init", "gone"], ["gone"]),
        (["--init", "other"], ["init: other does not fit"]),
        (["--start", "informed", "--heads", "8"], ["start: informed needs heads"]),
        (
            ["--publish", "best"],
            ["--publish best goes by validations: give --validation DATA, or leave --publish best out."],
        ),
        (["--patience", "2"], ["--patience goes by validations: give --validation DATA, or leave --patience out."]),
        (["--patience", "2", "--find-lr"], ["--patience goes by validations"]),
        (
            ["--publish", "best", "--validation", "tokens", "--validate-every", "0"],
            ["--publish best goes by validations: leave --validate-every 0 out, or leave --publish best out."],
        ),
        (["--out", "file"], ["file"]),
        (["--out", "file/run"], ["file/run"]),
        (["--out", "/proc/run"], ["/proc/run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_what_can_not_be_used(place, tiny_folder, capsys, more, words):
    for name in ("empty", "broken"):
        Path(name).mkdir()
    for number in range(8):
        Path("broken", f"{number}.png").write_bytes(b"no picture")
    Path("file").write_text("a file")
    tokens(Path("unlabelled"), 8)
    Path("other").symlink_to(tiny_folder)
    if more == ["--init", "other"]:
        more = [*more, "--width", "16"]
    for name, text in {
        **{"bad": "learning_rat: 3\n", "near": "warmupp: 3\n", "text": "nothing\n", "broken": "a: [1\n"},
        **{"kind": "batch: many\n"},
    }.items():
        Path(f"{name}.yaml").write_text(text)
    assert run(*more) == 2
    refused(capsys, *words)
    assert not Path("run/checkpoints").exists() or checkpoints("run") == []


def test_a_folder_that_can_not_be_written(place, capsys, monkeypatch):
    """Root may write anywhere: a file system that is read-only says so by this error."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    Path("run").mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert run() == 2
    refused(capsys, "Read-only file system")


def test_no_data(place, capsys):
    assert main(["train", "--recipe", "debug", "--out", "run"]) == 2
    refused(capsys, "give --train DATA")


def test_no_out(place, capsys):
    assert main(["train", "--recipe", "debug", "--train", "tokens"]) == 2
    refused(capsys, "out")


def test_no_steps(place, capsys):
    assert main(["train", "--train", "tokens", "--out", "run", "--device", "cpu", "--grid", "8x8", "--batch", "4"]) == 2
    refused(capsys, "Give --steps or --epochs")


def test_a_batch_that_does_not_divide_among_processes(place, capsys, monkeypatch):
    from imagegpt.errors import InputError
    from imagegpt.train.training import rows_per_forward

    with pytest.raises(InputError, match=r"A batch of 5 .* 2 processes .* --batch 4 or 6"):
        rows_per_forward(5, 2, 1)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set: start them with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x and WORLD_SIZE=2"),
    ],
    ids=str,
)
def test_processes_of_no_group(place, capsys, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run() == 2
    refused(capsys, words)


def test_a_group_of_one(place, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run("--steps", 2) == 0


# A folder in which there is a run already.


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--width", "16"], "width 32, not 16"),
        (["--lr", "0.5"], "lr 0.001, not 0.5"),
        (["--seed", "3"], "seed 0, not 3"),
        (["--optimizer", "muon"], "optimizer adamw, not muon"),
        (["--objective", "bert"], "objective ar, not bert"),
        (["--batch", "8"], "batch 4, not 8"),
        (["--augment", "flip"], "augment none, not flip"),
        (["--ema", "0.9"], "ema 0.0, not 0.9"),
    ],
    ids=str,
)
def test_another_recipe_in_the_same_folder(place, capsys, more, words):
    assert run("--steps", 5) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run("--steps", 10, *more) == 2
    refused(capsys, f"run holds a run with {words}", "choose another --out")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_another_grid_leaves_the_ids_of_the_run_alone(place, capsys):
    """They took hours, of a large data set."""
    data = pictures(place / "pictures", 8)
    assert run("--steps", 5, data=data) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert run("--steps", 10, "--grid", "4x4", data=data) == 2
    refused_again = capsys.readouterr().err
    assert "grid 8x8, not 4x4" in refused_again
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "more",
    [
        ["--steps", "12"],
        ["--accumulate", "2"],
        ["--keep", "1"],
        ["--validation", "tokens", "--validate-every", "3"],
        ["--precision", "bf16"],
        ["--checkpointing"],
        ["--save-every", "3"],
        ["--log-every", "2"],
    ],
    ids=" ".join,
)
def test_what_may_change_in_the_same_folder(place, more):
    assert run("--steps", 5) == 0
    assert run("--steps", 10, *more) == 0
    assert len(checkpoints("run")) >= 1
    assert json.loads(Path("run/model/training.json").read_text())["steps"] == (12 if "12" in more else 10)


@pytest.mark.parametrize("text", ["", "[]", "lr: [", "\x00"])
def test_a_damaged_recipe_in_the_folder(place, capsys, text):
    assert run("--steps", 5) == 0
    capsys.readouterr()
    Path("run/recipe.yaml").write_text(text)
    assert run("--steps", 10) == 2
    refused(capsys, "run/recipe.yaml")


def test_a_run_without_a_checkpoint_may_become_another(place):
    assert run("--steps", 2, "--save-every", 0) == 0
    import shutil

    shutil.rmtree("run/checkpoints")
    assert run("--width", 16, "--steps", 3) == 0
    assert column("run", "step") == [1, 2, 3]


def test_a_class_without_pictures(place, capsys):
    data = pictures(place / "pictures", 8)
    Path(data, "emu").mkdir()
    assert run(data=data) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"warning: {data}: no picture is in the folder emu; training goes on without it."
    assert sum("warning" in line for line in told) == 1
