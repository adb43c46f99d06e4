"""The paper's VQ-VAE setting from end to end: 192 x 192 pixels, 48 x 48 codes of 4,096."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.cli.main import main
from imagegpt.spec import SIZES

PHOTOGRAPHS = str(Path(__file__).parents[2] / "examples")
GRID, CODES = (48, 48), 4096


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
def test_photographs_become_a_model_that_draws(tmp_path, capsys):
    codec, ids, out = tmp_path / "vq", tmp_path / "ids", tmp_path / "small"
    once = ("--batch", 1, "--steps", 1, "--save-every", 0, "--validate-every", 0)
    run(
        "vqvae",
        "train",
        "--recipe",
        "vq-192-48-4096",
        "--train",
        PHOTOGRAPHS,
        "--augment",
        "none",
        *once,
        "--out",
        codec,
    )
    run("tokenize", PHOTOGRAPHS, "--codec", codec / "model", "--out", ids)
    meta = json.loads((ids / "meta.json").read_text())
    assert tuple(meta["grid"]) == GRID and np.load(ids / "ids.npy").shape[1] == GRID[0] * GRID[1]
    run("train", "--size", "small", "--train", ids, *once, "--out", out)
    config = json.loads((out / "model" / "config.json").read_text())
    small = SIZES["small"]
    assert (config["n_embd"], config["n_layer"]) == (small.n_embd, small.n_layer)
    assert (config["n_positions"], config["vocab_size"]) == (GRID[0] * GRID[1], CODES + 1)
    capsys.readouterr()
    photograph = f"{PHOTOGRAPHS}/chelsea.jpg"
    run(
        "complete",
        photograph,
        "--model",
        out / "model",
        "--keep",
        0.99,
        "--num",
        1,
        "--out",
        f"{tmp_path}/out/",
        "--json",
    )
    [path] = json.loads(capsys.readouterr().out)["written"]
    assert Image.open(path).size == (192, 192)


@pytest.mark.slow
def test_a_step_of_the_large_model_takes_the_memory_that_is_planned(capsys):
    run(
        "plan", "--size", "large", "--grid", "48x48", "--codes", CODES, "--batch", 128, "--gpus", 8, "--trace", "--json"
    )
    made = json.loads(capsys.readouterr().out)
    assert made["ids"] == GRID[0] * GRID[1] and made["fits"]
    assert made["trace"]["ratio"] == pytest.approx(1, rel=0.05)
