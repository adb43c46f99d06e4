"""Each method's score, and each statistic, against its formula."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, features
from scipy.stats import gaussian_kde

from imagegpt.anomaly import compressors
from imagegpt.anomaly.background import Counter
from imagegpt.anomaly.compressors import check_compressor, compressed, compressor_version
from imagegpt.anomaly.methods import METHODS, Methods, check_method
from imagegpt.anomaly.statistics import MOST, STATISTICS, column, measure
from imagegpt.codec.palette import PaletteCodec
from imagegpt.engine.score import Scores
from imagegpt.errors import InputError

GRID, COLORS = (6, 5), 7
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (COLORS, 3)))


def ids_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, COLORS, (count, 30))


def test_statistics_are_what_they_say():
    rng, ids = np.random.default_rng(0), ids_of(4)
    surprise, entropy = rng.exponential(size=(2, 4, 30)).astype(np.float32)
    counter = Counter(GRID, COLORS)
    counter.add(ids_of(9, 1))
    background = counter.background()
    found = measure(ids, Scores(surprise, entropy, "palette", 3), background, CODEC, "zlib")
    assert found.shape == (4, len(STATISTICS)) and found.dtype == np.float64
    for row in range(4):
        s, pixels = surprise[row].astype(float), CODEC.decode(ids[row])
        spread = np.sqrt(np.mean((s - s.mean()) ** 2))
        bits = 8 * len(zlib.compress(pixels.tobytes(), 9))
        expected = [s.sum() / 30, entropy[row].astype(float).sum() / 30, spread]
        expected += [background.surprise(ids[row : row + 1]).sum() / 30, bits / 30 / np.log2(np.e)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)
    assert np.array_equal(column(found, "spread"), found[:, 2])


def test_an_id_that_can_not_be_is_very_surprising_and_no_more():
    surprise = np.ones((1, 30), np.float32)
    surprise[0, 3] = np.inf
    counter = Counter(GRID, COLORS)
    counter.add(ids_of(2))
    found = measure(
        ids_of(1), Scores(surprise, np.zeros_like(surprise), "palette", 3), counter.background(), CODEC, "png"
    )
    assert np.isfinite(found[0, [0, 2, 3, 4]]).all() and found[0, 0] > MOST / 31


@pytest.mark.parametrize("name", ["png", "webp", "zlib"])
def test_the_file_is_the_picture_and_its_length_the_complexity(name):
    if name == "webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    ids = np.concatenate([ids_of(1), np.zeros((1, 30), np.int64)])
    found = compressed(ids, CODEC, GRID, name)
    for row, length in zip(ids, found, strict=True):
        pixels, file = CODEC.decode(row).reshape(*GRID, 3), io.BytesIO()
        if name == "zlib":
            content = zlib.compress(pixels.tobytes(), 9)
        else:
            options = {"optimize": True} if name == "png" else {"lossless": True}
            Image.fromarray(pixels).save(file, name, **options)
            content = file.getvalue()
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), pixels)
        assert length == pytest.approx(len(content) * 8 * np.log(2) / 30)
    assert found[0] > found[1]  # noise takes more than one colour
    assert name in compressor_version(name) and any(letter.isdigit() for letter in compressor_version(name))


def test_compressors_that_are_not_there(monkeypatch):
    with pytest.raises(InputError, match="png, webp, zlib, not 'jpeg'"):
        check_compressor("jpeg")
    monkeypatch.setattr(compressors.features, "check", lambda name: False)
    check_compressor("png")
    with pytest.raises(InputError, match="without WebP"):
        check_compressor("webp")


def test_every_method_is_its_formula():
    rng = np.random.default_rng(0)
    reference, x = rng.normal(size=(2, 60, 5)) + 3
    found = Methods(reference).scores(x)
    assert tuple(found) == METHODS
    nats, _, _, background, complexity = x.T
    np.testing.assert_allclose(found["likelihood"], nats)
    np.testing.assert_allclose(found["typicality"], abs(nats - reference[:, 0].mean()))
    np.testing.assert_allclose(found["ratio"], nats - background)
    np.testing.assert_allclose(found["complexity"], nats - complexity)
    np.testing.assert_allclose(found["density"], -gaussian_kde(reference.T).logpdf(x.T), rtol=1e-6)


def test_which_way_is_up():
    """The reference is at 3: a picture far above or far below it in all numbers, and one in its middle."""
    reference = np.random.default_rng(0).normal(size=(500, 5)) + 3
    high, low, usual = np.full((1, 5), 9.0), np.full((1, 5), -3.0), reference.mean(0)[None]
    found = Methods(reference).scores(np.concatenate([high, low, usual]))
    assert found["likelihood"][0] > found["likelihood"][2] > found["likelihood"][1]  # what it gets wrong
    for method in ("typicality", "density"):
        assert min(found[method][:2]) > found[method][2]


def test_no_method():
    with pytest.raises(InputError, match=r"method must be likelihood, .*, not 'luck'"):
        check_method("luck")
