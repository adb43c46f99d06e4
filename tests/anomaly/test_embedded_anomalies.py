"""The embedded model on real pictures: what plain likelihood misses, and that the default method finds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagegpt import ImageGPT
from imagegpt.anomaly import Detector
from imagegpt.anomaly.judging import judge
from imagegpt.anomaly.methods import DEFAULT
from imagegpt.data.sources import open_source

VALIDATION = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"


@pytest.fixture(scope="module")
def pictures():
    """80 real pictures, still in their files."""
    if not VALIDATION.exists():
        pytest.skip("shared/data is not here")
    return [record.picture for record in open_source(VALIDATION, limit=80)]


def test_plain_likelihood_calls_flat_pictures_normal_and_the_default_does_not(pictures):
    detector = Detector.fit(ImageGPT.from_pretrained("nano", device="cpu"), pictures[:72], fpr=0.1)
    colors = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), np.uint8)
    flat, usual = detector.score(list(np.broadcast_to(colors, (6, 32, 32, 3)))), detector.score(pictures[72:])
    found = {one.method: one for one in judge(usual.scores, flat.scores, usual.thresholds)}
    assert found["likelihood"].auroc < 0.1 and found["likelihood"].found == 0
    assert found[DEFAULT].auroc > 0.95 and found[DEFAULT].found > 0.9 and found[DEFAULT].mistaken < 0.5
    # Nearly every id is what its neighbours are, and the model knows it.
    assert flat.statistics["nats"].mean() < usual.statistics["nats"].min()
    assert flat.statistics["compressed"].max() < usual.statistics["compressed"].min()
