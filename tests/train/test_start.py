"""A network's start: the paper's deviations, Hugging Face's, a folder's weights, and what no network can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from by_hand import make
from imagegpt import checkpoint
from imagegpt.codec.palette import PaletteCodec
from imagegpt.errors import InputError
from imagegpt.train.recipe import Shape
from imagegpt.train.start import new_config, new_model

COLORS, GRID = 16, (8, 8)  # of tiny_folder
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (128, 3)))
WIDTH, LAYERS = 128, 3
SHAPE = Shape(width=WIDTH, layers=LAYERS, heads=4)
# shared/facts.md, from OpenAI's code.
PAPER = {
    "wte.weight": 0.02,
    "wpe.weight": 0.01,
    "attn.c_attn.weight": 1 / math.sqrt(WIDTH),
    "attn.c_proj.weight": 1 / math.sqrt(WIDTH * LAYERS),
    "mlp.c_fc.weight": 0.02,
    "mlp.c_proj.weight": 0.02,
}


def started(seed=0, start="paper"):
    shape = Shape(width=WIDTH, layers=LAYERS, heads=4, start=start)
    return dict(new_model(shape, CODEC, GRID, seed).named_parameters())


def tiny(**changes):
    return Shape(**{"width": 32, "layers": 2, "heads": 2, **changes})


def check_plain(weights):
    """Norms are 1, biases 0, all is float32 and learnt."""
    for name, weight in weights.items():
        assert weight.dtype == torch.float32 and weight.requires_grad
        if "ln_" in name:
            assert (weight == 1).all(), name
        if name.endswith("bias"):
            assert (weight == 0).all(), name


def test_the_papers_start_has_its_deviations():
    weights = started()
    check_plain(weights)
    drawn = {name: weight for name, weight in weights.items() if weight.ndim == 2 and name != "lm_head.weight"}
    assert len(drawn) == 2 + 4 * LAYERS
    for name, weight in drawn.items():
        [wanted] = [value for end, value in PAPER.items() if name.endswith(end)]
        assert weight.std().item() == pytest.approx(wanted, rel=0.04), name
        assert abs(weight.mean().item()) < 0.04 * wanted, name
        assert weight.abs().max().item() > 3.3 * wanted, name  # normal, not uniform or cut off
    for part in weights["transformer.h.1.attn.c_attn.weight"].chunk(3, 1):
        assert part.std().item() == pytest.approx(1 / math.sqrt(WIDTH), rel=0.04)
    assert weights["transformer.wte.weight"][-1].std().item() == pytest.approx(0.02, rel=0.2)  # SOS
    assert (weights["lm_head.weight"] == 0).all()


def test_a_head_of_zeros_thinks_every_colour_as_likely():
    model = new_model(SHAPE, CODEC, GRID, 0)
    ids = torch.zeros(1, 64, dtype=torch.long)
    assert model.image_loss(ids).item() == pytest.approx(math.log(len(CODEC)), rel=1e-6)


def test_hugging_faces_start_is_like_a_transformers_models():
    from transformers.models import imagegpt as theirs

    config = new_config(SHAPE, CODEC, GRID)
    torch.manual_seed(0)
    model = theirs.ImageGPTForCausalImageModeling(theirs.ImageGPTConfig(**config.spec.__dict__))
    expected = dict(model.named_parameters())
    weights = started(start="hf")
    check_plain(weights)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        if weight.ndim == 2:
            assert weight.std().item() == pytest.approx(expected[name].std().item(), rel=0.05), name


@pytest.mark.parametrize("start", ["paper", "hf", "informed"])
def test_the_same_seed_gives_the_same_weights(start):
    torch.manual_seed(1)
    first = started(3, start)
    torch.manual_seed(2)
    again, other = started(3, start), started(4, start)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert not torch.equal(first["transformer.h.0.mlp.c_fc.weight"], other["transformer.h.0.mlp.c_fc.weight"])


def test_no_two_layers_start_alike():
    weights = started()
    names = [f"transformer.h.{layer}.mlp.c_fc.weight" for layer in range(LAYERS)]
    assert not torch.equal(weights[names[0]], weights[names[1]])


def test_informed_start_differs_from_the_plain_one_and_begins_with_quiet_blocks():
    weights = started(start="informed")
    assert all((weight == 0).all() for name, weight in weights.items() if "c_proj" in name)
    assert weights["lm_head.weight"].std() > 0
    assert all(weight.isfinite().all() for weight in weights.values())
    check_plain(weights)


def test_configuration_is_the_sizes_with_the_recipes_changes():
    config = new_config(Shape(size="nano", dropout=0.1), CODEC, (4, 6))
    assert (config.n_embd, config.n_layer, config.n_head) == (192, 8, 3)
    assert (config.vocab_size, config.n_positions) == (129, 24)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    changed = new_config(Shape(size="nano", width=64, layers=1, heads=2), CODEC, (4, 6))
    assert (changed.n_embd, changed.n_layer, changed.n_head) == (64, 1, 2)
    assert (changed.resid_pdrop, changed.embd_pdrop, changed.attn_pdrop) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("objective", "causal"), [("ar", True), ("bert", False)])
def test_masked_objective_makes_the_network_bidirectional(objective, causal):
    config = new_config(tiny(objective=objective), CODEC, GRID)
    assert getattr(config, "is_causal", True) is causal


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (tiny(size="huge"), "unknown size 'huge'"),
        (tiny(heads=5), r"n_embd \(32\) must be divisible by n_head \(5\)"),
    ],
)
def test_shapes_that_can_not_be_are_told(shape, told):
    with pytest.raises(InputError, match=f"No model can have this shape: {told}"):
        new_config(shape, CODEC, GRID)


@pytest.mark.parametrize(
    ("grid", "changes", "told"),
    [
        ((4, 8), {}, "square grid of at least 4 x 4, not 4 x 8"),
        ((2, 2), {}, "square grid of at least 4 x 4, not 2 x 2"),
        ((8, 8), {"heads": 8}, "heads of at least 8"),
        ((8, 8), {"heads": 1}, "room for colours"),
    ],
)
def test_informed_start_tells_where_it_is_not_possible(grid, changes, told):
    with pytest.raises(InputError, match=told):
        new_model(tiny(start="informed", **changes), CODEC, grid, 0)


def palette(colors=COLORS):
    return PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (colors, 3)))


def test_weights_come_from_a_folder_whatever_the_start(tiny_folder):
    model = new_model(tiny(init=str(tiny_folder), start="informed"), palette(), GRID, 0)
    stored = checkpoint.load_tensors(tiny_folder)
    weights = dict(model.named_parameters())
    assert weights.keys() == stored.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight.detach().numpy(), stored[name])


def test_weights_from_a_folder_can_be_changed_and_the_folder_stays(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = new_model(tiny(init=str(folder)), palette(), GRID, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "colors", "grid", "told"),
    [
        ({"width": 64}, COLORS, GRID, "n_embd is 32, the recipe's is 64"),
        ({"layers": 3}, COLORS, GRID, "n_layer is 2, the recipe's is 3"),
        ({"layers": 1}, COLORS, GRID, "n_layer is 2, the recipe's is 1"),
        ({"heads": 4}, COLORS, GRID, "n_head is 2, the recipe's is 4"),
        ({}, 20, GRID, "vocab_size is 17, the recipe's is 21"),
        ({}, COLORS, (4, 4), "n_positions is 64, the recipe's is 16"),
    ],
)
def test_weights_that_do_not_fit_are_told(tiny_folder, changes, colors, grid, told):
    with pytest.raises(InputError, match=f"init: .*tiny does not fit: its {told}"):
        new_model(tiny(init=str(tiny_folder), **changes), palette(colors), grid, 0)


def test_weights_of_another_function_are_told(tmp_path):
    make(activation_function="gelu").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="activation_function is gelu, the recipe's is quick_gelu"):
        new_model(tiny(init=str(tmp_path)), palette(), GRID, 0)


def test_a_tied_head_is_copied(tmp_path):
    make(tie_word_embeddings=True).save_pretrained(tmp_path)
    weights = dict(new_model(tiny(init=str(tmp_path)), palette(), GRID, 0).named_parameters())
    assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"][:-1])


def test_missing_or_empty_folders_are_told(tmp_path, folder):
    with pytest.raises(InputError, match="no model"):
        new_model(tiny(init=str(tmp_path / "nowhere")), palette(), GRID, 0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        new_model(tiny(init=str(folder)), palette(), GRID, 0)
