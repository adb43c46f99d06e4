"""Fixtures that several test folders share: a tiny model, in memory and as a folder in HF's layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run, and no deadline: machines are busy.
settings.register_profile("imagegpt", derandomize=True, deadline=None, database=None)
settings.load_profile("imagegpt")

# Read when torch is imported: for models this small, threads only get into one another's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test reaches for the network; importing transformers or the Hub's client comes after this.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests leave no tables in the user's cache.
os.environ.setdefault("IMAGEGPT_CACHE", "off")

GRID = (8, 8)
COLORS = 16


@pytest.fixture(scope="session")
def tiny_config():
    from imagegpt.config import ImageGPTConfig

    return ImageGPTConfig(vocab_size=COLORS + 1, n_positions=GRID[0] * GRID[1], n_embd=32, n_layer=2, n_head=2)


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """A model with large weights: with the default initialisation all ids are about equally likely."""
    import torch

    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(tiny_config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory) -> Path:
    """A model folder: 8 x 8 ids, 16 colours. Tests only read it; who changes it copies it first."""
    from imagegpt.codec.palette import PaletteCodec
    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.save_pretrained(folder)
    clusters = np.random.default_rng(0).uniform(-1, 1, (COLORS, 3))
    save_preprocessor(folder, PaletteCodec(clusters), Framing(*GRID))
    return folder


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model folder that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(scope="session")
def tiny_vqvae():
    """A codec of 16 codes for 2 x 2 pixels each: as many as the tiny model has colours."""
    import torch

    from imagegpt.codec.vqvae.config import VQVAEConfig
    from imagegpt.codec.vqvae.model import VQVAE

    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(factor=2, num_codes=COLORS, code_width=4, width=8, blocks=1, block_width=4)).eval()


@pytest.fixture(scope="session")
def tiny_coded_folder(tiny_config, tiny_vqvae, tmp_path_factory) -> Path:
    """A model folder whose ids are codes: 8 x 8 of them, for 16 x 16 pixels. Tests only read it."""
    import torch

    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "coded"
    ImageGPTForCausalImageModeling(tiny_config).save_pretrained(folder)
    save_preprocessor(folder, tiny_vqvae, Framing(16, 16))
    return folder


@pytest.fixture(params=["palette", "codes"])
def either_folder(request) -> Path:
    """The tiny model with either codec, whichever it is: what comes after it must not care. Tests only read it."""
    return request.getfixturevalue({"palette": "tiny_folder", "codes": "tiny_coded_folder"}[request.param])
