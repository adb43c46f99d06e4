"""ImageGPT: pictures in, pictures out, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagegpt
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def copied(tiny_folder, tmp_path) -> Path:
    """A model folder that the test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_the_class_is_public():
    assert imagegpt.ImageGPT is ImageGPT


# --- completing


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_shapes_of_a_result(model, count, samples):
    result = model.complete([picture(seed=seed) for seed in range(count)], num_samples=samples, seed=0)
    assert (result.ids.shape, result.ids.dtype) == ((count * samples, 64), np.int64)
    assert 0 <= result.ids.min() <= result.ids.max() < 16
    assert [len(images) for images in result.images] == [samples] * count
    assert {(image.size, image.mode) for images in result.images for image in images} == {((8, 8), "RGB")}


def test_images_are_the_ids_decoded(model):
    result = model.complete([picture(), picture(seed=1)], num_samples=2, seed=0)
    flat = [np.asarray(image) for images in result.images for image in images]
    palette = np.rint(127.5 * (model.codec.clusters.astype(float) + 1))
    np.testing.assert_array_equal(np.stack(flat).reshape(4, 64, 3), palette[result.ids])


@pytest.mark.parametrize(("keep", "given"), [(0, 0), (0.25, 16), (0.5, 32), (0.99, 63), (0.9999, 63)])
def test_kept_ids_are_never_changed(model, keep, given):
    images = [picture(seed=seed) for seed in range(3)]
    result = model.complete(images, keep=keep, num_samples=2, temperature=3.0, seed=0)
    assert result.given == given
    np.testing.assert_array_equal(result.ids[:, :given], model.encode(images).repeat(2, 0)[:, :given])


def test_the_rest_is_painted_by_the_model_and_not_copied(model):
    images = [picture(seed=seed) for seed in range(3)]
    result = model.complete(images, keep=0.5, num_samples=4, temperature=3.0, seed=0)
    rest = result.ids.reshape(3, 4, 64)[:, :, 32:]
    assert (rest != model.encode(images)[:, None, 32:]).mean() > 0.5
    assert all(not np.array_equal(rest[:, i], rest[:, j]) for i in range(4) for j in range(i))


def test_greedy_completion_equals_the_plain_forward_pass(model):
    import torch

    ids = model.complete(picture(), keep=0.5, temperature=0, seed=0).ids
    with torch.inference_mode():
        logits = model.model(torch.tensor([[16, *ids[0, :-1]]]), use_cache=False).logits[0]
    np.testing.assert_array_equal(ids[0, 32:], logits.argmax(-1)[32:].numpy())


def test_the_same_seed_gives_the_same(model):
    first, again, other = (model.complete(picture(), num_samples=2, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, other.ids)
    assert first.seed == 5


def test_without_a_seed_the_result_tells_one_that_gives_the_same(model):
    first, second = (model.complete(picture(), num_samples=2) for _ in range(2))
    assert first.seed != second.seed
    np.testing.assert_array_equal(model.complete(picture(), num_samples=2, seed=first.seed).ids, first.ids)


def test_more_samples_leave_the_first_ones_as_they_were(model):
    images = [picture(), picture(seed=1)]
    few, many = (model.complete(images, num_samples=count, seed=3).ids.reshape(2, count, 64) for count in (2, 5))
    np.testing.assert_array_equal(many[:, :2], few)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(model, batch_size):
    images = [picture(seed=seed) for seed in range(3)]
    expected = model.complete(images, num_samples=3, seed=1)
    result = model.complete(images, num_samples=3, seed=1, batch_size=batch_size)
    np.testing.assert_array_equal(result.ids, expected.ids)


def test_a_picture_gets_the_same_whatever_is_beside_it(model):
    images = [picture(20, 30), picture(8, 8, 1), picture(5, 40, 2)]
    together = model.complete(images, num_samples=2, seed=1).ids.reshape(3, 2, 64)
    for row, image in zip(together, images, strict=True):
        np.testing.assert_array_equal(row, model.complete(image, num_samples=2, seed=1).ids)


def test_progress_counts_every_id_that_is_drawn(model):
    calls = []
    model.complete(
        [picture(), picture()], keep=0.75, num_samples=3, batch_size=4, progress=lambda *at: calls.append(at)
    )
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {2 * 3 * 16}
    assert list(done) == sorted(set(done))
    assert done[-1] == 2 * 3 * 16


def test_samples_from_nothing(model):
    result = model.sample(5, seed=2, batch_size=2)
    assert result.ids.shape == (5, 64)
    assert ([len(images) for images in result.images], result.given) == ([5], 0)
    np.testing.assert_array_equal(result.ids[:3], model.sample(3, seed=2).ids)
    np.testing.assert_array_equal(result.ids[:2], model.complete(picture(), keep=0, num_samples=2, seed=2).ids)


# --- the parts


def test_encode_is_the_nearest_colour_of_the_squashed_picture(model):
    pixels = np.asarray(Image.fromarray(picture()).resize((8, 8), Image.Resampling.BILINEAR)).reshape(64, 1, 3)
    expected = ((pixels / 127.5 - 1 - model.codec.clusters.astype(float)) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(model.encode(picture()), expected[None])


def test_decode_and_encode_are_inverse_on_ids(model):
    ids = np.random.default_rng(0).integers(0, 16, (3, 64))
    images = model.decode(ids)
    assert [image.size for image in images] == [(8, 8)] * 3
    np.testing.assert_array_equal(model.encode(images), ids)


def test_the_processor_gives_the_same_ids(model):
    images = [picture(20, 30), picture(9, 5, 1), Image.new("CMYK", (7, 8), (9, 90, 200, 0))]
    np.testing.assert_array_equal(model.processor(images, return_tensors="np")["input_ids"], model.encode(images))


def test_attributes(model, tiny_folder, tiny_config, tiny_model):
    import torch

    assert model.path == tiny_folder
    assert model.grid == (8, 8)
    assert model.config.spec == tiny_config.spec == model.spec
    assert len(model.codec) == 16
    assert not model.model.training
    assert model.model is model.model
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], value)


def test_weights_in_another_dtype(tiny_folder):
    import torch

    half = ImageGPT.from_pretrained(tiny_folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.complete(picture(), seed=0).ids.shape == (1, 64)


# --- folders


def test_no_palette_and_another_number_of_colours_is_an_error(copied):
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="palette of its 16 colours is unknown"):
        ImageGPT.from_pretrained(copied)


def save_512(folder: Path, positions: int) -> Path:
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    config = ImageGPTConfig(n_positions=positions, n_embd=16, n_layer=1, n_head=1)
    ImageGPTForCausalImageModeling(config).save_pretrained(folder)
    return folder


def test_no_palette_and_512_colours_is_a_warning_and_works(tmp_path):
    with pytest.warns(UserWarning, match="using the embedded palette of 512 colours"):
        model = ImageGPT.from_pretrained(save_512(tmp_path, 64))
    assert model.grid == (8, 8)
    assert model.codec.fingerprint == ImageGPT.from_pretrained("nano").codec.fingerprint
    result = model.complete(picture(), num_samples=2, seed=0)
    assert result.ids.shape == (2, 64)
    assert result.ids.max() > 16


@pytest.mark.filterwarnings("ignore:.*embedded palette")
def test_no_palette_and_no_square_grid_is_an_error(tmp_path):
    with pytest.raises(InputError, match="square"):
        ImageGPT.from_pretrained(save_512(tmp_path, 60))


def test_a_palette_of_another_size_is_an_error(copied):
    edit(copied / "preprocessor_config.json", clusters=[[0, 0, 0]] * 15)
    with pytest.raises(InputError, match="palette has 15 colours, the model 16"):
        ImageGPT.from_pretrained(copied)


def test_a_grid_of_another_size_is_an_error(copied):
    edit(copied / "preprocessor_config.json", size={"height": 8, "width": 9})
    with pytest.raises(InputError, match="8 x 9 does not have the model's 64 positions"):
        ImageGPT.from_pretrained(copied)


def test_a_grid_need_not_be_square(copied):
    edit(copied / "preprocessor_config.json", size={"height": 4, "width": 16})
    result = ImageGPT.from_pretrained(copied, device="cpu").complete(picture(), keep=0.5, seed=0)
    assert (result.images[0][0].size, result.given) == ((16, 4), 32)


def test_a_center_crop_in_the_folder_is_used(copied):
    edit(copied / "preprocessor_config.json", crop="center")
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = picture(8, 8)
    model = ImageGPT.from_pretrained(copied)
    np.testing.assert_array_equal(model.encode(wide), model.encode(picture(8, 8)))


def test_old_bin_weights_load(copied, model):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    old = ImageGPT.from_pretrained(copied, device="cpu")
    np.testing.assert_array_equal(old.sample(2, seed=0).ids, model.sample(2, seed=0).ids)


@pytest.mark.parametrize("name", ["nonsuch", "/no/such/folder", "a/b/c"])
def test_an_unknown_model(name):
    with pytest.raises(InputError, match="There is no model"):
        ImageGPT.from_pretrained(name)


# --- numbers out of their range


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": 1}, "keep"),
        ({"keep": -0.1}, "keep"),
        ({"keep": float("nan")}, "keep"),
        ({"keep": float("inf")}, "keep"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": -2}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_named(model, arguments, words):
    with pytest.raises(InputError, match=words):
        model.complete(picture(), **arguments)


def test_sampling_no_picture_is_an_error(model):
    with pytest.raises(InputError, match="n must be at least 1"):
        model.sample(0)


@pytest.mark.parametrize("dtype", ["float31", "int8", "nn", ""])
def test_a_dtype_that_weights_can_not_have(tiny_folder, dtype):
    with pytest.raises(InputError, match="dtype must be"):
        ImageGPT.from_pretrained(tiny_folder, dtype=dtype).sample(1)


@pytest.mark.parametrize("device", ["nonsense", "cpu:x", "cuda:99"])
def test_a_device_that_is_not_there(tiny_folder, device):
    with pytest.raises(InputError, match="device"):
        ImageGPT.from_pretrained(tiny_folder, device=device).sample(1)


def test_no_picture_and_a_broken_picture(model):
    with pytest.raises(InputError, match="No picture"):
        model.complete([])
    with pytest.raises(InputError, match="Picture 1"):
        model.complete([picture(), np.zeros((0, 3))])


def test_ids_that_are_no_colours_can_not_be_decoded(model):
    with pytest.raises(ValueError, match="Id 16 is no colour"):
        model.decode(np.full((1, 64), 16))
