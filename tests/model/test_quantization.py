from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import imagegpt
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.quantization import BFloat16Linear, is_torchao, quantize, use_linear_layers

NANO = Path(imagegpt.__file__).parent / "weights" / "nano"
SCHEMES = ("int8", "int4")
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")


@pytest.fixture(scope="module")
def nano():
    """The model that comes with the package; who changes it copies it first."""
    return ImageGPTForCausalImageModeling.from_pretrained(NANO)


@pytest.fixture(scope="module")
def ids(nano):
    """What the model itself paints: SOS and the first rows of two pictures."""
    torch.manual_seed(0)
    return nano.generate(do_sample=True, num_return_sequences=2, max_new_tokens=127)


@pytest.fixture(scope="module")
def quantized(nano):
    return {scheme: quantize(copy.deepcopy(nano), scheme) for scheme in SCHEMES if find_spec("torchao")}


@pytest.fixture(scope="module")
def saved(quantized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    quantized["int8"].save_pretrained(folder)
    return folder


def small(kind=ImageGPTForCausalImageModeling, **numbers):
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "n_positions": 8, "n_embd": 64, "n_layer": 1, "n_head": 2}
    return kind(ImageGPTConfig(**{**sizes, **numbers})).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def linear_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def is_quantized(layer):
    return type(layer.weight.data).__name__ in ("Int8Tensor", "Int4OpaqueTensor")


def size_in_bytes(module):
    return sum(tensor_bytes(parameter.data) for parameter in module.parameters())


def tensor_bytes(tensor):
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


@pytest.mark.parametrize("kind", [ImageGPTForCausalImageModeling, ImageGPTModel, ImageGPTForImageClassification])
def test_linear_layers_compute_what_the_blocks_layers_did(kind):
    model = small(kind, add_cross_attention=True)
    ids, states = torch.randint(16, (2, 8)), torch.randn(2, 3, 64)
    extra = {} if kind is ImageGPTForImageClassification else {"encoder_hidden_states": states}
    before, trained = model(ids, **extra)[0], dict(model.named_parameters())
    trained["mlp"] = model.base_model.h[0].mlp.c_fc.weight.requires_grad_(False)
    use_linear_layers(model)
    torch.testing.assert_close(model(ids, **extra)[0], before)
    assert not [layer for layer in model.modules() if isinstance(layer, Conv1D)]
    assert model.base_model.h[0].mlp.c_fc.weight.shape == (256, 64)
    assert not model.base_model.h[0].mlp.c_fc.weight.requires_grad
    assert model.base_model.h[0].mlp.c_proj.weight.requires_grad
    assert not any(layer.training for layer in model.modules())


def test_bfloat16_layers_give_the_type_they_got():
    layer = BFloat16Linear(32, 16)
    layer.weight.data = layer.weight.data.bfloat16()
    x = torch.randn(3, 32)
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(
        layer(x), nn.functional.linear(x, layer.weight.float(), layer.bias), atol=0.02, rtol=0.02
    )
    layer.bias = None
    assert layer(x.half()).dtype == torch.float16


def test_without_torchao_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = small()
    with pytest.raises(ModuleNotFoundError, match=r'needs torchao: pip install "imagegpt\[quantization\]"'):
        quantize(model)
    assert isinstance(model.transformer.h[0].mlp.c_fc, Conv1D)


@pytest.mark.parametrize("config", [None, {}, {"quant_method": "bitsandbytes"}, object()])
def test_other_configurations_are_not_ours(config):
    assert not is_torchao(config)


@needs_torchao
@pytest.mark.parametrize(("scheme", "nats"), [("int8", 5e-4), ("int4", 0.04)])
def test_predictions_stay_close(nano, quantized, ids, scheme, nats):
    """In nats of Kullback-Leibler divergence per id; the model itself has about 2."""
    full = logits(nano, ids).log_softmax(-1)
    coarse = logits(quantized[scheme], ids).log_softmax(-1)
    divergence = (full.exp() * (full - coarse)).sum(-1).mean()
    assert 0 < divergence < nats


@needs_torchao
@pytest.mark.parametrize(("scheme", "part"), [("int8", 0.26), ("int4", 0.15)])
def test_the_blocks_take_a_quarter_and_a_seventh_of_the_bytes(nano, quantized, scheme, part):
    full = size_in_bytes(nano.transformer.h)
    assert full == 4 * sum(parameter.numel() for parameter in nano.transformer.h.parameters())
    assert part - 0.02 < size_in_bytes(quantized[scheme].transformer.h) / full < part
    for name in ("transformer.wte", "transformer.wpe", "lm_head"):
        assert size_in_bytes(quantized[scheme].get_submodule(name)) == size_in_bytes(nano.get_submodule(name))


@needs_torchao
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_generates_and_compiles(quantized, scheme, ids):
    model = quantized[scheme]
    options = {"max_new_tokens": 6, "do_sample": False}
    painted = model.generate(ids[:, :5], **options)
    assert painted.shape == (2, 11)
    assert torch.equal(model.generate(ids[:, :5], cache_implementation="static", **options), painted)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids))


@needs_torchao
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [ImageGPTForCausalImageModeling, ImageGPTModel, ImageGPTForImageClassification])
def test_the_blocks_are_quantised_and_the_head_if_it_is_asked_for(scheme, kind):
    numbers = {"num_labels": 16, "add_cross_attention": True, "pruned_heads": {0: [1]}}
    for head in (False, True):
        model = quantize(small(kind, **numbers), scheme, group_size=32, head=head)
        layers = linear_layers(model)
        heads = {"lm_head", "score"} & layers.keys()
        chosen = {name for name, layer in layers.items() if is_quantized(layer)}
        assert chosen == (layers.keys() if head else layers.keys() - heads)
        assert len(layers.keys() - heads) == 7
        assert model(torch.randint(16, (2, 8)))[0].isfinite().all()


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_in_half_precision_are_quantised_too(nano, ids, scheme, dtype):
    model = quantize(copy.deepcopy(nano).to(dtype), scheme)
    found = logits(model, ids[:, :20])
    assert found.dtype == dtype
    full, coarse = (values.float().log_softmax(-1) for values in (logits(nano, ids[:, :20]), found))
    assert (full.exp() * (full - coarse)).sum(-1).mean() < 0.04


@needs_torchao
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_leaves_the_compilers_options_alone(scheme):
    from torch._inductor import config

    with config.patch(coordinate_descent_tuning=False):  # torchao would turn it on
        quantize(small(), scheme)
        assert not config.coordinate_descent_tuning


@needs_torchao
def test_a_model_of_8_bits_is_saved_and_read_again(quantized, saved, ids):
    again = ImageGPTForCausalImageModeling.from_pretrained(saved)
    assert torch.equal(logits(again, ids), logits(quantized["int8"], ids))
    assert is_quantized(again.transformer.h[0].attn.c_attn)
    assert (saved / "model.safetensors").stat().st_size < 0.34 * (NANO / "model.safetensors").stat().st_size


@needs_torchao
def test_a_model_of_4_bits_is_not_saved(quantized, tmp_path):
    with pytest.raises(ValueError, match="Weights in 4 bits are laid out for one kind of device and can't be saved"):
        quantized["int4"].save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_torchao
def test_transformers_configuration_quantises_while_loading(quantized, saved, ids):
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    load = ImageGPTForCausalImageModeling.from_pretrained
    eight = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    four = TorchAoConfig(Int4WeightOnlyConfig(group_size=64, set_inductor_config=False))
    for config, scheme in ((eight, "int8"), (four, "int4")):
        model = load(NANO, quantization_config=config)
        assert torch.equal(logits(model, ids), logits(quantized[scheme], ids))
        assert is_torchao(model.config.quantization_config)
        assert model.is_quantized
    assert isinstance(four.quant_type, Int4WeightOnlyConfig)  # the caller's own is as it was
    model, info = load(NANO, quantization_config=eight, output_loading_info=True)
    assert is_quantized(model.transformer.h[7].mlp.c_proj)
    assert not info["missing_keys"]
    assert torch.equal(logits(load(saved, quantization_config=eight), ids), logits(quantized["int8"], ids))


@needs_torchao
def test_the_configuration_names_what_stays_as_it_is():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    scheme = Int8WeightOnlyConfig(set_inductor_config=False)
    config = TorchAoConfig(scheme, modules_to_not_convert=["transformer.h.0.attn", "score"])
    layers = linear_layers(quantize(small(n_layer=2), config))
    chosen = {name.removeprefix("transformer.h.") for name, layer in layers.items() if is_quantized(layer)}
    assert chosen == {"0.mlp.c_fc", "0.mlp.c_proj", "1.attn.c_attn", "1.attn.c_proj", "1.mlp.c_fc", "1.mlp.c_proj"} | {
        "lm_head"
    }


@needs_torchao
@pytest.mark.parametrize(
    ("numbers", "arguments", "message"),
    [
        ({}, {"scheme": "int2"}, 'scheme is \'int2\'; it must be "int8", "int4" or a TorchAoConfig'),
        ({}, {"scheme": "int4", "group_size": 256}, "group_size is 256; on a CPU it must be 32, 64 or 128"),
        (
            {},
            {"scheme": "int4", "group_size": 128},
            "c_attn has 64 inputs, no multiple of .* 128: it could be 64 or 32",
        ),
        ({"n_embd": 48}, {"scheme": "int4"}, "c_attn has 48 inputs, .*: 4 bits need multiples of 32"),
        ({"vocab_size": 20}, {"scheme": "int4", "head": True}, "lm_head has 19 outputs; 4 bits need multiples of 16"),
        ({"tie_word_embeddings": True}, {"head": True}, "lm_head is also the embedding"),
    ],
)
def test_what_can_not_be_quantised_is_refused_and_stays_as_it_was(numbers, arguments, message):
    model = small(**numbers)
    with pytest.raises(ValueError, match=message):
        quantize(model, **arguments)
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    assert not getattr(model, "is_quantized", False)
    quantize(model)


@needs_torchao
def test_embeddings_other_devices_and_models_that_are_not_whole_are_refused():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    with pytest.raises(ValueError, match="include_input_output_embeddings must be False"):
        quantize(small(), TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True))
    with torch.device("meta"), pytest.raises(ValueError, match="4 bits run on a CPU or on CUDA, not on meta"):
        quantize(small(), "int4")
    divided = small()
    divided._tp_size = 2
    with pytest.raises(ValueError, match="divided among processes"):
        quantize(divided)


@needs_torchao
def test_a_quantised_model_is_neither_quantised_again_nor_pruned(quantized):
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantized["int8"], "int4")
    with pytest.raises(ValueError, match="Prune heads before"):
        quantized["int8"].prune_heads({0: [0]})
