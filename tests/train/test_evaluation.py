"""Validation is a plain mean of the reference's losses; samples are the same every time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from by_hand import make
from imagegpt.codec.palette import PaletteCodec
from imagegpt.data.records import Source
from imagegpt.pipeline import ImageGPT
from imagegpt.sheet import sample_sheet
from imagegpt.train.evaluation import ROWS, draw_samples, validate
from imagegpt.train.objectives import EVALUATION_MASKS, draw_masks
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Recipe
from imagegpt.train.training import Training
from reference import training as reference

COLORS, LENGTH, COUNT = 7, 6, 2 * ROWS + 5
IDS = np.random.default_rng(1).integers(0, COLORS, (COUNT + 10, LENGTH)).astype(np.uint16)
SOURCE = Source("here", COUNT, lambda start, stop: iter(()), ids_NT=IDS)  # shorter than its array
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (COLORS, 3)))
MASK = 0.4


def prepared(objective="ar", **values) -> Training:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), values.get("dropout", 0.0))
    model = make(vocab_size=COLORS + 1, n_positions=LENGTH, n_embd=8, **rates)
    if objective == "bert":
        model.config.is_causal = False
    recipe = Recipe.from_flat({"batch": 4, "objective": objective, "mask": MASK, **values}, "here")
    return Training(model, recipe, Processes(0, 1, torch.device("cpu")))


def state_of(training):
    return {name: weight.detach().numpy() for name, weight in training.weights().items()}


def bert_masks(copy):
    """Those of every picture, forward by forward."""
    starts = range(0, COUNT, ROWS)
    return np.concatenate([draw_masks((0, 3, copy, start), min(ROWS, COUNT - start), LENGTH, MASK) for start in starts])


@pytest.mark.parametrize("values", [{}, {"dropout": 0.5}, {"ema": 0.5, "lr": 0.1}])
def test_validation_is_the_mean_loss_of_all_pictures(values):
    training = prepared(**values)
    training.step(training.gradient(IDS[:4].astype(np.int64), 0), 1.0)
    config = training.config.to_dict()
    expected = np.mean([reference.ar_loss(state_of(training), config, [ids]) for ids in IDS[:COUNT].astype(int)])
    found = validate(training, SOURCE, CODEC)
    assert found["nats_per_token"] == pytest.approx(expected, rel=1e-6)
    assert found["bits_per_dim"] == pytest.approx(expected / math.log(2) / 3, rel=1e-6)
    assert (found["codec"], found["pictures"]) == ("palette of 7", COUNT)


def test_bits_per_dim_are_of_the_numbers_that_an_id_stands_for(tiny_vqvae):
    found = validate(prepared(), SOURCE, tiny_vqvae)
    assert found["bits_per_dim"] == pytest.approx(found["nats_per_token"] / math.log(2) / 12, rel=1e-6)
    assert found["codec"] == tiny_vqvae.name


def test_masked_validation_is_the_mean_over_five_masks_of_each_picture():
    training = prepared("bert")
    config, state = training.config.to_dict(), state_of(training)
    assert EVALUATION_MASKS == 5
    every = [reference.bert_loss(state, config, IDS[:COUNT].astype(int), bert_masks(copy)) for copy in range(5)]
    assert len(set(every)) == 5
    assert validate(training, SOURCE, CODEC)["nats_per_token"] == pytest.approx(np.mean(every), rel=1e-6)


def masks_seen(training, monkeypatch):
    seen, loss = [], training.loss
    monkeypatch.setattr(training, "loss", lambda ids, masks: seen.append(masks) or loss(ids, masks))
    validate(training, SOURCE, CODEC)
    return np.concatenate(seen)


def test_masks_of_validation_are_the_same_every_time_and_in_every_run(monkeypatch):
    training = prepared("bert")
    first = masks_seen(training, monkeypatch)
    training.step(training.gradient(IDS[:4].astype(np.int64), 0), 1.0)
    np.testing.assert_array_equal(first, masks_seen(training, monkeypatch))
    np.testing.assert_array_equal(first, masks_seen(prepared("bert", seed=7), monkeypatch))
    copies = first.reshape(5, COUNT, LENGTH)
    assert all((copies[0] != copy).any() for copy in copies[1:])
    assert (copies[0, :ROWS] != copies[0, ROWS : 2 * ROWS]).any()


@pytest.mark.parametrize("objective", ["ar", "bert"])
@pytest.mark.parametrize("count", [COUNT, ROWS + 1, 3 * ROWS + 4])
def test_processes_share_the_pictures_and_sum_what_they_found(objective, count):
    """Each of three processes in turn, the last one sometimes without pictures; nothing is sent."""
    source = replace(SOURCE, length=count, ids_NT=np.tile(IDS, (2, 1)))
    whole = validate(prepared(objective), source, CODEC)["nats_per_token"]
    parts, forwards = [], []
    for rank in range(3):
        training = prepared(objective)
        group = type("Group", (), {"rank": rank, "count": 3, "total": lambda self, number: [number]})()
        training.group = group
        training.loss = lambda *args, loss=training.loss: forwards.append(1) or loss(*args)
        parts.append(validate(training, source, CODEC)["nats_per_token"])
        assert len(forwards) == (rank + 1) * (1 if objective == "ar" else 5) * math.ceil(count / 3 / ROWS)
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


def test_validation_leaves_no_trace():
    training, other = prepared(ema=0.5, dropout=0.2), prepared(ema=0.5, dropout=0.2)
    validate(training, SOURCE, CODEC)
    ids = IDS[:4].astype(np.int64)
    assert training.gradient(ids, 0) == other.gradient(ids, 0)
    assert all(torch.equal(training.parameters[name], weight) for name, weight in other.parameters.items())


def test_samples_are_drawn_with_the_same_random_numbers_each_time(tiny_folder, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        draw_samples(tiny_folder, path, 3, "cpu")
    pictures = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(*pictures)
    drawn = ImageGPT.from_pretrained(tiny_folder, device="cpu").sample(3, seed=0).images[0]
    assert len(drawn) == 3
    np.testing.assert_array_equal(pictures[0], np.asarray(sample_sheet(drawn)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
