"""ImageGPT over a codec whose ids stand for blocks of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPT, InputError
from imagegpt.pipeline import UNDRAWN

CODES, SIDE = 8, 16


@pytest.fixture(scope="module")
def model(tiny_coded_folder):
    return ImageGPT.from_pretrained(tiny_coded_folder, device="cpu")


def picture(seed=0, shape=(SIDE, SIDE, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_it_knows_its_grid_and_its_codec(model):
    assert model.grid == (CODES, CODES) and model.framing.size == (SIDE, SIDE)
    assert model.codec.name == "VQ-VAE of 16 codes for 2 x 2 pixels"


def test_pictures_of_any_size_become_ids_of_the_codec(model):
    large = picture(shape=(40, 60, 3))
    ids_BT = model.encode([large, picture(1)])
    assert ids_BT.shape == (2, CODES * CODES) and ids_BT.dtype == np.int64
    framed = model.framing.apply(Image.fromarray(large))
    np.testing.assert_array_equal(ids_BT[0], model.codec.encode(framed).reshape(-1))


def test_a_completion_keeps_the_codes_of_the_upper_part(model):
    result = model.complete(picture(), keep=0.5, num_samples=2, seed=0)
    known = model.encode(picture())[0]
    assert (result.ids[:, : CODES * CODES // 2] == known[: CODES * CODES // 2]).all()
    assert [image.size for image in result.images[0]] == [(SIDE, SIDE)] * 2
    decoded = model.codec.decode(result.ids.reshape(2, CODES, CODES))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in result.images[0]]), decoded)


@pytest.mark.parametrize("pixel", [(0, 0), (5, 3), (15, 15)])
def test_a_mask_paints_every_code_that_it_touches_and_no_other(model, pixel):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[pixel] = True
    known = model.complete(picture(), mask=mask, seed=0).known.reshape(CODES, CODES)
    assert not known[pixel[0] // 2, pixel[1] // 2] and known.sum() == CODES * CODES - 1


def test_what_is_not_drawn_is_grey_in_whole_blocks(model):
    ids_BT = model.encode(picture())
    ids_BT[0, 9] = -1
    image = np.asarray(model.decode(ids_BT)[0])
    grey = (image == UNDRAWN).all(2)
    assert grey[2:4, 2:4].all()
    ids_BT[0, 9] = ids_BT[0, 1]  # as the one above continues
    whole = np.asarray(model.decode(ids_BT)[0])
    np.testing.assert_array_equal(image[~grey], whole[~grey])


def test_what_is_not_drawn_continues_the_known_codes_above_it_in_the_decoder(model):
    ids_BT = model.encode(picture())
    cut = ids_BT.copy()
    cut[:, CODES * CODES // 2 :] = -1
    upper = np.asarray(model.decode(cut)[0])[: SIDE // 2]
    rows = ids_BT.reshape(CODES, CODES)
    continued = np.concatenate([rows[: CODES // 2], np.repeat(rows[CODES // 2 - 1 : CODES // 2], CODES // 2, 0)])
    np.testing.assert_array_equal(upper, model.codec.decode(continued)[: SIDE // 2])
    assert (np.asarray(model.decode(np.full((1, CODES * CODES), -1))[0]) == UNDRAWN).all()


def test_a_stream_shows_row_after_row_of_codes(model):
    rows = [(np.asarray(result.images[0][0]) == UNDRAWN).all(2).all(1).sum() for result in model.stream(seed=0)]
    assert rows == [*range(SIDE - 2, 0, -2), 0]


def test_bits_per_dim_are_of_the_pixels_that_codes_stand_for(model):
    scores = model.score(picture())
    assert scores.codec == model.codec.name and scores.dims == 12
    np.testing.assert_allclose(scores.bits_per_dim, scores.nats_per_token / (math.log(2) * 12))


def test_a_folder_whose_codec_does_not_fit_is_refused(tiny_coded_folder, tiny_vqvae, tmp_path):
    import shutil

    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor

    folder = shutil.copytree(tiny_coded_folder, tmp_path / "model")
    save_preprocessor(folder, tiny_vqvae, Framing(8, 8))
    with pytest.raises(InputError, match="a grid of 4 x 4 does not have the model's 64 positions"):
        ImageGPT.from_pretrained(folder)
    save_preprocessor(folder, tiny_vqvae, Framing(16, 15))
    with pytest.raises(InputError, match="Pictures of 16 x 15 can't be divided into the codec's blocks of 2 x 2"):
        ImageGPT.from_pretrained(folder)
