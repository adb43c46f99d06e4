from __future__ import annotations

import inspect
import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig

from imagegpt.config import ImageGPTConfig
from imagegpt.spec import SIZES, ModelSpec

DEFAULTS = {
    "vocab_size": 513,
    "n_positions": 1024,
    "n_embd": 512,
    "n_layer": 24,
    "n_head": 8,
    "n_inner": None,
    "activation_function": "quick_gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "use_cache": True,
    "tie_word_embeddings": False,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
OTHERS = {
    "vocab_size": 17,
    "n_positions": 36,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 50,
    "activation_function": "gelu",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.5,
    "scale_attn_weights": False,
    "use_cache": False,
    "tie_word_embeddings": True,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
}
HF_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_each_documented_parameter_has_its_default_and_its_line(name, default):
    assert getattr(ImageGPTConfig(), name) == default
    assert name in inspect.getdoc(ImageGPTConfig)


def test_the_defaults_are_those_of_transformers_field_by_field():
    ours, theirs = ImageGPTConfig().to_dict(), PeerConfig().to_dict()
    assert ours == theirs
    assert DEFAULTS.items() <= theirs.items()


def test_each_parameter_can_be_given():
    config = ImageGPTConfig(**OTHERS)
    assert {name: getattr(config, name) for name in OTHERS} == OTHERS
    assert config.to_dict() == PeerConfig(**OTHERS).to_dict()
    assert all(DEFAULTS[name] != value for name, value in OTHERS.items())


@pytest.mark.parametrize(("general", "own"), HF_NAMES.items())
def test_the_general_names_of_transformers_read_write_and_construct(general, own):
    config = ImageGPTConfig(**{general: 64})
    assert getattr(config, own) == getattr(config, general) == 64
    setattr(config, general, 128)
    assert getattr(config, own) == 128
    assert config.to_dict()[own] == 128
    assert general not in config.to_dict()


@pytest.mark.parametrize("name", SIZES)
def test_from_size_has_the_numbers_of_the_size(name):
    assert ImageGPTConfig.from_size(name).spec == SIZES[name]


def test_from_size_takes_overrides_under_both_sorts_of_names():
    config = ImageGPTConfig.from_size("nano", n_layer=2, hidden_size=96, resid_pdrop=0.0, vocab_size=9)
    assert (config.n_layer, config.n_embd, config.resid_pdrop, config.vocab_size) == (2, 96, 0.0, 9)
    assert config.n_head == SIZES["nano"].n_head


def test_from_size_of_an_unknown_size_is_a_value_error():
    with pytest.raises(ValueError, match=r"'huge'.*nano"):
        ImageGPTConfig.from_size("huge")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "divisible"),
        ({"n_embd": 0}, "n_embd"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_head": -1}, "n_head"),
        ({"n_positions": 0}, "n_positions"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"n_embd": "wide"}, "n_embd"),
        ({"n_layer": 1.5}, "n_layer"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
        ({"resid_pdrop": 1.5}, "resid_pdrop"),
        ({"attn_pdrop": -0.1}, "attn_pdrop"),
        ({"initializer_range": -1.0}, "initializer_range"),
        ({"activation_function": "foo"}, "activation_function 'foo' is unknown"),
    ],
    ids=str,
)
def test_numbers_that_no_model_can_have_are_refused_by_name(bad, message):
    with pytest.raises(StrictDataclassError, match=message):
        ImageGPTConfig(**bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [("resid_pdrop", "much"), ("use_cache", "yes"), ("activation_function", 3), ("n_inner", "wide")],
)
def test_values_of_a_wrong_type_are_refused_by_name_as_in_transformers(name, value):
    for config in (PeerConfig, ImageGPTConfig):
        with pytest.raises(StrictDataclassError, match=name):
            config(**{name: value})


def test_spec_has_the_same_numbers():
    spec = ImageGPTConfig(**OTHERS).spec
    assert isinstance(spec, ModelSpec)
    assert {name: {**OTHERS, "pruned_heads": None}[name] for name in vars(spec)} == vars(spec)


@pytest.mark.parametrize("numbers", [{}, OTHERS], ids=["defaults", "others"])
@pytest.mark.parametrize("reader", [ImageGPTConfig, PeerConfig])
def test_json_round_trip_here_and_in_transformers(numbers, reader, tmp_path):
    config = ImageGPTConfig(**numbers)
    config.save_pretrained(tmp_path)
    back = reader.from_pretrained(tmp_path)
    assert {name: getattr(back, name) for name in DEFAULTS} == {**DEFAULTS, **numbers}
    if reader is ImageGPTConfig:
        assert back.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "imagegpt"


def test_config_json_of_transformers_reads_here(tmp_path):
    PeerConfig(**OTHERS).save_pretrained(tmp_path)
    assert ImageGPTConfig.from_pretrained(tmp_path).spec == ImageGPTConfig(**OTHERS).spec
