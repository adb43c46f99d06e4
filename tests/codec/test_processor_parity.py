"""Ids beside those of transformers' image processor, its PIL version, which computes in float64."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil as Peer

from imagegpt.checkpoint import find_model
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.processor import ImageGPTImageProcessor

VALIDATION = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"
TIE = 1e-6
SIZES = [(32, 32), (1, 1), (2, 3), (4, 50), (50, 4), (3, 200), (31, 33), (64, 64), (100, 75), (375, 500)]
SIZES += [(333, 97), (5, 1000), (224, 224), (640, 480), (127, 129)]


@pytest.fixture(scope="module")
def clusters():
    codec, _ = load_preprocessor(find_model("nano"))
    return codec.clusters


def peer_ids(clusters, pictures):
    peer = Peer(clusters, size={"height": 32, "width": 32}, do_convert_rgb=True)
    parts = [peer(pictures[i : i + 32])["input_ids"] for i in range(0, len(pictures), 32)]
    return np.concatenate([np.stack(part) for part in parts])


def assert_same_but_for_ties(ours, theirs, seen, clusters):
    """Where ids differ, both colours are equally far from the pixel, to within what float32 rounds."""
    rows, places = np.nonzero(ours != theirs)
    pixels = seen.reshape(len(ours), -1, 3)[rows, places].astype(np.float64) / 127.5 - 1
    far = [((pixels - clusters[ids[rows, places]].astype(np.float64)) ** 2).sum(-1) for ids in (ours, theirs)]
    assert np.abs(far[0] - far[1]).max(initial=0) <= TIE


def test_2000_pictures_of_cifar_10_have_the_ids_of_transformers(clusters):
    parquet = pytest.importorskip("pyarrow.parquet")
    if not VALIDATION.exists():
        pytest.skip("shared/data is not here")
    rows = parquet.read_table(VALIDATION, columns=["image"]).slice(0, 2000).to_pylist()
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    ours = np.stack(ImageGPTImageProcessor(clusters, size=32)(pictures)["input_ids"])
    seen = np.stack([np.asarray(picture) for picture in pictures])
    assert_same_but_for_ties(ours, peer_ids(clusters, pictures), seen, clusters)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr", "HSV", "1"])
def test_pictures_of_15_sizes_have_the_ids_of_transformers(clusters, mode):
    rng = np.random.default_rng(0)
    pictures = []
    for width, height in SIZES:
        rough = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
        pictures.append(rough.resize((width, height), Image.Resampling.BICUBIC).convert(mode))
    processor = ImageGPTImageProcessor(clusters, size=32)
    ours = np.stack(processor(pictures)["input_ids"])
    shrunk = [picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR) for picture in pictures]
    theirs = np.concatenate([peer_ids(clusters, [picture.convert("RGB")]) for picture in pictures])
    assert_same_but_for_ties(ours, theirs, np.stack([np.asarray(picture) for picture in shrunk]), clusters)
