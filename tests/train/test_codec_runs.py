"""Whole runs of a VQ-VAE's training: it learns, and ends the same however it was interrupted or shared."""

from __future__ import annotations

import functools
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from imagegpt.cli.main import main
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import find_codec, load_preprocessor
from imagegpt.codec.quality import Quality
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.data.pixels import read_pixels
from imagegpt.data.sources import open_source
from imagegpt.sheet import comparison_sheet
from imagegpt.train.codec_recipe import CodecRecipe
from imagegpt.train.codec_task import config_of, work_of
from training_runs import checkpoints, column, finish, log, no_further_than, started, steps_logged, tokens, wait_until
from training_runs import command as pretraining

STEPS, EVERY = 40, 10
SMALL = {
    **{"factor": 2, "codes": 16, "code_width": 4, "width": 8, "blocks": 1, "block_width": 4, "grid": "4x4"},
    **{"device": "cpu", "batch": 8, "steps": STEPS, "lr": 0.005, "code_decay": 0.9},
    **{"log_every": 1, "validate_every": 0, "save_every": 0},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged, of parts and edges": {"ema": 0.9, "augment": "crop,flip", "accumulate": 2, "edge": 0.1},
    "dying codes": {"codes": 128, "restart": 0.5, "code_decay": 0.5, "loss": "l1", "clip": 1, "batch": 6},
}


def pictures(folder: Path, count: int, seed: int = 0, side: int = 20) -> str:
    """A folder of soft pictures, which a network can learn to keep."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
        corners.resize((side, side), Image.Resampling.BILINEAR).save(folder / f"{number:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures to train on and others."""
    folder = tmp_path_factory.mktemp("data")
    pictures(folder / "train", 24)
    pictures(folder / "validation", 7, seed=1)
    return folder


@pytest.fixture(scope="module")
def command(place) -> Callable[..., list[str]]:
    """A function: folder, options -> the command."""

    def made(out: Path, **options: Any) -> list[str]:
        data = {"train": place / "train", "validation": place / "validation", "out": out}
        chosen = {name: value for name, value in {**data, **SMALL, **options}.items() if value is not None}
        words = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return ["vqvae", "train", *words]

    return made


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory) -> Callable[..., Path]:
    """The folder of a run that nothing interrupts, in this process."""

    @functools.cache
    def run(kind: str = "plain") -> Path:
        out = tmp_path_factory.mktemp("straight") / "run"
        assert main(command(out, validate_every=EVERY, **KINDS[kind])) == 0
        return out

    return run


def made_by(out: Path) -> dict[str, Any]:
    return json.loads((out / "model" / "training.json").read_text())


def weights(out: Path) -> dict[str, bytes]:
    """Of the last checkpoint and of the model, as bytes."""
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    files = [*last.rglob("*.safetensors"), out / "model" / "model.safetensors"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def state(out: Path, folder: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(out / "checkpoints" / f"step-{STEPS:08d}" / "state", folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    """What was logged, but for times."""
    times = ("seconds", "ids_per_s", "pictures_per_s", "mfu")
    return [{name: value for name, value in record.items() if name not in times} for record in log(out, kind)]


def check_same(one: Path, other: Path, folder: Path) -> None:
    """Bit by bit: weights, codes and their counts, averages, the optimiser's state, and the log, each step once."""
    assert weights(one) == weights(other)
    states = state(one, folder), state(other, folder)
    assert states[0]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
    assert column(one, "step") == list(range(1, STEPS + 1))
    for kind in ("train", "validation"):
        assert records(one, kind) == records(other, kind)


def judged(codec: Any, data: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Pictures that went through a codec."""
    quality = Quality(codec)
    for _, pixels in read_pixels(open_source(data), Framing(*size, "center"), "skip"):
        quality.add(pixels)
    return quality.result()


# What is learnt, and what is left of it.


def test_the_pictures_come_out_better_and_better(command, tmp_path, place):
    """From what a single colour would do to what takes blocks of pixels apart."""
    out = tmp_path / "run"
    assert main(command(out, steps=200, validate_every=50, width=16, codes=32)) == 0
    assert column(out, "step", "validation") == [50, 100, 150, 200]
    psnr = column(out, "psnr", "validation")
    [(_, pixels)] = read_pixels(open_source(place / "validation"), Framing(8, 8, "center"))
    grey = 10 * np.log10(255**2 / np.square(pixels - pixels.mean((0, 1, 2))).mean())
    assert psnr[-1] > max(psnr[0] + 1, grey + 4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(straight, kind):
    out = straight(kind)
    assert np.mean(column(out, "reconstruction")[-8:]) < 0.9 * np.mean(column(out, "reconstruction")[:8])
    assert column(out, "psnr", "validation")[-1] > column(out, "psnr", "validation")[0]


def test_the_kinds_differ(straight):
    """Else it says nothing that each is the same after a kill."""
    assert len({tuple(column(straight(kind), "loss")) for kind in KINDS}) == len(KINDS)
    assert sum(column(straight("dying codes"), "revived")) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_tells_the_losses_apart(straight, kind):
    edge = KINDS[kind].get("edge", 0)
    for record in log(straight(kind)):
        assert ("edge" in record) == bool(edge)
        parts = record["reconstruction"] + 0.25 * record["commitment"] + edge * record.get("edge", 0)
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
        assert 1 <= record["perplexity"] <= KINDS[kind].get("codes", 16)
        assert 0 <= record["revived"] <= KINDS[kind].get("codes", 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_opens_everywhere_and_is_as_good_as_the_log_says(straight, place, kind):
    out = straight(kind)
    model: Any = VQVAE.from_pretrained(out / "model")
    codec, framing = load_preprocessor(out / "model")
    assert model.fingerprint == codec.fingerprint == find_codec(str(out / "model")).fingerprint
    assert (framing.height, framing.width, framing.crop) == (8, 8, "center")
    [*_, last] = log(out, "validation")
    found = judged(codec, place / "validation", (8, 8))
    assert (found.pop("codec"), last["skipped"]) == (last["codec"], 0)
    assert {name: last[name] for name in found} == pytest.approx(found, rel=1e-6)
    told = made_by(out)
    assert (told["published"], told["step"], told["pictures"]) == (STEPS, STEPS, 24)
    quantizer = model.quantizer
    assert told["parameters"] - told["trained"] == quantizer.codebook.numel() + quantizer.counts.numel()
    newest = out / "checkpoints" / checkpoints(out)[-1]
    assert find_codec(str(newest)).factor == 2
    averaged = "ema" in KINDS[kind]
    assert (find_codec(str(newest)).fingerprint == model.fingerprint) is not averaged
    if averaged:
        assert find_codec(str(newest / "ema")).fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("factor", "grid", "more"),
    [
        (2, "4x4", {"batch": 7}),
        (4, "3x5", {"codes": 512, "limit": 4, "batch": 3}),
        (8, "2x1", {"blocks": 0, "width": 2, "commitment": 0}),
        (2, "1x4", {"precision": "bf16", "code_width": 1}),
        (4, "2x2", {"optimizer": "adamw", "augment": "pad,flip", "codes": 2, "restart": 0.9}),
    ],
    ids=str,
)
def test_any_shape_is_trained(command, tmp_path, place, factor, grid, more):
    """Odd batches, more codes than vectors, two codes, no blocks: the losses are finite and the codec works."""
    out = tmp_path / "run"
    assert main(command(out, **{"factor": factor, "grid": grid, "steps": 5, "validate_every": 5, **more})) == 0
    assert np.isfinite([column(out, name) for name in ("loss", "perplexity", "grad_norm")]).all()
    height, width = map(int, grid.split("x"))
    codec, framing = load_preprocessor(out / "model")
    assert (framing.height, framing.width) == (height * factor, width * factor)
    pixels = np.zeros((2, height * factor, width * factor, 3), np.uint8)
    ids = codec.encode(pixels)
    assert ids.shape == (2, height, width)
    assert codec.decode(ids).shape == pixels.shape
    assert len(codec) == more.get("codes", 16)
    found = judged(codec, place / "validation", (height * factor, width * factor))
    assert log(out, "validation")[0]["psnr"] == pytest.approx(found["psnr"], rel=1e-6)


def test_the_first_codes_are_means_of_vectors(command, tmp_path, place):
    """A step size of nothing leaves the network; its codes, from k-means, explain most of what its vectors are."""
    assert main(command(tmp_path / "run", lr=1e-30, steps=1, validation=None)) == 0
    model: Any = VQVAE.load(tmp_path / "run" / "model")
    assert model.quantizer.counts.sum().item() == pytest.approx(8 * 16, rel=1e-5)  # of a batch
    [(_, pixels)] = read_pixels(open_source(place / "train"), Framing(8, 8, "center"))
    with torch.no_grad():
        vectors = model.encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    [first] = log(tmp_path / "run")
    assert first["commitment"] < 0.2 * (vectors - vectors.mean((0, 2, 3), keepdim=True)).square().mean().item()
    assert first["perplexity"] > 8


def test_the_sheet_shows_pictures_over_what_becomes_of_them(command, tmp_path, place):
    out = tmp_path / "run"
    assert main(command(out, sample_every=20, samples=5)) == 0
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-00000020.png", "step-00000040.png"]
    codec = find_codec(str(out / "model"))
    [(_, pixels)] = read_pixels(open_source(place / "validation", limit=5), Framing(8, 8, "center"))
    rows = {"pictures": pixels, codec.name: codec.decode(codec.encode(pixels))}
    expected = np.asarray(comparison_sheet(rows))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "samples" / "step-00000040.png")), expected)
    assert not (out / ".export").exists()


# The best validation.


def test_the_first_of_equals_is_the_best_and_patience_ends_the_run(command, tmp_path):
    """Neither weights nor codes move, so that all validations are the same."""
    out = tmp_path / "run"
    still = {"lr": 1e-30, "code_decay": 1 - 1e-9, "restart": 0}
    assert main(command(out, **still, validate_every=5, patience=3, publish="best")) == 0
    assert len(set(column(out, "psnr", "validation"))) == 1
    told = made_by(out)
    assert (told["step"], told["published"], told["best"]["step"]) == (20, 5, 5)
    assert [record["waited"] for record in log(out, "patience")] == [3]


def test_the_best_becomes_the_model(command, tmp_path, place):
    """Steps that are too large make it worse in the end."""
    out = tmp_path / "run"
    assert main(command(out, lr=0.3, validate_every=4, patience=4, publish="best", schedule="constant")) == 0
    found = log(out, "validation")
    best = max(found, key=lambda record: record["psnr"])
    told = made_by(out)
    assert told["best"] == {"step": best["step"], "psnr": best["psnr"]}
    assert told["published"] == best["step"] < told["step"]
    psnr = judged(find_codec(str(out / "model")), place / "validation", (8, 8))["psnr"]
    assert psnr == pytest.approx(best["psnr"], rel=1e-6)


# Interrupted, and continued by the same command.


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_stopped_it_ends_as_one_that_was_not(command, straight, tmp_path, kind):
    """With kill -9, some updates after a checkpoint, and then with Ctrl-C."""
    out, chosen = tmp_path / "run", random.Random(kind)
    arguments = command(out, validate_every=EVERY, save_every=3, **KINDS[kind])
    at = chosen.randrange(7, 14)
    with started(arguments, tmp_path / "io", before=functools.partial(no_further_than, at + 7)) as run:
        wait_until(lambda: steps_logged(out) >= at, run)
        time.sleep(chosen.random() / 50)
        run.send(signal.SIGKILL)
        run.wait()
    before = steps_logged(out)
    with started(arguments, tmp_path / "io", before=functools.partial(no_further_than, before + 7)) as run:
        wait_until(lambda: steps_logged(out) >= before + 5, run)
        run.send(signal.SIGINT)
        assert run.wait() == [130], run.errors
        assert "the same command goes on from there" in run.errors
    assert 12 <= steps_logged(out) < STEPS
    assert main(arguments) == 0
    check_same(straight(kind), out, tmp_path)


def test_a_run_that_ended_is_not_run_again(command, straight, capsys):
    out = straight()
    before = weights(out), records(out, "train")
    capsys.readouterr()
    assert main(command(out, validate_every=EVERY)) == 0
    assert "dB PSNR at update" in capsys.readouterr().out
    assert (weights(out), records(out, "train")) == before


# Several processes.


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(command, straight, tmp_path, kind):
    """Codes, counts and dead codes included; of the seven validation pictures one has three and the other four."""
    out, expected = tmp_path / "run", straight(kind)
    finish(command(out, validate_every=EVERY, **KINDS[kind]), tmp_path / "io", 2)
    for name in ("loss", "reconstruction", "commitment"):
        assert column(out, name) == pytest.approx(column(expected, name), abs=1e-5)
    for name in ("perplexity", "revived", "epoch"):
        assert column(out, name) == pytest.approx(column(expected, name), rel=1e-5)
    for one, other in zip(log(out, "validation"), log(expected, "validation"), strict=True):
        names = ("psnr", "mean_psnr", "rmse", "mae", "used", "perplexity", "pictures", "skipped")
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-3)
    ours, theirs = (dict(VQVAE.load(place / "model").named_parameters()) for place in (out, expected))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-5)


# Data.


def test_damaged_pictures_are_left_out_and_listed(command, tmp_path):
    data, shown = (Path(pictures(tmp_path / name, 12)) for name in ("train", "validation"))
    for path in (data / "003.png", data / "007.png", shown / "001.png"):
        path.write_bytes(path.read_bytes()[:70])
    out = tmp_path / "run"
    assert main(command(out, train=data, validation=shown, steps=9, validate_every=9)) == 0
    listed = (out / "skipped.txt").read_text().splitlines()
    assert sorted(line.split(":")[0] for line in listed) == [str(data / "003.png"), str(data / "007.png")]
    assert made_by(out)["skipped"] == 2
    [found] = log(out, "validation")
    assert (found["pictures"], found["skipped"]) == (11, 1)


def test_validation_pictures_that_are_all_damaged_are_refused(command, tmp_path, capsys):
    """Also where there is a sheet to draw, which then shows training pictures."""
    shown = Path(pictures(tmp_path / "validation", 3))
    for path in shown.iterdir():
        path.write_bytes(b"text")
    out = tmp_path / "run"
    assert main(command(out, validation=shown, steps=4, sample_every=2)) == 0
    assert len(list((out / "samples").iterdir())) == 2
    capsys.readouterr()
    assert main(command(tmp_path / "other", validation=shown, steps=4, validate_every=2)) == 2
    told = capsys.readouterr().err
    assert f"error: {shown} holds no picture that can be read, so nothing can be validated." in told
    assert "Traceback" not in told


@pytest.mark.parametrize("split", ["train", "validation"])
def test_ids_are_refused(command, tmp_path, capsys, split):
    data = tokens(tmp_path / "tokens")
    assert main(command(tmp_path / "run", **{split: data})) == 2
    assert f"error: {data} holds ids, and a codec is trained on pictures: give those." in capsys.readouterr().err


# Folders and recipes.


def test_a_folder_of_another_verb_is_refused(command, straight, tmp_path, capsys):
    data = tokens(tmp_path / "tokens")
    assert main(pretraining(data, tmp_path / "run", "--steps", 2)) == 0
    capsys.readouterr()
    assert main(command(tmp_path / "run")) == 2
    assert "holds a run of `imagegpt train`: choose another --out." in capsys.readouterr().err
    assert main(pretraining(data, straight(), "--steps", 2)) == 2
    assert "holds a run of `imagegpt vqvae`: choose another --out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [({"codes": 32}, "codes 16, not 32"), ({"edge": 0.1}, "edge 0.0, not 0.1"), ({"factor": 4}, "factor 2, not 4")],
    ids=str,
)
def test_another_codec_in_the_same_folder_is_refused(command, straight, capsys, more, words):
    assert main(command(straight(), **more)) == 2
    assert f"holds a run with {words}" in capsys.readouterr().err


def test_a_step_size_is_suggested(command, tmp_path, capsys):
    assert main([*command(tmp_path / "run"), "--find-lr"]) == 0
    assert capsys.readouterr().out.startswith("--lr ")
    found = json.loads((tmp_path / "run" / "lr.json").read_text())
    assert 1e-5 < found["lr"] < 0.5
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["vq-32-8-256", "vq-32-16-512", "vq-64-16-512", "vq-192-48-4096"])
def test_a_recipe_that_comes_along_is_what_its_name_says(name):
    """Pixels, codes along a side, and how many codes there are."""
    assert name in CodecRecipe.shipped()
    recipe = CodecRecipe.load(name)
    side, grid, codes = map(int, name.split("-")[1:])
    assert recipe.grid == (grid, grid)
    assert recipe.codes.factor * grid == side
    assert recipe.codes.codes == codes
    assert recipe.optimization.steps
    with torch.device("meta"):
        model: Any = VQVAE(config_of(recipe.codes))
        output = model(torch.empty(2, 3, side, side))
    assert output.reconstruction.shape == (2, 3, side, side)
    assert output.ids.shape == (2, grid, grid)
    assert work_of(recipe).ids == grid**2


def test_all_recipes_that_come_along_are_looked_at():
    assert len(CodecRecipe.shipped()) == 4


def test_the_work_of_a_picture_is_that_of_its_convolutions():
    """By hand: twice the products of each, and a backward of twice the forward."""
    flat = {"factor": 2, "codes": 16, "code_width": 4, "width": 8, "blocks": 1, "block_width": 4, "grid": "4x4"}
    recipe = CodecRecipe.from_flat(flat, "test")
    at_codes = [8 * 8 * 9, 8 * 4 * 9, 4 * 8, 8 * 4, 4 * 8 * 9, 8 * 4 * 9, 4 * 8, 16 * 4]  # the last: distances
    products = 16 * (3 * 8 * 16 + sum(at_codes)) + 16 * 8 * 3 * 16
    assert work_of(recipe).flops == 3 * 2 * products
