from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.spec import SIZES, ModelSpec, size_spec


def count(spec):
    """Of a real network, on the meta device: no memory, however large."""
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(ImageGPTConfig(**dataclasses.asdict(spec)))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["nano", "small", "medium", "large"])
def test_num_parameters_of_the_sizes_is_the_count_of_the_network(name):
    assert SIZES[name].num_parameters == count(SIZES[name])


@pytest.mark.parametrize(
    "numbers",
    [
        {"vocab_size": 2, "n_positions": 1, "n_embd": 1, "n_layer": 1, "n_head": 1},
        {"vocab_size": 17, "n_positions": 30, "n_embd": 24, "n_layer": 3, "n_head": 3},
        {"vocab_size": 17, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 50},
    ],
    ids=str,
)
def test_num_parameters_is_the_count_of_the_network(numbers):
    assert ModelSpec(**numbers).num_parameters == count(ModelSpec(**numbers))


# Millions, from the paper (Chen et al. 2020, sections 3.3 and 4); theirs are without biases.
@pytest.mark.parametrize(("name", "millions"), [("small", 76), ("medium", 455), ("large", 1362), ("xl", 6801)])
def test_the_sizes_have_about_as_many_parameters_as_the_paper_says(name, millions):
    assert SIZES[name].num_parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [
        ("nano", 8, 192, 3),
        ("small", 24, 512, 8),
        ("medium", 36, 1024, 8),
        ("large", 48, 1536, 16),
        ("xl", 60, 3072, 16),
    ],
)
def test_size_spec_gives_the_published_shapes(name, layers, width, heads):
    spec = size_spec(name)
    assert (spec.n_layer, spec.n_embd, spec.n_head) == (layers, width, heads)
    assert (spec.vocab_size, spec.n_positions, spec.n_inner) == (513, 1024, None)


def test_an_unknown_size_is_a_value_error_that_lists_the_sizes():
    with pytest.raises(ValueError, match=r"'tiny'.*nano, small, medium, large, xl"):
        size_spec("tiny")


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None])
def test_a_number_that_no_model_can_have_is_a_value_error_with_its_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ModelSpec(**{name: value})


@pytest.mark.parametrize("value", ["1e-5", None, -1, math.nan, math.inf, True])
def test_an_epsilon_that_is_no_number(value):
    with pytest.raises(ValueError, match=r"^layer_norm_epsilon must be"):
        ModelSpec(layer_norm_epsilon=value)


def test_an_epsilon_is_a_float_whatever_json_made_of_it():
    assert isinstance(ModelSpec(layer_norm_epsilon=0).layer_norm_epsilon, float)


@pytest.mark.parametrize("name", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"])
def test_a_flag_that_is_no_flag(name):
    with pytest.raises(ValueError, match=f"^{name} must be true or false, not 'no'"):
        ModelSpec(**{name: "no"})


def test_one_id_alone_is_no_vocabulary():
    with pytest.raises(ValueError, match="vocab_size must be at least 2"):
        ModelSpec(vocab_size=1)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"n_embd \(30\) must be divisible by n_head \(4\)"):
        ModelSpec(n_embd=30, n_head=4)


@pytest.mark.parametrize("value", [0, -4, 2.5, "8"])
def test_a_bad_inner_width_is_a_value_error(value):
    with pytest.raises(ValueError, match="n_inner"):
        ModelSpec(n_inner=value)


def test_from_config_takes_both_sorts_of_names_and_leaves_other_keys_alone():
    spec = ModelSpec.from_config(
        {
            "model_type": "imagegpt",
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": 9,
            "vocab_size": 5,
            "n_inner": 7,
            "activation_function": "relu",
            "resid_pdrop": 0.5,
        }
    )
    assert spec == ModelSpec(5, 9, 24, 3, 2, 7, "relu")


def test_the_layers_of_pruned_heads_are_numbers_though_json_makes_them_strings(tmp_path):
    spec = ModelSpec.from_config({"n_layer": 3, "n_head": 4, "pruned_heads": {"1": [0, 2]}})
    assert spec.pruned_heads == {1: [0, 2]}
    assert [spec.heads(layer) for layer in range(3)] == [4, 2, 4]
    config = ImageGPTConfig(n_layer=3, n_head=4, pruned_heads={1: [0, 2]})
    config.save_pretrained(tmp_path)
    assert ModelSpec.from_file(tmp_path / "config.json") == config.spec == spec


@pytest.mark.parametrize(
    "pruned", [{"3": [0]}, {"0": [4]}, {"0": [0, 1, 2, 3]}, {"first": [0]}, {"0": 1}, [1]], ids=str
)
def test_pruned_heads_that_no_model_has_are_an_error(pruned):
    with pytest.raises((ValueError, TypeError)):
        ModelSpec.from_config({"n_layer": 3, "n_head": 4, "pruned_heads": pruned})


def test_from_file_reads_what_the_config_writes(tmp_path):
    config = ImageGPTConfig(vocab_size=9, n_positions=4, n_embd=8, n_layer=1, n_head=2, n_inner=5)
    config.save_pretrained(tmp_path)
    assert ModelSpec.from_file(tmp_path / "config.json") == config.spec
    assert ModelSpec.from_file(str(tmp_path / "config.json")).n_inner == 5


def test_from_file_reads_a_file_of_old_names_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 16, "n_layer": 2}))
    assert ModelSpec.from_file(tmp_path / "config.json") == ModelSpec(n_embd=16, n_layer=2)


def test_derived_numbers():
    spec = ModelSpec(vocab_size=17, n_positions=64, n_embd=24, n_layer=2, n_head=3)
    assert (spec.num_colors, spec.sos, spec.head_width, spec.inner_width) == (16, 16, 8, 96)
    assert spec.square_grid == (8, 8)
    assert dataclasses.replace(spec, n_inner=5).inner_width == 5


@pytest.mark.parametrize("positions", [2, 32, 63, 65])
def test_positions_that_make_no_square_have_no_square_grid(positions):
    with pytest.raises(ValueError, match=f"{positions} positions"):
        _ = ModelSpec(n_positions=positions).square_grid


def test_a_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelSpec().n_embd = 8
