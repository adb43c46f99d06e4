from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer
from transformers.utils import logging as transformers_logging

from imagegpt.errors import InputError
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.model.loading import load_generative

CPU = torch.device("cpu")
OLD = "pytorch_model.bin"


@pytest.fixture
def old_folder(folder, tiny_model):
    """As releases of 2021 wrote it: a pickle, with the causal masks of every layer."""
    (folder / "model.safetensors").unlink()
    torch.save(old_state(tiny_model), folder / OLD)
    return folder


@pytest.fixture
def messages():
    """What transformers logs; it does not propagate to the root logger, where caplog listens."""
    records = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def old_state(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in range(model.config.n_layer):
        size = model.config.n_positions
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, size, size).tril().to(torch.uint8)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def load(folder, dtype=torch.float32):
    return load_generative(folder, dtype, CPU)


def assert_same_weights(model, expected):
    got = model.state_dict()
    assert got.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(got[name], value, atol=0, rtol=0)


def test_a_loaded_model_has_the_saved_weights_and_is_ready_for_inference(tiny_folder, tiny_model):
    model = load(tiny_folder)
    assert_same_weights(model, tiny_model)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weights_come_in_the_dtype_that_is_asked_for(tiny_folder, tiny_model, dtype):
    model = load(tiny_folder, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.lm_head.weight, tiny_model.lm_head.weight.to(dtype))


@pytest.mark.parametrize("writer", [ImageGPTForCausalImageModeling, Peer])
def test_sharded_safetensors_load(writer, tiny_folder, tiny_model, tmp_path):
    writer.from_pretrained(tiny_folder).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(load(tmp_path), tiny_model)


def test_our_shards_load_in_transformers(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert_same_weights(Peer.from_pretrained(tmp_path), tiny_model)


def test_an_old_file_with_causal_masks_loads_silently(old_folder, tiny_model, messages, capfd, recwarn):
    assert_same_weights(load(old_folder), tiny_model)
    assert messages == []
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_safetensors_with_causal_masks_load_silently(folder, tiny_model, messages, capfd):
    from safetensors.torch import save_file

    save_file(old_state(tiny_model), folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_weights(load(folder), tiny_model)
    assert messages == []
    assert capfd.readouterr() == ("", "")


def test_a_weight_that_is_none_of_ours_is_told(old_folder, tiny_model, messages):
    # The proof that the two tests above listen in the right place.
    torch.save({**old_state(tiny_model), "transformer.h.0.attn.extra": torch.ones(1)}, old_folder / OLD)
    load(old_folder)
    assert "transformer.h.0.attn.extra" in "".join(messages)


def test_old_files_in_shards_load(old_folder, tiny_model):
    names = list(old_state(tiny_model))
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: old_state(tiny_model)[name] for name in part}, old_folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (old_folder / f"{OLD}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (old_folder / OLD).unlink()
    assert_same_weights(load(old_folder), tiny_model)
    (old_folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match="pytorch_model"):
        load(old_folder)


def test_an_old_file_without_a_weight_is_an_input_error(old_folder, tiny_model):
    state = old_state(tiny_model)
    del state["transformer.h.1.mlp.c_fc.weight"]
    torch.save(state, old_folder / OLD)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: transformer\.h\.1\.mlp\.c_fc\.weight is missing"):
        load(old_folder)


def test_an_old_file_with_a_wrong_shape_is_an_input_error(old_folder, tiny_model):
    torch.save({**old_state(tiny_model), "lm_head.weight": torch.zeros(17, 32)}, old_folder / OLD)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: lm_head\.weight is missing or has a wrong shape"):
        load(old_folder)


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_truncated_old_file_is_an_input_error(old_folder, length):
    whole = (old_folder / OLD).read_bytes()
    assert len(whole) > length
    (old_folder / OLD).write_bytes(whole[:length])
    with pytest.raises(InputError, match=r"pytorch_model\.bin can't be loaded"):
        load(old_folder)


def test_an_old_file_that_would_run_code_is_refused(old_folder, tmp_path):
    class Attack:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "harm",))

    torch.save({"transformer.wte.weight": Attack()}, old_folder / OLD)
    with pytest.raises(InputError, match=r"pytorch_model\.bin can't be loaded"):
        load(old_folder)
    assert not (tmp_path / "harm").exists()
    torch.load(old_folder / OLD, weights_only=False)
    assert (tmp_path / "harm").exists()  # so the file is what it claims to be


def test_damaged_safetensors_are_an_input_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load(folder)


def test_safetensors_whose_lengths_do_not_fit_their_shapes_are_an_input_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F64"', 1))
    with pytest.raises(InputError, match=r"model\.safetensors can't be loaded"):
        load(folder)


def test_loading_leaves_the_progress_bar_of_transformers_as_it_was(tiny_folder, capfd):
    enabled = transformers_logging.is_progress_bar_enabled()
    try:
        for wanted in (True, False):
            (transformers_logging.enable_progress_bar if wanted else transformers_logging.disable_progress_bar)()
            load(tiny_folder)
            assert transformers_logging.is_progress_bar_enabled() is wanted
    finally:
        (transformers_logging.enable_progress_bar if enabled else transformers_logging.disable_progress_bar)()
    assert capfd.readouterr() == ("", "")
