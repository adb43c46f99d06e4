"""How the embedded model's card is made: the counting models, the search for copies, and the words."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import card
from counting import BACKING, Counting
from imagegpt import ImageGPT, checkpoint, metrics
from imagegpt.evaluation import Report
from measure import RESULTS, STAGES, nearest_pixels, told_of_classifier

WIDTH, COLORS = 4, 5


def some_ids(seed, pictures=6, rows=3):
    return np.random.default_rng(seed).integers(0, COLORS, (pictures, rows * WIDTH))


def slow_bigram(train, left, here):
    """The probability of a colour after its left neighbour, counted in loops."""
    single = [1.0 + sum(int(color == each) for picture in train for each in picture) for color in range(COLORS)]
    total, pairs, after = sum(single), 0, 0
    for picture in train:
        for place, color in enumerate(picture):
            if place % WIDTH and picture[place - 1] == left:
                after += 1
                pairs += int(color == here)
    return (pairs + BACKING * single[here] / total) / (after + BACKING)


def test_the_left_neighbour_s_probabilities_are_those_of_the_slow_way():
    train = some_ids(0)
    counting = Counting(train, WIDTH, COLORS)
    slow = [[slow_bigram(train.tolist(), left, here) for here in range(COLORS)] for left in range(COLORS)]
    np.testing.assert_allclose(counting.bigram_KK, slow)
    np.testing.assert_allclose(counting.bigram_KK.sum(1), 1)
    assert counting.unigram_K.sum() == pytest.approx(1)


def test_nats_of_counting_models_are_those_of_the_slow_way():
    counting, ids = Counting(some_ids(0), WIDTH, COLORS), some_ids(1)
    alone = left = 0.0
    for picture in ids.tolist():
        for place, color in enumerate(picture):
            alone -= math.log(counting.unigram_K[color])
            row = counting.bigram_KK[picture[place - 1]] if place % WIDTH else counting.unigram_K
            left -= math.log(row[color])
    told = counting.nats_per_token(ids)
    assert told["unigram_nats_per_token"] == pytest.approx(alone / ids.size, abs=1e-4)
    assert told["left_neighbour_nats_per_token"] == pytest.approx(left / ids.size, abs=1e-4)


def test_what_counting_paints_follows_its_probabilities():
    counting = Counting(some_ids(0), WIDTH, COLORS)
    ids = np.tile(some_ids(2, 1), (20_000, 1))
    painted = counting.complete(ids, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(painted[:, :6], ids[:, :6])
    after_given = np.bincount(painted[:, 6], minlength=COLORS) / len(painted)
    np.testing.assert_allclose(after_given, counting.bigram_KK[ids[0, 5]], atol=0.015)
    first_of_row = np.bincount(painted[:, 8], minlength=COLORS) / len(painted)
    np.testing.assert_allclose(first_of_row, counting.unigram_K, atol=0.015)
    np.testing.assert_array_equal(painted, counting.complete(ids, 6, np.random.default_rng(0)))


def test_the_nearest_picture_is_found_and_its_mirror_image_too():
    rng, grid = np.random.default_rng(0), (3, 4)
    train = rng.integers(0, 256, (2500, 3 * 4 * 3)).astype(np.float32)  # more than are compared at once
    mirrored = train[2100].reshape(3, 4, 3)[:, ::-1].ravel()
    near = train[7].copy()
    near[0] += 6
    distance, index = nearest_pixels(np.stack([train[1234], mirrored, near]), train, grid)
    np.testing.assert_array_equal(index, [1234, 2100, 7])
    np.testing.assert_allclose(distance, [0, 0, 6 / math.sqrt(train.shape[1])], rtol=1e-6)


FOUND = {
    "likelihood": {
        "pictures": 5000,
        "nats_per_token": 1.5,
        "standard_error": 0.01,
        "confidence_95": [1.48, 1.52],
        "bits_per_dim_of_palette_ids": 0.7,
        "unigram_nats_per_token": 5.9,
        "left_neighbour_nats_per_token": 3.1,
        "palette_rmse_0_255": 5.0,
        "precision": "float32",
    },
    "int8": {"pictures": 1000, "difference_percent": 0.034},
    "probe": {
        "rows": [{"name": "pixels", "top1": 0.9, "top5": 0.95}, {"name": "4", "top1": 0.5, "top5": 0.9}],
        "few_labels": [{"labels_per_class": 4, "mean": 0.2, "deviation": 0.01}],
    },
    "finetuned": {"accuracy": 0.6428},
    "memorisation": {
        "layer": 4,
        "pictures": 36,
        "samples": {"pixel_rmse": [20.0, 30.0], "feature_cosine": [0.8, 0.9], "copies": 0},
        "validation": {"pixel_rmse": [21.0, 31.0], "feature_cosine": [0.7, 0.95], "copies": 1},
    },
}


def test_of_an_evaluation_the_card_s_names_are_kept():
    right_NC, y_N = np.eye(10)[[0, 1, 2, 3]], np.array([0, 1, 2, 9])
    report = Report(4, {"top1": metrics.evaluate(right_NC, y_N, 10).top1, "top5": 0.98765, "calibration_error": 0.25})
    assert told_of_classifier(report.as_dict()) == {"accuracy": 0.75, "top5": 0.9877, "calibration_error": 0.25}


def test_the_card_is_filled_from_result_files():
    words = card.card_text(ImageGPT.from_pretrained("nano"), FOUND)
    for told in (
        "**1.5**",
        "95 % confidence interval 1.48 to 1.52",
        "0.034 %",
        "| 4 | 50.00 % | 90.00 % |",
        "layer\n4 with 50.00 %",
        "64.28 %",
    ):
        assert told in words
    assert "| the nearest of all | 20 | 21 |" in words
    assert "| the same, pixel for pixel | 0 | 1 |" in words
    assert not re.search(r"\$[a-z]", words)


def test_the_card_and_its_figures_are_those_of_the_result_files():
    pipeline = ImageGPT.from_pretrained("nano")
    found = card.read_results(RESULTS)
    assert found.keys() == STAGES.keys()
    assert {result["fingerprint"] for result in found.values()} == {checkpoint.fingerprint(pipeline.path)}
    assert (pipeline.path / "README.md").read_text(encoding="utf-8") == card.card_text(pipeline, found)
    kept = json.loads((pipeline.path / "evaluation.json").read_text(encoding="utf-8"))
    assert kept == found["likelihood"]
