"""The model that comes with the package: its files, its numbers, and that it paints."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt.checkpoint import EMBEDDED, expected_shapes, read_spec, stored_tensors
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.pipeline import ImageGPT
from imagegpt.sequence import with_sos
from imagegpt.spec import SIZES

FOLDER = EMBEDDED["nano"]
VALIDATION = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"
PICTURES = 64


@pytest.fixture(scope="module")
def nano() -> ImageGPT:
    return ImageGPT.from_pretrained("nano", device="cpu")


def test_the_weights_are_small_enough_for_a_wheel():
    files = list(FOLDER.glob("*.safetensors"))
    assert [file.name for file in files] == ["model.safetensors"]
    assert 0 < files[0].stat().st_size <= 16 * 2**20


def test_it_is_the_nano_of_the_table():
    assert read_spec(FOLDER) == SIZES["nano"]
    assert (SIZES["nano"].n_embd, SIZES["nano"].n_layer, SIZES["nano"].n_positions) == (192, 8, 1024)


def test_the_grid_is_32_by_32_with_512_different_colours():
    codec, framing = load_preprocessor(FOLDER)
    assert (framing.height, framing.width, len(codec)) == (32, 32, 512)
    assert len(np.unique(codec.clusters, axis=0)) == 512
    assert np.abs(codec.clusters).max() <= 1.01


def test_the_file_holds_just_the_parameters():
    stored = stored_tensors(FOLDER)
    assert stored is not None
    assert {name: shape for name, (_, shape) in stored.items()} == expected_shapes(SIZES["nano"])


def test_the_weights_are_finite_and_not_all_zero(nano):
    for name, parameter in nano.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all(), name
        if name.endswith("weight"):
            assert parameter.abs().max() > 0, name


def test_the_header_says_that_torch_wrote_it():
    # transformers refuses a file without this entry
    with (FOLDER / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        assert json.loads(file.read(length))["__metadata__"]["format"] == "pt"


def test_transformers_own_class_loads_it_and_agrees(nano):
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling

    theirs, info = ImageGPTForCausalImageModeling.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 512, (2, 40)))
    with torch.inference_mode():
        expected = theirs.eval()(ids, use_cache=False).logits
        torch.testing.assert_close(nano.model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_it_completes_a_picture(nano):
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), -1)
    result = nano.complete(picture, keep=0.95, num_samples=2, seed=0)
    assert result.given == 973
    assert result.ids.shape == (2, 1024)
    np.testing.assert_array_equal(result.ids[:, :973], nano.encode(picture).repeat(2, 0)[:, :973])
    assert not np.array_equal(result.ids[0], result.ids[1])
    assert [image.size for image in result.images[0]] == [(32, 32)] * 2


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@torch.inference_mode()
def test_steps_over_the_cache_equal_one_forward_at_all_1024_positions(nano, backend):
    ids_BT = np.random.default_rng(0).integers(0, 512, (1, 1024))
    inputs = torch.from_numpy(with_sos(ids_BT[:, :-1], 512))
    expected_TK = nano.model(inputs, use_cache=False).logits[0].numpy()
    engine = ImageGPT.from_pretrained("nano", device="cpu", backend=backend).backend
    rows = engine.prefill(inputs[:, :1].numpy(), np.array([0]))
    for position in range(1023):
        np.testing.assert_allclose(engine.numpy(rows.logits_BK)[0], expected_TK[position], atol=2e-4, rtol=0)
        rows.step(engine.array(ids_BT[:, position]))
    np.testing.assert_allclose(engine.numpy(rows.logits_BK)[0], expected_TK[1023], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_int8_costs_little_of_what_it_has_learnt(nano):
    """Nats of what fp32 has drawn, under both precisions: a picture is judged, not the random numbers."""
    import torch.nn.functional as functional

    ids_BT = nano.sample(4, seed=0).ids
    with torch.inference_mode():
        logits = nano.model(torch.from_numpy(with_sos(ids_BT[:, :-1], 512)), use_cache=False).logits
    exact = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids_BT).flatten()).item()
    backend = ImageGPT.from_pretrained("nano", precision="int8").backend
    rows, log_probs = backend.prefill(np.full((1, 1), 512), np.zeros(4, int)), []
    for position in range(1024):
        log_probs.append(functional.log_softmax(torch.from_numpy(rows.logits_BK.copy()), 1).numpy())
        if position < 1023:
            rows.step(ids_BT[:, position])
    small = -np.mean([table[range(4), ids_BT[:, position]] for position, table in enumerate(log_probs)])
    assert small == pytest.approx(exact, abs=0.02)


def test_the_card_says_what_was_measured():
    figures = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures["pictures"] == 5000
    assert f"**{figures['nats_per_token']}**" in card
    assert figures["nats_per_token"] < 2.50 < figures["left_neighbour_nats_per_token"]


def validation_pictures() -> list[Image.Image]:
    if not VALIDATION.is_file():
        pytest.skip(f"no CIFAR-10 at {VALIDATION}")
    import pyarrow.parquet as parquet

    rows = next(parquet.ParquetFile(VALIDATION).iter_batches(PICTURES, columns=["image"])).to_pylist()
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]


def test_it_has_learnt_what_photographs_look_like(nano):
    ids_BT = torch.from_numpy(nano.encode(validation_pictures()))
    assert ids_BT.shape == (PICTURES, 1024)
    with torch.inference_mode():
        losses = [nano.model.image_loss(part).item() for part in ids_BT.split(8)]
        shuffled = ids_BT[:8, torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
        without_order = nano.model.image_loss(shuffled).item()
    # ln 512 = 6.24 is a guess; the same colours in a random order must be far more surprising
    assert np.mean(losses) < 2.70
    assert without_order > np.mean(losses[:1]) + 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_cards_figure_comes_out_again(tmp_path):
    if not VALIDATION.is_file():
        pytest.skip(f"no CIFAR-10 at {VALIDATION}")
    from measure import Measured, likelihood

    figures = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    found = likelihood(Measured("nano", VALIDATION.parent, tmp_path))
    assert found["nats_per_token"] == pytest.approx(figures["nats_per_token"], abs=2e-4)
    assert found["left_neighbour_nats_per_token"] == figures["left_neighbour_nats_per_token"]


@pytest.mark.slow
def test_a_checkpoint_of_the_small_size_that_transformers_saved_completes_a_photograph(tmp_path, monkeypatch, capsys):
    from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig
    from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling

    from imagegpt.cli.main import main

    ImageGPTForCausalImageModeling(ImageGPTConfig()).save_pretrained(tmp_path / "small")
    photo = Path(__file__).resolve().parents[1] / "examples" / "chelsea.jpg"
    monkeypatch.chdir(tmp_path)
    assert main(["complete", str(photo), "--model", "small", "--num", "1", "--keep", "0.9", "--out", "small.png"]) == 0
    assert Image.open("small.png").size[0] > 3 * 128
    assert "no preprocessor_config.json" in capsys.readouterr().err
