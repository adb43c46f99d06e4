"""What is not loaded costs no time: painting on a CPU takes neither torch nor transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifiers import make
from imagegpt.engine.backends import may_have_accelerator

HEAVY = ("torch", "transformers", "sklearn", "pyarrow", "gradio", "datasets", "safetensors", "scipy", "pandas")
CODE = f"""
import sys
from imagegpt.cli.main import main
code = main(sys.argv[1:])
print("code", code)
print("loaded", *(name for name in {HEAVY} if name in sys.modules))
print("ours", "onnxruntime" in sys.modules)
"""
# Where a driver says that there may be a GPU, torch is asked.
DEVICE = ("--device", "cpu") if may_have_accelerator() else ()


def run(place: Path, *arguments: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments, *DEVICE],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=300,
        env={**os.environ, "IMAGEGPT_CACHE": str(place / "cache")},
    )
    assert done.stderr == ""
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines()[-3:])


@pytest.fixture
def place(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_completing_with_the_embedded_model(place, precision):
    told = run(place, "complete", "cat.png", "--num", "1", "--keep", "0.99", "--precision", precision, "--out", "a.png")
    assert told == {"code": "0", "loaded": "", "ours": "True"}
    with Image.open(place / "a.png") as image:
        image.load()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("out", ["a.png", "a.npz"])
def test_sampling(place, tiny_folder, precision, out):
    told = run(place, "sample", "--model", str(tiny_folder), "--num", "2", "--precision", precision, "--out", out)
    assert told == {"code": "0", "loaded": "", "ours": "True"}
    assert (place / out).is_file()


def test_masks_and_particles(place, tiny_folder):
    mask = np.zeros((8, 8), bool)
    mask[3] = True
    Image.fromarray(mask).save(place / "mask.png")
    arguments = ["--mask", "mask.png", "--particles", "4", "--num", "1", "--out", "a.png"]
    told = run(place, "complete", "cat.png", "--model", str(tiny_folder), *arguments)
    assert told == {"code": "0", "loaded": "", "ours": "True"}


def test_the_check_notices_torch(place, tiny_folder):
    """Torch's backend takes torch."""
    told = run(place, "sample", "--model", str(tiny_folder), "--num", "1", "--backend", "torch", "--out", "a.png")
    assert told["code"] == "0"
    assert told["loaded"].split()[:2] == ["torch", "transformers"]


def test_classifying_by_a_class_head(place):
    model = make(place / "model")
    told = run(place, "classify", "cat.png", "--model", str(model))
    assert told == {"code": "0", "loaded": "", "ours": "True"}
