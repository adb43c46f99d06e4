"""Completing what a mask says, by forcing and by particles, on a tiny model."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT

GRID = (8, 8)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_mask(seed: int = 0, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random(GRID) < share


HOLE = np.zeros(GRID, bool)
HOLE[3:5, 2:6] = True
LOWER = np.zeros(GRID, bool)
LOWER[4:] = True


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def in_torch(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="torch")


def forced(model: ImageGPT, ids: np.ndarray, known: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Plain forcing written out: the whole history again for each id, and known ids put where they come."""
    import torch

    from imagegpt.engine.warp import uniforms
    from reference.sampler import choose

    rows = []
    for sample in range(samples):
        row, noise = [], uniforms(seed, sample, len(ids))
        for position, own in enumerate(ids.tolist()):
            with torch.inference_mode():
                logits = model.model(torch.tensor([[16, *row]]), use_cache=False).logits[0, -1].double().tolist()
            row.append(own if known[position] else choose(logits, 1.0, None, None, float(noise[position])))
        rows.append(row)
    return np.array(rows)


# --- what a mask means


@settings(max_examples=40)
@given(arrays.arrays(bool, GRID).filter(np.any), st.integers(1, 3), st.integers(0, 9))
def test_kept_ids_are_never_changed(model, mask, particles, seed):
    images = [picture(seed=seed), picture(seed=seed + 1)]
    result = model.complete(images, num_samples=2, mask=mask, particles=particles, temperature=2.0, seed=seed)
    known = ~mask.ravel()
    np.testing.assert_array_equal(result.known, np.stack([known, known]))
    np.testing.assert_array_equal(result.ids[:, known], model.encode(images).repeat(2, 0)[:, known])
    assert 0 <= result.ids.min() <= result.ids.max() < 16


@pytest.mark.parametrize("seed", range(3))
def test_painted_ids_are_drawn_from_the_whole_history(model, in_torch, seed):
    image, mask = picture(seed=seed), random_mask(seed)
    expected = forced(in_torch, model.encode(image)[0], ~mask.ravel(), 2, seed)
    for one in (model, in_torch):
        np.testing.assert_array_equal(one.complete(image, num_samples=2, mask=mask, seed=seed).ids, expected)
    assert (expected[:, mask.ravel()] != model.encode(image)[:, mask.ravel()]).mean() > 0.5


def test_a_mask_of_the_lower_half_is_keep(model):
    kept = model.complete(picture(), 0.5, 3, seed=0)
    masked = model.complete(picture(), num_samples=3, mask=LOWER, seed=0)
    np.testing.assert_array_equal(masked.ids, kept.ids)
    assert masked.given == kept.given == 32


def test_keep_is_nothing_where_there_is_a_mask(model):
    results = [model.complete(picture(), keep, mask=HOLE, seed=0).ids for keep in (0.1, 0.9)]
    np.testing.assert_array_equal(*results)


def test_given_is_the_known_beginning_only(model):
    assert model.complete(picture(), mask=HOLE, seed=0).given == 3 * 8 + 2
    both = model.complete([picture(), picture()], mask=[HOLE, LOWER], seed=0)
    assert both.given == 3 * 8 + 2
    np.testing.assert_array_equal(both.known, ~np.stack([HOLE, LOWER]).reshape(2, 64))


def forms(mask: np.ndarray, tmp_path) -> dict[str, object]:
    """The same mask in every form."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.save(tmp_path / "mask.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {
        "bools": mask,
        "grey array": mask.astype(np.uint8) * 255,
        "colour array": np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2),
        "grey image": image,
        "1 bit image": image.convert("1"),
        "rgb image": image.convert("RGB"),
        "path": tmp_path / "mask.png",
        "name": str(tmp_path / "mask.png"),
        "bytes": buffer.getvalue(),
        "a list of one": [mask],
    }


@pytest.mark.parametrize("large", [False, True], ids=["of the grid", "of the picture"])
def test_masks_in_every_form(model, tmp_path, large):
    image = picture(24, 40)
    mask = HOLE.repeat(3, 0).repeat(5, 1) if large else HOLE
    expected = model.complete(image, mask=HOLE, seed=0)
    for name, form in forms(mask, tmp_path).items():
        result = model.complete(image, mask=form, seed=0)
        np.testing.assert_array_equal(result.known, expected.known, err_msg=name)
        np.testing.assert_array_equal(result.ids, expected.ids, err_msg=name)


def test_one_mask_for_all_and_one_for_each(model):
    images = [picture(), picture(seed=1), picture(16, 16, 2)]
    masks = [HOLE, LOWER, random_mask()]
    for given_masks in (HOLE, masks, tuple(masks)):
        together = model.complete(images, num_samples=2, mask=given_masks, seed=5).ids.reshape(3, 2, 64)
        each = given_masks if isinstance(given_masks, (list, tuple)) else [HOLE] * 3
        for row, image, mask in zip(together, images, each, strict=True):
            np.testing.assert_array_equal(row, model.complete(image, num_samples=2, mask=mask, seed=5).ids)


def test_a_mask_is_cropped_as_its_picture_is(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "crop": "center"}))
    model = ImageGPT.from_pretrained(folder, device="cpu")
    wide = picture(24, 48)
    mask = np.zeros((24, 48), bool)
    mask[9:15, 12 + 6 : 12 + 18] = True  # the hole, after 12 columns that the crop cuts off
    mask[:, :12] = True  # and what lies there, is not seen
    result = model.complete(wide, mask=mask, seed=0)
    np.testing.assert_array_equal(result.known[0].reshape(GRID), ~HOLE)
    np.testing.assert_array_equal(result.ids, model.complete(wide[:, 12:36], mask=HOLE, seed=0).ids)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((20, 31), bool), r"mask is 31 x 20; .*30 x 20, .*8 x 8"),
        (np.ones((30, 20), bool), r"mask is 20 x 30"),
        (np.zeros(GRID, bool), "mask paints nothing"),
        (np.zeros((20, 30), bool), "mask paints nothing"),
        ([HOLE, HOLE], "1 pictures and 2 masks"),
        ([], "1 pictures and 0 masks"),
        ("gone.png", r"gone\.png: there is no such file"),
        (b"text", "not a picture"),
        (np.zeros((8, 8, 7, 2)), "no picture"),
    ],
    ids=str,
)
def test_masks_that_can_not_be_used(model, mask, words):
    with pytest.raises(InputError, match=words):
        model.complete(picture(), mask=mask)


def test_a_mask_and_a_random_crop(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "crop": "random"}))
    model = ImageGPT.from_pretrained(folder, device="cpu")
    with pytest.raises(InputError, match='does not follow crop="random"'):
        model.complete(picture(), mask=np.ones((20, 30), bool))
    result = model.complete(picture(), mask=HOLE, seed=0)
    np.testing.assert_array_equal(result.known[0].reshape(GRID), ~HOLE)


# --- particles


def test_effective_particles_are_told_of_each_sample(model):
    images = [picture(), picture(seed=1)]
    result = model.complete(images, num_samples=3, mask=HOLE, particles=8, seed=0)
    assert (result.effective_particles.shape, result.effective_particles.dtype) == ((6,), np.float64)
    assert (result.effective_particles >= 1).all()
    assert (result.effective_particles < 8).all()
    assert len(np.unique(result.effective_particles)) == 6


@pytest.mark.parametrize("options", [{"keep": 0.4}, {"mask": LOWER}, {"mask": np.ones(GRID, bool)}], ids=str)
def test_where_nothing_known_comes_after_there_are_no_particles(model, options):
    result = model.complete(picture(), num_samples=2, particles=8, seed=0, **options)
    assert result.effective_particles is None
    np.testing.assert_array_equal(result.ids, model.complete(picture(), num_samples=2, seed=0, **options).ids)


def test_one_particle_is_forcing(model):
    one = model.complete(picture(), num_samples=2, mask=HOLE, particles=1, seed=0)
    np.testing.assert_array_equal(one.ids, model.complete(picture(), num_samples=2, mask=HOLE, seed=0).ids)
    assert one.effective_particles is None


def test_particles_fit_what_comes_after_better_than_forcing(model):
    """The known ids below are likelier under histories that particles chose."""
    images = [picture(seed=seed) for seed in range(4)]
    told = {}
    for particles in (1, 16):
        result = model.complete(images, num_samples=8, mask=HOLE, particles=particles, seed=0, log_probs=True)
        below = np.arange(64) >= 44
        told[particles] = complete_log_probs(model, result.ids)[:, below].sum(1).mean()
    assert told[16] > told[1] + 1


def complete_log_probs(model: ImageGPT, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        inputs = torch.tensor(np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=16))
        told = model.model(inputs, use_cache=False).logits.double().log_softmax(-1)
    return told.gather(2, torch.tensor(ids)[..., None])[..., 0].numpy()


@pytest.mark.parametrize("particles", [1, 4])
def test_both_backends_draw_the_same(model, in_torch, particles):
    for mask in (HOLE, random_mask(1)):
        arguments = {"num_samples": 3, "mask": mask, "particles": particles, "seed": 1, "log_probs": True}
        ours, theirs = (one.complete([picture(), picture(seed=1)], **arguments) for one in (model, in_torch))
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
        if particles > 1:
            np.testing.assert_allclose(ours.effective_particles, theirs.effective_particles, rtol=1e-3)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 5, 11, 100])
def test_the_batch_size_changes_nothing(model, batch_size, particles):
    images, masks = [picture(seed=seed) for seed in range(3)], [HOLE, random_mask(1), random_mask(2)]
    arguments = {"num_samples": 2, "mask": masks, "particles": particles, "seed": 1, "log_probs": True}
    expected = model.complete(images, **arguments)
    result = model.complete(images, batch_size=batch_size, **arguments)
    np.testing.assert_array_equal(result.ids, expected.ids)
    drawn = ~expected.known.repeat(2, 0)
    np.testing.assert_allclose(result.log_probs[drawn], expected.log_probs[drawn], atol=1e-4)
    if particles > 1:
        np.testing.assert_allclose(result.effective_particles, expected.effective_particles, rtol=1e-3)


@pytest.mark.parametrize("particles", [1, 4])
def test_a_picture_gets_the_same_whatever_is_beside_it(model, particles):
    images = [picture(), picture(8, 8, 1), picture(5, 40, 2)]
    masks = [HOLE, random_mask(1), random_mask(2, 0.9)]
    arguments = {"num_samples": 2, "particles": particles, "seed": 1}
    together = model.complete(images, mask=masks, **arguments)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        alone = model.complete(image, mask=mask, **arguments)
        rows = slice(2 * number, 2 * number + 2)
        np.testing.assert_array_equal(together.ids[rows], alone.ids)
        if particles > 1:
            np.testing.assert_allclose(together.effective_particles[rows], alone.effective_particles, rtol=1e-3)


def test_a_picture_that_needs_no_particles_gets_the_same_beside_one_that_does(model):
    images, masks = [picture(), picture(seed=1)], [LOWER, HOLE]
    arguments = {"num_samples": 3, "particles": 4, "seed": 1}
    together = model.complete(images, mask=masks, **arguments)
    np.testing.assert_array_equal(together.ids[:3], model.complete(images[0], mask=LOWER, **arguments).ids)
    np.testing.assert_array_equal(together.ids[3:], model.complete(images[1], mask=HOLE, **arguments).ids)


@pytest.mark.parametrize("particles", [1, 4])
def test_log_probs_of_masked_pictures_are_those_of_the_model(model, particles):
    images, masks = [picture(), picture(seed=1)], [HOLE, random_mask(1)]
    result = model.complete(images, num_samples=2, mask=masks, particles=particles, seed=0, log_probs=True)
    expected = complete_log_probs(model, result.ids)
    assert np.isfinite(result.log_probs[~result.known.repeat(2, 0)]).all()
    told = np.isfinite(result.log_probs)
    np.testing.assert_allclose(result.log_probs[told], expected[told], atol=1e-4)


@pytest.mark.parametrize("particles", [1, 4])
def test_which_log_probs_are_told_depends_on_the_picture_alone(model, particles):
    images, masks = [picture(), picture(seed=1)], [HOLE, random_mask(1)]
    arguments = {"particles": particles, "seed": 0, "log_probs": True}
    together = model.complete(images, mask=masks, **arguments).log_probs
    alone = [
        model.complete(image, mask=mask, **arguments).log_probs[0] for image, mask in zip(images, masks, strict=True)
    ]
    np.testing.assert_array_equal(np.isfinite(together), np.isfinite(alone))


def test_more_samples_and_particles_leave_the_first_samples_as_they_were(model):
    few, many = (model.complete(picture(), num_samples=n, mask=HOLE, particles=4, seed=3).ids for n in (2, 5))
    np.testing.assert_array_equal(many[:2], few)


@pytest.mark.parametrize(("fit", "batches"), [(1, [4, 4, 4]), (7, [4, 4, 4]), (8, [8, 4]), (99, [12])])
def test_a_batch_has_no_more_particles_than_fit_but_at_least_those_of_a_sample(model, monkeypatch, fit, batches):
    arguments = {"num_samples": 3, "mask": HOLE, "particles": 4, "seed": 1}
    expected = model.complete(picture(), **arguments).ids
    backend, rows = type(model.backend), []
    prefill = backend.prefill

    def count(self, inputs, rows_B):
        rows.append(len(rows_B))
        return prefill(self, inputs, rows_B)

    monkeypatch.setattr(backend, "prefill", count)
    monkeypatch.setattr(backend, "rows_that_fit", lambda *_: fit)
    np.testing.assert_array_equal(model.complete(picture(), **arguments).ids, expected)
    assert rows == batches


def test_progress_counts_positions_up_to_the_last_that_must_be_run(model):
    for particles, end in ((1, 4 * 8 + 6), (4, 64)):
        calls = []
        arguments = {"num_samples": 3, "mask": HOLE, "particles": particles, "batch_size": 2 * particles}
        model.complete(picture(), progress=lambda *at: calls.append(at), **arguments)  # noqa: B023
        done, totals = zip(*calls, strict=True)
        assert set(totals) == {3 * (end - (3 * 8 + 2))}
        assert list(done) == sorted(set(done))
        assert done[-1] == totals[0]


def test_int8_keeps_what_is_known(tiny_folder):
    small = ImageGPT.from_pretrained(tiny_folder, precision="int8")
    result = small.complete(picture(), num_samples=3, mask=HOLE, particles=4, seed=0)
    known = ~HOLE.ravel()
    np.testing.assert_array_equal(result.ids[:, known], small.encode(picture()).repeat(3, 0)[:, known])
    assert (result.effective_particles >= 1).all()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("axes", [3, 4])
def test_an_array_of_masks_has_one_for_each_picture(model, count, axes):
    """Three are no mask in colours, and the fourth is no transparency."""
    masks = np.stack([np.roll(HOLE, number, 0) for number in range(count)])
    given = masks if axes == 3 else masks[..., None]
    pictures = [picture(seed=number) for number in range(count)]
    known = model.complete(pictures, mask=given, seed=0).known
    np.testing.assert_array_equal(known.reshape(-1, *GRID), ~masks)


def test_a_mask_in_colours_is_one(model):
    coloured = np.repeat((HOLE * 255).astype(np.uint8)[..., None], 3, 2)
    known = model.complete([picture(), picture(), picture()], mask=coloured, seed=0).known
    np.testing.assert_array_equal(known.reshape(-1, *GRID), ~np.stack([HOLE] * 3))
