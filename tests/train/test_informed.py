"""The informed start: embeddings that know the grid and the colours, heads that look at neighbours."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from imagegpt.codec.palette import PaletteCodec
from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.train import informed


def started(heads: bool, causal: bool = True) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    config = ImageGPTConfig(n_embd=192, n_layer=2, n_head=3, n_positions=256)
    config.is_causal = causal
    model = ImageGPTForCausalImageModeling(config)
    colors = torch.rand(512, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    informed.informed_start(model, colors, seed=0, heads=heads)
    return model.eval()


def test_first_heads_look_at_their_neighbours():
    model = started(heads=True)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 512, (1, 256), generator=torch.Generator().manual_seed(2))
    maps = model(ids, output_attentions=True).attentions[0][0]
    side = 16
    for head, (rows, columns) in enumerate(informed.NEIGHBOURS[:3]):
        for row, column in ((5, 5), (9, 12), (15, 7)):
            target = (row + rows) * side + column + columns
            assert maps[head, row * side + column].argmax() == target


def test_a_bidirectional_network_looks_around():
    model = started(heads=True, causal=False)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 512, (1, 256), generator=torch.Generator().manual_seed(2))
    maps = model(ids, output_attentions=True).attentions[0][0]
    for head, (rows, columns) in enumerate(informed.AROUND[:3]):
        for row, column in ((5, 5), (9, 12), (14, 7)):
            assert maps[head, row * 16 + column].argmax() == (row + rows) * 16 + column + columns


def test_rotation_shifts_grid_features():
    features, frequencies = informed.grid_features(32, 16)
    for shift in (-2, -1, 1, 3):
        moved = features @ informed.rotation(frequencies, shift)
        inside = slice(max(0, -shift), 32 - max(0, shift))
        expected = features[inside.start + shift : inside.stop + shift]
        assert torch.allclose(moved[inside], expected, atol=1e-5)


def test_informed_start_beats_the_plain_one_on_smooth_pictures():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 256, (4, 2, 2, 3), np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(c).resize((16, 16), Image.Resampling.BILINEAR)) for c in corners])
    codec = PaletteCodec(rng.uniform(-1, 1, (512, 3)))
    ids = torch.from_numpy(codec.encode(pictures).reshape(4, -1))
    model = started(heads=True)
    informed.informed_start(model, torch.from_numpy(codec.clusters), seed=0)
    with torch.no_grad():
        assert model.image_loss(ids) < math.log(512) - 1
