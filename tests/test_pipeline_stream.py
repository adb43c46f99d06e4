"""Watching pictures being drawn, on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from imagegpt.errors import InputError
from imagegpt.painting import Decoding
from imagegpt.pipeline import ImageGPT

GREY = (200, 200, 200)
HOLE = np.zeros((8, 8), bool)
HOLE[3:5, 2:6] = True


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tiny_folder) -> dict[str, ImageGPT]:
    return {name: ImageGPT.from_pretrained(tiny_folder, device="cpu", backend=name) for name in ("onnx", "torch")}


@pytest.fixture(params=["onnx", "torch"])
def model(models, request) -> ImageGPT:
    return models[request.param]


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The positions that are drawn."""
    positions, iterate = [], Decoding.__iter__

    def count(self):
        for position in iterate(self):
            positions.append(position)
            yield position

    monkeypatch.setattr(Decoding, "__iter__", count)
    return positions


def agree(results, last):
    """What was drawn is never taken back; the rest is -1, and grey in the pictures."""
    counts = []
    for result in results:
        known = result.ids >= 0
        np.testing.assert_array_equal(result.ids[known], last.ids[known])
        assert (result.ids[~known] == -1).all()
        pixels = np.stack([np.asarray(image) for images in result.images for image in images]).reshape(-1, 64, 3)
        final = np.stack([np.asarray(image) for images in last.images for image in images]).reshape(-1, 64, 3)
        np.testing.assert_array_equal(pixels[known], final[known])
        assert (pixels[~known] == GREY).all()
        assert (result.seed, [len(images) for images in result.images]) == (last.seed, [len(i) for i in last.images])
        counts.append(int(known.sum()))
    return counts


def test_the_last_result_is_that_of_complete(model):
    arguments = {"keep": 0.25, "num_samples": 2, "seed": 3}
    expected = model.complete([picture(), picture(1)], log_probs=True, **arguments)
    *before, last = model.stream([picture(), picture(1)], log_probs=True, **arguments)
    np.testing.assert_array_equal(last.ids, expected.ids)
    np.testing.assert_array_equal(last.log_probs, expected.log_probs)
    np.testing.assert_array_equal(last.known, expected.known)
    assert agree(before, last) == [4 * row * 8 for row in (3, 4, 5, 6, 7)]
    assert [result.given for result in before] == [16] * 5


def test_the_last_result_is_that_of_sample(model):
    *before, last = model.stream(n=3, first=2, seed=1, top_k=5)
    np.testing.assert_array_equal(last.ids, model.sample(3, first=2, seed=1, top_k=5).ids)
    assert agree(before, last) == [3 * row * 8 for row in range(1, 8)]
    assert last.seed == 1


@pytest.mark.parametrize(("every", "counts"), [(1, [*range(49, 64)]), (5, [50, 55, 60]), (16, []), (100, [])])
def test_every(model, every, counts):
    *before, last = model.stream(picture(), every=every, keep=0.75, seed=0)
    assert agree(before, last) == counts
    assert (last.ids >= 0).all()


def test_over_several_batches(model):
    calls = []
    *before, last = model.stream(n=5, seed=0, batch_size=2, every=32, progress=lambda *at: calls.append(at))
    # Two at a time: half, whole and half of the next, ...
    assert agree(before, last) == [64, 128, 192, 256, 288]
    np.testing.assert_array_equal(last.ids, model.sample(5, seed=0).ids)
    assert calls[-1] == (320, 320)


def test_of_masked_pictures_what_is_known_is_shown_from_the_beginning(model):
    arguments = {"mask": HOLE, "num_samples": 2, "seed": 0}
    *before, last = model.stream(picture(), every=1, **arguments)
    np.testing.assert_array_equal(last.ids, model.complete(picture(), **arguments).ids)
    counts = agree(before, last)
    assert (counts[0], counts[-1]) == (2 * (56 + 1), 128 - 2)
    assert counts == sorted(counts)


def test_with_particles_the_last_result_is_that_of_complete(model):
    arguments = {"mask": HOLE, "num_samples": 2, "seed": 0, "particles": 4, "batch_size": 4}
    *before, last = model.stream(picture(), every=4, **arguments)
    expected = model.complete(picture(), **arguments)
    np.testing.assert_array_equal(last.ids, expected.ids)
    np.testing.assert_array_equal(last.effective_particles, expected.effective_particles)
    known = ~HOLE.ravel()
    assert len(before) > 4
    for result in before:  # other particles may be the best later, so only what is known stays
        np.testing.assert_array_equal(result.ids[:, known], last.ids[:, known])


@pytest.mark.parametrize("leave", ["break", "close"])
def test_leaving_stops_the_drawing(model, drawn, leave):
    stream = model.stream(n=2, seed=0, every=4, batch_size=1)
    assert drawn == []  # nothing is drawn before it is asked for
    for number, result in enumerate(stream):
        assert (result.ids[0] >= 0).sum() == 4 * (number + 1)
        if number == 2:
            break
    if leave == "close":
        stream.close()
    assert drawn == list(range(12))
    np.testing.assert_array_equal(model.sample(2, seed=0).ids[0, :12], result.ids[0, :12])


def test_two_streams_go_on_side_by_side(model):
    both = zip(model.stream(n=2, seed=0), model.stream(n=2, seed=1), strict=True)
    *_, (first, second) = both
    np.testing.assert_array_equal(first.ids, model.sample(2, seed=0).ids)
    np.testing.assert_array_equal(second.ids, model.sample(2, seed=1).ids)


def test_a_result_stays_as_it_was(model):
    results = list(model.stream(n=2, seed=0, every=16, batch_size=1, log_probs=True))
    ids = [result.ids.copy() for result in results]
    assert (results[0].ids >= 0).sum() == 16 < (ids[-1] >= 0).sum()
    # A log-probability is told of no id that isn't drawn yet.
    for result in results:
        assert not np.isfinite(result.log_probs[result.ids < 0]).any()


def test_log_probs_grow_with_the_ids(model):
    for result in model.stream(n=2, seed=0, every=16, batch_size=1, log_probs=True):
        np.testing.assert_array_equal(np.isfinite(result.log_probs), result.ids >= 0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, InputError, "every must be at least 1, not 0"),
        ({"n": 0}, InputError, "n must be at least 1"),
        ({"temprature": 1.0}, TypeError, "temprature"),
        ({"keep": 0.5}, TypeError, "keep"),  # of nothing
        ({"images": picture(), "n": 3}, TypeError, "'n'"),
        ({"images": picture(), "keep": 2.0}, InputError, "keep"),
        ({"images": "gone.png"}, InputError, "no such file"),
    ],
)
def test_what_is_wrong_is_told_at_once(model, options, error, words):
    with pytest.raises(error, match=words):
        model.stream(**options)  # no loop
