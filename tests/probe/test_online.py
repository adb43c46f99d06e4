"""The online probe: the accuracy that a probe fitted by hand has, on the same pictures each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from imagegpt.codec.palette import PaletteCodec
from imagegpt.data.records import Record, Source, Tokens
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.linear import fit_logistic
from imagegpt.probe.online import STRENGTH, OnlineProbe, spread

COLORS, GRID = 16, (8, 8)  # of tiny_folder
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (COLORS, 3)))  # the folder's
LENGTH = GRID[0] * GRID[1]


def source(count, seed=0, noise=0, broken=(), classes=("a", "b", "c")) -> Source:
    """Ids whose classes differ in their commonest colour, in the order of the classes."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 3)
    ids = np.where(rng.random((count, LENGTH)) < 0.5, 4 * labels[:, None], rng.integers(0, COLORS, (count, LENGTH)))
    labels = np.where(rng.random(count) < noise, rng.integers(0, 3, count), labels)

    def records(start, stop):
        for number in range(start, stop):
            picture = b"text" if number in broken else CODEC.decode(ids[number]).reshape(*GRID, 3)
            yield Record(f"picture {number}", picture, int(labels[number]))

    return Source("here", count, records, True, classes)


def stored(pictures: Source) -> Source:
    """The same as ids."""
    made = list(pictures)
    ids_NT = np.stack([CODEC.encode(record.picture).reshape(-1) for record in made]).astype(np.uint16)

    def records(start, stop):
        return (Record(f"row {n}", None, made[n].label, ids_NT[n]) for n in range(start, stop))

    tokens = Tokens(CODEC.fingerprint, GRID)
    return replace(pictures, records=records, tokens=tokens, ids_NT=ids_NT)


def by_hand(folder, train, test, layer):
    """Accuracy on all pictures of two sources."""
    model = ImageGPT.from_pretrained(folder)
    x, y = [], []
    for one in (train, test):
        ids = np.stack([CODEC.encode(record.picture).reshape(-1) for record in one])
        x.append(model.features_of(ids, [layer])[layer])
        y.append(np.array([record.label for record in one]))
    probe = fit_logistic(x[0], y[0], 3, strength=STRENGTH).probe
    return (probe.scores(x[1]).argmax(1) == y[1]).mean()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_accuracy_is_that_of_a_probe_fitted_by_hand(tiny_folder, layer):
    train, test = source(60, noise=0.3), source(30, seed=1, noise=0.3)
    found = OnlineProbe(train, test, 1000, layer)(tiny_folder)
    assert found == {"accuracy": by_hand(tiny_folder, train, test, layer), "layer": layer}
    assert 0.4 < found["accuracy"] < 1


def test_the_middle_layer_is_looked_at_unless_told_otherwise(tiny_folder):
    train, test = source(30), source(15, seed=1)
    assert OnlineProbe(train, test, 100)(tiny_folder) == OnlineProbe(train, test, 100, layer=1)(tiny_folder)


def test_classes_that_features_tell_apart_are_told_apart(tiny_folder):
    assert OnlineProbe(source(30), source(30, seed=1), 100)(tiny_folder)["accuracy"] == 1


def test_ids_give_what_their_pictures_give(tiny_folder):
    train, test = source(60, noise=0.3), source(30, seed=1, noise=0.3)
    pictures, ids = OnlineProbe(train, test, 20), OnlineProbe(stored(train), stored(test), 20)
    assert pictures(tiny_folder) == ids(tiny_folder)


def test_some_pictures_are_taken_evenly_and_read_once(tiny_folder):
    reads = []

    def counted(pictures):
        def records(start, stop):
            for record in pictures.records(start, stop):
                reads.append(record.name)
                yield record

        return replace(pictures, records=records)

    train, test = source(60, noise=0.3), source(60, seed=1, noise=0.3)
    probe = OnlineProbe(counted(train), counted(test), 20)
    first = probe(tiny_folder)
    taken = len(reads)
    assert probe(tiny_folder) == first
    assert len(reads) == taken
    third = [spread(one, 20) for one in (train, test)]
    assert first["accuracy"] == by_hand(tiny_folder, *third, 1)
    assert {record.label for record in third[0]} == {0, 1, 2}  # the first 20 are of one class


def test_pictures_that_can_not_be_read_are_left_out_with_their_labels(tiny_folder):
    train, test = source(60, noise=0.3), source(30, seed=1, noise=0.3)
    gone = (0, 7, 8, 29)
    left = [record for number, record in enumerate(train) if number not in gone]
    rest = Source("here", len(left), lambda start, stop: iter(left[start:stop]), True, train.classes)
    found = OnlineProbe(source(60, noise=0.3, broken=gone), test, 100)(tiny_folder)
    assert found["accuracy"] == by_hand(tiny_folder, rest, test, 1)


def test_classes_without_names_are_counted_by_their_labels(tiny_folder):
    named, plain = source(30), source(30, classes=())
    test = source(15, seed=1)
    assert OnlineProbe(plain, test, 100)(tiny_folder) == OnlineProbe(named, test, 100)(tiny_folder)


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_source_without_labels_is_told(which):
    sources = {"train": source(6), "test": source(6)}
    sources[which] = replace(sources[which], labelled=False, path=f"my {which} pictures")
    with pytest.raises(InputError, match=f"my {which} pictures has no labels"):
        OnlineProbe(**sources, count=3)


@pytest.mark.parametrize(
    ("length", "count", "taken"),
    [
        (10, 3, [0, 3, 6]),
        (10, 10, range(10)),
        (10, 99, range(10)),
        (10, 1, [0]),
        (9, 4, [0, 2, 4, 6]),
        (10, 6, [0, 1, 3, 5, 6, 8]),
    ],
)
def test_records_are_spread_evenly(length, count, taken):
    numbers = Source("here", length, lambda start, stop: (Record(str(n)) for n in range(start, stop)))
    found = spread(numbers, count)
    assert len(found) == len(taken)
    assert [int(record.name) for record in found] == list(taken)
    assert [int(record.name) for record in found.part(1)] == list(taken)[1:]
    assert [int(record.name) for record in found.part(0, 2)] == list(taken)[:2]
