"""ImageGPT: pictures in, pictures out, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import imagegpt
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def in_torch(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="torch")


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_in_another_precision_run_in_torch(tiny_folder, precision):
    import torch

    half = ImageGPT.from_pretrained(tiny_folder, device="cpu", precision=precision)
    assert type(half.backend).__name__ == "TorchBackend"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert {parameter.dtype for parameter in half.model.parameters()} == {dtype}
    assert half.complete(picture(), seed=0).ids.shape == (1, 64)


# --- backends


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3, "top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_both_backends_draw_the_same(model, in_torch, options):
    images = [picture(), picture(seed=1)]
    ids = [one.complete(images, 0.3, 4, seed=2, **options).ids for one in (model, in_torch)]
    np.testing.assert_array_equal(*ids)
    np.testing.assert_array_equal(*(one.sample(4, seed=2, **options).ids for one in (model, in_torch)))


def test_a_cpu_means_onnxruntime_unless_torch_is_asked_for(tiny_folder, model, in_torch):
    assert type(model.backend).__name__ == "OnnxBackend"
    assert type(in_torch.backend).__name__ == "TorchBackend"
    compiled = ImageGPT.from_pretrained(tiny_folder, device="cpu", compile=True)
    assert type(compiled.backend).__name__ == "TorchBackend"


def test_a_checkpoint_that_is_open_is_not_opened_again(tiny_folder, copied, model):
    assert ImageGPT.from_pretrained(tiny_folder, device="cpu").backend is model.backend
    assert ImageGPT.from_pretrained(copied, device="cpu").backend is model.backend  # the same files elsewhere
    edit(copied / "config.json", layer_norm_epsilon=0.1)
    other = ImageGPT.from_pretrained(copied, device="cpu")
    assert other.backend is not model.backend
    assert not np.array_equal(other.sample(2, seed=0).ids, model.sample(2, seed=0).ids)


def test_int8_draws_nearly_what_fp32_draws_and_not_quite(tiny_folder, model):
    small = ImageGPT.from_pretrained(tiny_folder, precision="int8")
    assert small.backend.cache_dtype == np.int8
    images = [picture(seed=seed) for seed in range(4)]
    ours, exact = (one.complete(images, 0.5, 4, seed=0, log_probs=True) for one in (small, model))
    np.testing.assert_array_equal(ours.ids[:, :32], exact.ids[:, :32])
    # The first id after the prompt is drawn from the same history, with the same number.
    assert (ours.ids[:, 32] == exact.ids[:, 32]).mean() > 0.8
    same = ours.ids[:, 32] == exact.ids[:, 32]
    difference = np.abs(ours.log_probs - exact.log_probs)[same, 32]
    assert 0 < difference.max() < 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8", "backend": "torch"}, "int8"),
        ({"precision": "int8", "device": "cuda"}, "int8"),
        ({"precision": "int8", "device": "mps"}, "int8"),
        ({"precision": "bf16", "backend": "onnx"}, 'bf16.*needs backend="torch"'),
        ({"precision": "fp16", "backend": "onnx"}, 'fp16.*needs backend="torch"'),
        ({"backend": "onnx", "device": "cuda"}, 'cuda.*needs backend="torch"'),
        ({"backend": "tensorflow"}, "backend must be .*tensorflow"),
        ({"precision": "float31"}, "precision must be one of fp32, bf16, fp16, int8, not 'float31'"),
        ({"precision": "bfloat16"}, "precision must be"),
        ({"precision": ""}, "precision must be"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_at_once(tiny_folder, options, words):
    with pytest.raises(InputError, match=words):
        ImageGPT.from_pretrained(tiny_folder, **options)


def save_tied(folder: Path) -> Path:
    """A folder whose head is its embedding."""
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    config = ImageGPTConfig(
        vocab_size=17, n_positions=64, n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=True, initializer_range=0.4
    )
    ImageGPTForCausalImageModeling(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_head_that_is_the_embedding(copied, tmp_path, precision):
    from safetensors import safe_open

    folder = save_tied(tmp_path / "tied")
    shutil.copy(copied / "preprocessor_config.json", folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - it is no dictionary
    tied = ImageGPT.from_pretrained(folder, device="cpu", precision=precision, backend="onnx")
    torch_ids = ImageGPT.from_pretrained(folder, device="cpu", backend="torch").sample(4, seed=0).ids
    ids = tied.sample(4, seed=0).ids
    if precision == "fp32":
        np.testing.assert_array_equal(ids, torch_ids)
    else:
        assert (ids[:, 0] == torch_ids[:, 0]).mean() > 0.7
    assert len(np.unique(torch_ids)) > 4


# --- what is told about a result


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_those_of_the_model_and_nan_just_in_the_prompt(model, in_torch, temperature):
    import torch

    images = [picture(), picture(seed=1)]
    for one in (model, in_torch):
        result = one.complete(images, 0.3, 3, seed=0, temperature=temperature, top_k=9, batch_size=4, log_probs=True)
        assert (result.log_probs.shape, result.log_probs.dtype) == ((6, 64), np.float64)
        with torch.inference_mode():
            inputs = torch.tensor(np.pad(result.ids[:, :-1], ((0, 0), (1, 0)), constant_values=16))
            told = in_torch.model(inputs, use_cache=False).logits.double().log_softmax(-1)
        expected = told.gather(2, torch.tensor(result.ids)[..., None])[..., 0].numpy()
        assert result.given == 19
        expected[:, :19] = np.nan
        np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)


def test_log_probs_are_told_on_request_only(model):
    assert model.complete(picture(), seed=0).log_probs is None
    assert np.isfinite(model.sample(2, seed=0, log_probs=True).log_probs).all()


def test_known_is_told_for_each_picture(model):
    result = model.complete([picture(), picture(seed=1)], 0.25, 2, seed=0)
    np.testing.assert_array_equal(result.known, np.tile(np.arange(64) < 16, (2, 1)))
    nothing = model.sample(3, seed=0)
    np.testing.assert_array_equal(nothing.known, np.zeros((1, 64), bool))


# --- options


def test_a_seed_for_each_picture(model):
    images = [picture(), picture(seed=1), picture(seed=2)]
    result = model.complete(images, 0.5, 2, seed=[4, 9, 4])
    assert result.seed == [4, 9, 4]
    for number, (image, seed) in enumerate(zip(images, result.seed, strict=True)):
        alone = model.complete(image, 0.5, 2, seed=seed)
        np.testing.assert_array_equal(result.ids[2 * number : 2 * number + 2], alone.ids)
    assert not np.array_equal(result.ids, model.complete(images, 0.5, 2, seed=4).ids)


@pytest.mark.parametrize(
    ("seed", "words"),
    [([1], "2 pictures and 1 seeds"), ([1, 2, 3], "2 .* and 3"), ([1, -1], "not -1"), ([], "0 seeds")],
)
def test_seeds_that_do_not_fit(model, seed, words):
    with pytest.raises(InputError, match=words):
        model.complete([picture(), picture()], seed=seed)


@pytest.mark.parametrize("first", [1, 5, 9])
def test_samples_from_a_number_on(model, first):
    ten = model.sample(10, seed=3).ids
    np.testing.assert_array_equal(model.sample(10 - first, seed=3, first=first, batch_size=2).ids, ten[first:])
    with pytest.raises(InputError, match="first must be at least 0, not -1"):
        model.sample(1, first=-1)


@pytest.mark.parametrize("k", [1, 3])
def test_transformers_top_k_is_ours(in_torch, k):
    from transformers import TopKLogitsWarper

    theirs = in_torch.complete(picture(), 0.2, 4, seed=0, logits_processor=TopKLogitsWarper(k))
    np.testing.assert_array_equal(theirs.ids, in_torch.complete(picture(), 0.2, 4, seed=0, top_k=k).ids)
    assert not np.array_equal(theirs.ids, in_torch.complete(picture(), 0.2, 4, seed=0).ids)


def test_suppressed_colours_are_not_drawn_and_log_probs_stay_the_models(in_torch):
    from transformers import SuppressTokensLogitsProcessor, TopKLogitsWarper

    usual = in_torch.sample(4, seed=0).ids
    common = np.bincount(usual.ravel(), minlength=16).argsort()[-8:].tolist()
    processors = [SuppressTokensLogitsProcessor(common, device="cpu"), TopKLogitsWarper(4)]
    result = in_torch.sample(4, seed=0, logits_processor=processors, log_probs=True)
    assert set(np.unique(result.ids)).isdisjoint(common)
    assert np.isfinite(result.log_probs).all()
    assert np.exp(result.log_probs[:, 0]).max() < 0.9  # not renormalised to what was left


def test_a_processor_sees_sos_and_the_ids_so_far(in_torch):
    seen = []

    def look(ids, logits):
        seen.append(ids.numpy().copy())
        return logits.fill_(0)  # in place, which must not matter to log_probs

    result = in_torch.complete(picture(), 0.5, 2, seed=0, logits_processor=look, log_probs=True)
    assert [ids.shape for ids in seen] == [(2, length) for length in range(33, 65)]
    assert (seen[-1][:, 0] == 16).all()
    np.testing.assert_array_equal(seen[-1][:, 1:], result.ids[:, :-1])
    assert np.nanstd(result.log_probs) > 0.1


def test_a_processor_without_torch_is_refused(model):
    with pytest.raises(InputError, match=r'logits_processor needs the torch backend.*backend="torch"'):
        model.complete(picture(), logits_processor=lambda ids, logits: logits)


@pytest.mark.parametrize("verb", ["complete", "sample", "stream"])
def test_a_misspelt_option_is_a_type_error(model, verb):
    arguments = (picture(),) if verb == "complete" else ()
    with pytest.raises(TypeError, match="temprature"):
        getattr(model, verb)(*arguments, temprature=0.5)


# --- memory


def test_where_memory_is_short_rows_are_drawn_one_by_one(model, monkeypatch):
    backend, images = type(model.backend), [picture(seed=seed) for seed in range(2)]
    expected = model.complete(images, num_samples=3, seed=1).ids
    rows, prompts, prefill = [], [], backend.prefill

    def count(self, inputs, rows_B):
        rows.append(len(rows_B))
        return prefill(self, inputs, rows_B)

    monkeypatch.setattr(backend, "prefill", count)
    monkeypatch.setattr(backend, "rows_that_fit", lambda _, prompt: prompts.append(prompt) or 1)
    ids = model.complete(images, num_samples=3, seed=1, batch_size=4).ids
    assert (rows, prompts) == ([1] * 6, [32])
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(("asked", "rows"), [(None, [5]), (2, [2, 2, 1]), (3, [3, 2])])
def test_batches_are_as_large_as_asked(model, monkeypatch, asked, rows):
    found, prefill = [], type(model.backend).prefill

    def count(self, inputs, rows_B):
        found.append(len(rows_B))
        return prefill(self, inputs, rows_B)

    monkeypatch.setattr(type(model.backend), "prefill", count)
    model.sample(5, seed=0, batch_size=asked)
    assert found == rows


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
    with pytest.raises(InputError, match="its codec is a palette of 15, and the model has 16 colours"):
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


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_old_bin_weights_load(copied, model, backend):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    old = ImageGPT.from_pretrained(copied, device="cpu", backend=backend)
    assert type(old.backend).__name__.lower() == f"{backend}backend"
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
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"particles": 0}, "particles"),
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


# Numbers that are none.


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_damaged_weights_are_told_and_not_drawn_from(copied, backend):
    weights = load_file(copied / "model.safetensors")
    weights["transformer.h.0.ln_1.weight"][3] = np.nan
    save_file(weights, copied / "model.safetensors")
    damaged = ImageGPT.from_pretrained(copied, device="cpu", backend=backend)
    with pytest.raises(InputError, match="scores that are no numbers"):
        damaged.sample(2, seed=0)
    with pytest.raises(InputError, match="features that are not finite in fp32"):
        damaged.features(picture())


def test_numbers_of_numpy_are_numbers(model):
    plain = model.complete([picture(), picture()], 0.5, 2, top_k=5, seed=[3, 4], batch_size=3)
    same = model.complete(
        [picture(), picture()],
        np.float64(0.5),
        np.int64(2),
        top_k=np.int64(5),
        seed=np.array([3, 4]),
        batch_size=np.int32(3),
    )
    np.testing.assert_array_equal(plain.ids, same.ids)
    np.testing.assert_array_equal(model.features(picture(), 1), model.features(picture(), np.array([1]))[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": "0"}, "seed must be a whole number of at least 0, not '0'"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, not 1.5"),
        ({"temperature": None}, "temperature must be a number, not None"),
        ({"top_p": "0.5"}, "top_p must be a number, not '0.5'"),
        ({"n": 2.0}, "n must be a whole number, not 2.0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
    ],
)
def test_what_is_no_number_is_named(model, options, words):
    with pytest.raises(InputError, match=words):
        model.sample(**options)


@pytest.mark.parametrize("shape", [(64,), (2, 63), (1, 8, 8)])
def test_ids_of_another_shape_are_no_pictures(model, shape):
    with pytest.raises(InputError, match=r"shape \(pictures, 64\), not \("):
        model.decode(np.zeros(shape, int))


def test_onnxruntime_compiles_nothing(tiny_folder):
    with pytest.raises(InputError, match='compile needs backend="torch"'):
        ImageGPT.from_pretrained(tiny_folder, backend="onnx", compile=True)
