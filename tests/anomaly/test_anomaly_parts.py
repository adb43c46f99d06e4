"""How normal pictures are split."""

from __future__ import annotations

import numpy as np
import pytest

from imagegpt.anomaly.splitting import split
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import KINDS, ids_of, tokenise


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(tokenise(tmp_path_factory.mktemp("tokens") / "ids", ids_of(range(200)), list(range(200))))


def labels(part, *bounds):
    return [record.label for record in part.part(*bounds)]


def test_every_record_is_in_one_part(source):
    background, reference, heldout = split(source, 0.25, 0)
    assert (len(background), len(reference), len(heldout)) == (100, 50, 50)
    parts = [labels(part) for part in (background, reference, heldout)]
    assert all(part == sorted(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert abs(np.mean(parts[2]) - 100) < 20  # from everywhere


def test_the_seed_decides_and_nothing_else(source):
    first = [labels(part) for part in split(source, 0.25, 0)]
    assert first == [labels(part) for part in split(source, 0.25, 0)]
    assert first != [labels(part) for part in split(source, 0.25, 1)]
    assert len(split(source, 0.1, 0).heldout) == 20


def test_any_part_of_a_part_can_be_read(source):
    [heldout] = split(source, 0.25, 0)[2:]
    everything = labels(heldout)
    for start, stop in ((0, None), (0, 1), (3, 17), (49, 50), (40, 999)):
        assert labels(heldout, start, stop) == everything[start:stop]
    assert labels(heldout, 50, 60) == []


@pytest.mark.parametrize("kind", ["folder", "parquet", "npz", "shards"])
def test_every_kind_of_data(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path / "data", range(8), [number % 2 for number in range(8)]))
    parts = split(source, 0.25, 0)
    assert sorted(record.name for part in parts for record in part) == sorted(record.name for record in source)


def test_what_can_not_be_split(source, tmp_path):
    for holdout in (0, 1, -0.5, 2, np.nan):
        with pytest.raises(InputError, match="holdout must be a part"):
            split(source, holdout, 0)
    with pytest.raises(InputError, match="seed must be at least 0"):
        split(source, 0.25, -1)
    few = open_source(tokenise(tmp_path / "few", ids_of(range(1))))
    with pytest.raises(InputError, match="1 normal pictures are too few"):
        split(few, 0.25, 0)
