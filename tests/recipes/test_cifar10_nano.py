"""The recipe of the embedded model, on a few tiny pictures."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pa = pytest.importorskip("pyarrow", reason="the recipe needs the extra [train]")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn", reason="the recipe needs the extra [train]")

import muon  # noqa: E402
import start  # noqa: E402
import train  # noqa: E402
from imagegpt.codec.palette import PaletteCodec  # noqa: E402
from imagegpt.config import ImageGPTConfig  # noqa: E402
from imagegpt.model.heads import ImageGPTForCausalImageModeling  # noqa: E402

SCRIPT = Path(train.__file__)
TINY = ["--recipe.steps", "12", "--recipe.batch", "4", "--recipe.width", "32", "--recipe.layers", "2"]
TINY += ["--recipe.heads", "2", "--recipe.colors", "16", "--recipe.warmup", "2", "--no-compile", "--dtype", "float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 20)):
        records = []
        for _ in range(count):
            corners = rng.integers(0, 256, (2, 2, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(corners).resize((8, 8), Image.Resampling.BILINEAR).save(file, "PNG")
            records.append({"bytes": file.getvalue(), "path": None})
        pq.write_table(pa.table({"image": records}), folder / f"{split}.parquet")
    return folder


def run(data, out, *options, **kwargs):
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out), *TINY, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def test_stopped_and_resumed_run_gives_the_same_bits(data, tmp_path):
    assert run(data, tmp_path / "straight").returncode == 0
    for stop in ("5", "9", "12"):
        assert run(data, tmp_path / "parts", "--stop-at", stop).returncode == 0
    straight = load_file(tmp_path / "straight" / "model" / "model.safetensors")
    parts = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    assert straight.keys() == parts.keys()
    assert all(torch.equal(straight[name], parts[name]) for name in straight)
    assert json.loads((tmp_path / "parts" / "model" / "training.json").read_text())["steps"] == 12


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_interrupt_saves_before_it_leaves(data, tmp_path):
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(tmp_path), *TINY]
    command[command.index("--recipe.steps") + 1] = "100000"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["step"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] >= logged


def test_another_recipe_in_the_same_folder_is_refused(data, tmp_path):
    assert run(data, tmp_path, "--stop-at", "1").returncode == 0
    result = run(data, tmp_path, "--recipe.seed", "1")
    assert result.returncode != 0
    assert "another seed" in result.stderr and "Traceback" not in result.stderr


def test_steps_may_change_before_the_decay_and_not_after(data, tmp_path):
    assert run(data, tmp_path, "--stop-at", "3").returncode == 0
    longer = [option if option != "12" else "20" for option in TINY]
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(tmp_path), *longer]
    assert subprocess.run([*command, "--stop-at", "15"], capture_output=True, timeout=300).returncode == 0
    result = run(data, tmp_path)
    assert result.returncode != 0
    assert "decay has begun" in result.stderr


def test_batches_are_a_function_of_seed_and_step_and_cover_an_epoch():
    ids = torch.arange(24, dtype=torch.int32)[:, None].expand(24, 16).contiguous()
    recipe = train.Recipe(batch=4)
    epoch = torch.cat([train.batch_at(ids, recipe, step) for step in range(6)])
    assert sorted(epoch[:, 0].tolist()) == list(range(24))
    assert torch.equal(train.batch_at(ids, recipe, 7), train.batch_at(ids, recipe, 7))
    assert not torch.equal(train.batch_at(ids, recipe, 0), train.batch_at(ids, recipe, 6))


def test_mirroring_flips_columns_and_keeps_rows():
    ids = torch.arange(16)[None].expand(64, 16).contiguous()
    batch = train.batch_at(ids, train.Recipe(batch=64), 0).view(64, 4, 4)
    plain = torch.arange(16).view(4, 4)
    kinds = {tuple(picture.flatten().tolist()) for picture in batch}
    assert kinds == {tuple(plain.flatten().tolist()), tuple(plain.flip(1).flatten().tolist())}


def test_rate_warms_up_stays_and_falls_to_nearly_nothing():
    recipe = train.Recipe(steps=1000, warmup=100, decay=0.4)
    assert recipe.rate(0) == pytest.approx(0.01)
    assert recipe.rate(100) == recipe.rate(599) == 1
    assert recipe.rate(800) == pytest.approx(0.5)
    assert 0 < recipe.rate(999) < 0.01


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalized_matrix_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalize(matrix, steps=8))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_treats_joined_matrices_as_separate_ones():
    weight = torch.nn.Parameter(torch.zeros(8, 24))
    weight.grad = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    weight.grad[:, 8:16] *= 1000
    muon.Muon([{"params": [weight], "parts": 3}], lr=1.0).step()
    norms = [part.norm().item() for part in weight.detach().chunk(3, 1)]
    assert max(norms) / min(norms) < 1.5


def started(heads: bool) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(n_embd=192, n_layer=2, n_head=3, n_positions=256))
    colors = torch.rand(512, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    start.informed_start(model, colors, seed=0, heads=heads)
    return model.eval()


def test_first_heads_look_at_their_neighbours():
    model = started(heads=True)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 512, (1, 256), generator=torch.Generator().manual_seed(2))
    maps = model(ids, output_attentions=True).attentions[0][0]
    side = 16
    for head, (rows, columns) in enumerate(start.NEIGHBOURS[:3]):
        for row, column in ((5, 5), (9, 12), (15, 7)):
            target = (row + rows) * side + column + columns
            assert maps[head, row * side + column].argmax() == target


def test_rotation_shifts_grid_features():
    features, frequencies = start.grid_features(32, 16)
    for shift in (-2, -1, 1, 3):
        moved = features @ start.rotation(frequencies, shift)
        inside = slice(max(0, -shift), 32 - max(0, shift))
        expected = features[inside.start + shift : inside.stop + shift]
        assert torch.allclose(moved[inside], expected, atol=1e-5)


def test_informed_start_beats_the_plain_one_on_smooth_pictures():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 256, (4, 2, 2, 3), np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(c).resize((16, 16), Image.Resampling.BILINEAR)) for c in corners])
    codec = PaletteCodec(rng.uniform(-1, 1, (512, 3)))
    ids = torch.from_numpy(codec.encode(pictures).reshape(4, -1))
    informed = started(heads=True)
    start.informed_start(informed, torch.from_numpy(codec.clusters), seed=0)
    with torch.no_grad():
        assert informed.image_loss(ids) < math.log(512) - 1
