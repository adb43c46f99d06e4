"""What a codec loses of pictures: every number by hand, for palettes and for networks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.quality import Quality

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 12, 3), np.uint8)
PIXELS.flags.writeable = False  # nobody may change what is judged


@pytest.fixture(params=["palette", "codes"])
def codec(request):
    """With a palette ids are stable; a network that has not learnt changes them, once its codes are its vectors."""
    if request.param == "palette":
        return PaletteCodec(np.random.default_rng(1).uniform(-1, 1, (16, 3)))
    model = copy.deepcopy(request.getfixturevalue("tiny_vqvae"))
    with torch.no_grad():
        vectors = model.encoder(torch.tensor(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1)
        model.quantizer.codebook.copy_(vectors.permute(0, 2, 3, 1).reshape(-1, 4)[:16])
    return model


def by_hand(codec, pixels: np.ndarray) -> dict[str, float]:
    """One picture, one id after the other."""
    ids = [codec.encode(picture) for picture in pixels]
    seen = [codec.decode(grid) for grid in ids]
    again = [codec.encode(picture) for picture in seen]
    errors = [one.astype(float) - other for one, other in zip(seen, pixels, strict=True)]
    squares = [float((error**2).mean()) for error in errors]
    flat = np.concatenate([grid.ravel() for grid in ids]).tolist()
    parts = [flat.count(number) / len(flat) for number in set(flat)]
    return {
        "psnr": 10 * math.log10(255**2 / np.mean(squares)),
        "mean_psnr": float(np.mean([10 * math.log10(255**2 / square) for square in squares])),
        "rmse": math.sqrt(np.mean(squares)),
        "mae": float(np.mean([np.abs(error).mean() for error in errors])),
        "used": len(set(flat)) / len(codec),
        "perplexity": math.exp(-sum(part * math.log(part) for part in parts)),
        "stable": float(np.mean(np.concatenate(again).ravel() == flat)),
    }


def test_the_numbers_are_those_by_hand(codec):
    """However the pictures come in batches."""
    expected = {**by_hand(codec, PIXELS), "pictures": 7}
    assert (expected["stable"] == 1) is isinstance(codec, PaletteCodec)
    assert 0 < expected["used"] <= 1 < expected["perplexity"]
    for size in (1, 3, 7):
        quality = Quality(codec, again=True)
        for start in range(0, 7, size):
            quality.add(PIXELS[start : start + size])
        quality.add(PIXELS[:0])
        found = quality.result()
        assert found.pop("codec") == codec.name
        assert found == pytest.approx(expected, rel=1e-9)


def test_what_comes_out_is_given_back(codec):
    seen = Quality(codec).add(PIXELS)
    np.testing.assert_array_equal(seen, codec.decode(codec.encode(PIXELS)))
    assert "stable" not in Quality(codec).result()


def test_states_of_several_processes_add_up(codec):
    whole = Quality(codec, again=True)
    whole.add(PIXELS)
    parts = [Quality(codec, again=True) for _ in range(3)]  # the last one has no picture
    parts[0].add(PIXELS[:4])
    parts[1].add(PIXELS[4:])
    summed = [sum(values) for values in zip(*(part.state() for part in parts), strict=True)]
    parts[2].restore(summed)
    found, expected = parts[2].result(), whole.result()
    assert found.pop("codec") == expected.pop("codec")
    assert found == pytest.approx(expected, rel=1e-12)
    parts[2].add(PIXELS)
    assert parts[2].result()["pictures"] == 14


def test_what_loses_nothing_has_an_infinite_psnr():
    quality = Quality(PaletteCodec([[-1, -1, -1], [1, 1, 1]]), again=True)
    quality.add(np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8))
    assert quality.result() == {
        **{"psnr": math.inf, "mean_psnr": math.inf, "rmse": 0, "mae": 0},
        **{"used": 1, "perplexity": pytest.approx(2), "stable": 1, "codec": "palette of 2", "pictures": 1},
    }


def test_colours_that_are_drawn_as_one_are_not_stable():
    """Level 127 is nearer to the second, which is drawn as 128, as is the first; that is nearer to the first."""
    quality = Quality(PaletteCodec([[0.004] * 3, [0.0004] * 3]), again=True)
    quality.add(np.array([[[[127] * 3, [128] * 3, [129] * 3, [255] * 3]]], np.uint8))
    assert quality.result()["stable"] == 0.75


def test_the_psnr_of_one_level_is_that_of_the_textbook():
    """20 log10(255); a picture without any error makes the mean of the pictures' own infinite, but not the whole's."""
    quality = Quality(PaletteCodec([[-1, -1, -1], [1, 1, 1]]))
    quality.add(np.full((1, 2, 2, 3), 1, np.uint8))
    assert quality.result()["psnr"] == quality.result()["mean_psnr"] == pytest.approx(48.1308, abs=1e-4)
    quality.add(np.zeros((1, 2, 2, 3), np.uint8))
    found = quality.result()
    assert (found["psnr"], found["mean_psnr"]) == (pytest.approx(48.1308 + 10 * math.log10(2), abs=1e-4), math.inf)


def test_ids_that_all_occur_as_often_have_the_perplexity_of_their_number():
    codec = PaletteCodec(np.linspace(-1, 1, 8)[:, None].repeat(3, 1))
    quality = Quality(codec)
    quality.add(codec.decode(np.arange(8).reshape(1, 2, 4)))
    assert (quality.result()["perplexity"], quality.result()["used"]) == (pytest.approx(8), 1)
    quality.add(codec.decode(np.zeros((100, 10, 10), int)))
    assert 1 < quality.result()["perplexity"] < 1.1


def test_no_pictures_have_no_quality():
    found = Quality(PaletteCodec([[-1, -1, -1], [1, 1, 1]])).result()
    assert found["pictures"] == found["used"] == 0
    assert math.isnan(found["psnr"])
    assert math.isnan(found["mean_psnr"])
