from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from imagegpt import checkpoint
from imagegpt.errors import InputError
from imagegpt.spec import ModelSpec

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(folder, tiny_model):
    (folder / ONE).unlink()
    tiny_model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def check(folder):
    checkpoint.check_weights(folder, checkpoint.read_spec(folder))


def change_weights(folder, **changes):
    """Replace tensors (dots are written __), or drop those that are None."""
    state = load_file(folder / ONE)
    for name, value in changes.items():
        state.pop(name.replace("__", "."), None)
        if value is not None:
            state[name.replace("__", ".")] = value
    save_file(state, folder / ONE)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def refuses(folder, *words):
    """An InputError that names the folder and all words."""
    with pytest.raises(InputError) as error:
        check(folder)
    for word in (str(folder), *words):
        assert word in str(error.value)


# Which folder.


def test_the_embedded_model_is_found_by_name():
    folder = checkpoint.find_model("nano")
    assert folder == Path(checkpoint.__file__).parent / "weights" / "nano"


def test_a_folder_is_found_as_str_path_and_from_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (folder, str(folder), "~/model"):
        assert checkpoint.find_model(name) == folder


def test_a_local_folder_goes_before_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "owner" / "name").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert checkpoint.find_model("owner/name") == Path("owner/name")


@pytest.mark.parametrize("name", ["nanoo", "no/such/folder", "/no/such", "own er/name", "owner/"])
def test_an_unknown_name_is_an_input_error_that_says_what_can_be_given(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match=f"no model '{name}'.*nano.*folder.*owner/name"):
        checkpoint.find_model(name)


def test_a_file_is_no_model(folder):
    with pytest.raises(InputError, match=r"model\.safetensors is a file.*folder"):
        checkpoint.find_model(folder / ONE)


def test_a_hub_id_is_fetched_at_its_revision_and_without_the_other_files(folder, monkeypatch):
    asked = []

    def download(hub_id, **options):
        asked.append((hub_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.find_model("owner/na.me-2", revision="v1") == folder
    assert asked == [("owner/na.me-2", {"revision": "v1", "allow_patterns": checkpoint.HUB_FILES})]
    assert not {"*.msgpack", "*.h5", "*"} & set(checkpoint.HUB_FILES)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline\nmore"), OSError("offline"), None])
def test_a_hub_id_that_cannot_be_fetched_is_an_input_error_of_one_line(error, monkeypatch):
    def download(*_, **__):
        raise error

    if error is not None:  # else the Hub's own client, which tests/conftest.py has set offline
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match="'owner/no-such-model'") as caught:
        checkpoint.find_model("owner/no-such-model")
    assert "Hub" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert error is None or str(caught.value).endswith("offline")


@pytest.mark.parametrize("case", ["an error without a text", "a name too long for a file", "an unknown home"])
def test_other_failures_of_finding_are_input_errors_too(case, monkeypatch):
    def download(*_, **__):
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    names = {"a name too long for a file": "a" * 300, "an unknown home": "~no-such-user/model"}
    with pytest.raises(InputError):
        checkpoint.find_model(names.get(case, "owner/name"))


# config.json.


def test_read_spec_reads_the_numbers(folder, tiny_config):
    assert checkpoint.read_spec(folder) == tiny_config.spec
    assert checkpoint.read_config(folder)["model_type"] == "imagegpt"


def test_a_folder_without_config_is_an_input_error(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))} is no model folder.*config\.json"):
        checkpoint.read_config(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"not json"])
def test_a_config_that_is_no_json_is_an_input_error(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json can't be read"):
        checkpoint.read_config(folder)


def test_a_config_that_is_a_folder_is_an_input_error(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json can't be read"):
        checkpoint.read_config(folder)


@pytest.mark.parametrize("content", ['{"model_type": "gpt2"}', "{}", "[]", "3", "null"])
def test_a_config_of_another_model_is_an_input_error(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is not of an ImageGPT"):
        checkpoint.read_config(folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"n_embd": 33}, "divisible"), ({"n_layer": -2}, "n_layer"), ({"vocab_size": None}, "vocab_size")],
    ids=str,
)
def test_numbers_that_no_model_can_have_are_an_input_error_with_the_file_and_the_name(folder, change, word):
    config = {**checkpoint.read_config(folder), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json: .*{word}"):
        checkpoint.read_spec(folder)


# Weights.


def test_expected_shapes_are_the_parameters_of_the_network(tiny_model, tiny_config):
    actual = {name: tuple(parameter.shape) for name, parameter in tiny_model.named_parameters()}
    assert checkpoint.expected_shapes(tiny_config.spec) == actual


def test_stored_tensors_reads_names_types_and_shapes(folder, tiny_model):
    stored = checkpoint.stored_tensors(folder)
    assert stored == {name: ("F32", tuple(value.shape)) for name, value in tiny_model.state_dict().items()}


def test_stored_tensors_of_shards_are_those_of_one_file(tiny_folder, sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert checkpoint.stored_tensors(sharded) == checkpoint.stored_tensors(tiny_folder)


def test_stored_tensors_leaves_out_the_masks_of_old_files_and_nothing_else(folder):
    before = checkpoint.stored_tensors(folder)
    masks = {"transformer__h__0__attn__bias": torch.ones(2), "transformer__h__1__attn__masked_bias": torch.ones(1)}
    masks |= {"transformer__h__0__crossattention__masked_bias": torch.ones(1)}
    change_weights(folder, **masks)
    assert checkpoint.stored_tensors(folder) == before
    assert "transformer.h.0.attn.c_attn.bias" in before
    check(folder)


def test_old_files_are_left_to_the_loader(folder, tiny_config):
    (folder / ONE).rename(folder / "pytorch_model.bin")
    assert checkpoint.weights_file(folder).name == "pytorch_model.bin"
    assert checkpoint.stored_tensors(folder) is None
    checkpoint.check_weights(folder, tiny_config.spec)


def test_safetensors_go_before_old_files(folder):
    for name in ("pytorch_model.bin", INDEX):
        (folder / name).write_bytes(b"")
    assert checkpoint.weights_file(folder).name == ONE


def test_a_folder_without_weights_is_an_input_error(folder):
    (folder / ONE).unlink()
    refuses(folder, "has no weights", ONE, "pytorch_model.bin")


def test_a_missing_tensor_is_named(folder):
    change_weights(folder, transformer__h__1__mlp__c_fc__bias=None)
    refuses(folder, "transformer.h.1.mlp.c_fc.bias", "(128,)")


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (3072,)])
def test_a_wrong_shape_is_named_with_both_shapes(folder, shape):
    change_weights(folder, transformer__h__0__attn__c_attn__weight=torch.zeros(shape))
    refuses(folder, "transformer.h.0.attn.c_attn.weight", str(shape), "(32, 96)")


def test_weights_of_another_size_are_refused(folder):
    with pytest.raises(InputError, match="shape"):
        checkpoint.check_weights(folder, ModelSpec(vocab_size=17, n_positions=64, n_embd=48, n_layer=2, n_head=2))


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refuses(sharded, "lacks the shard", shard.name)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
def test_a_shard_outside_of_the_folder_is_refused(sharded, name):
    shutil.copy(next(sharded.glob("*.safetensors")), sharded.parent / "secret.safetensors")
    (sharded / "sub").mkdir()
    shutil.copy(next(sharded.glob("*.safetensors")), sharded / "sub" / "model.safetensors")
    change_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    refuses(sharded, "shard", name)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', '{"weight_map": {"a": []}}']
)
def test_an_index_that_is_none_is_an_input_error(sharded, content):
    (sharded / INDEX).write_text(content)
    refuses(sharded, INDEX, "is no index")


def header_of(path):
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    return json.loads(path.read_bytes()[8 : 8 + length])


@pytest.mark.parametrize("length", [0, 4, 8, 100, -4, -1])
def test_a_truncated_file_is_an_input_error(folder, length):
    path = folder / ONE
    path.write_bytes(path.read_bytes()[:length])
    refuses(folder, ONE, "damaged")


def test_a_file_that_is_too_long_is_an_input_error(folder):
    path = folder / ONE
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    refuses(folder, ONE, str(whole), str(whole + 4))


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refuses(sharded, shard.name, "damaged")


def write_header(path, text):
    raw = text.encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '{"a": 3}', '{"a": {}}', '{"a": {"data_offsets": [0, "9"]}}', '{"a": {"data_offsets": [0, 0]}}', "{"],
)
def test_a_header_that_is_none_is_an_input_error(folder, text):
    write_header(folder / ONE, text)
    refuses(folder, ONE, "damaged")


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"\xff" * 99]
)
def test_what_is_no_safetensors_file_is_refused_without_reading_its_length(folder, content):
    (folder / ONE).write_bytes(content)
    refuses(folder, ONE, "damaged")


def test_offsets_without_an_end_are_an_input_error(folder):
    write_header(folder / ONE, '{"a": {"dtype": "F32", "shape": [], "data_offsets": [0]}}')
    refuses(folder, ONE, "damaged")


def test_a_shard_that_is_no_name_is_an_input_error(sharded):
    change_index(sharded, lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], 3)))
    refuses(sharded, INDEX)


def test_an_old_shard_outside_of_the_folder_is_refused(folder, tiny_model):
    (folder / ONE).unlink()
    torch.save(tiny_model.state_dict(), folder.parent / "outside.bin")
    weight_map = dict.fromkeys(tiny_model.state_dict(), "../outside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    refuses(folder, "../outside.bin")


# The tensors themselves.


def same(tensors, state):
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(torch.from_numpy(tensors[name].copy()), value, rtol=0, atol=0)


def test_load_tensors_are_the_networks(folder, tiny_model):
    same(checkpoint.load_tensors(folder), tiny_model.state_dict())


def test_load_tensors_of_shards(sharded, tiny_model):
    same(checkpoint.load_tensors(sharded), tiny_model.state_dict())


def test_load_tensors_of_old_files_and_their_shards(folder, tiny_model):
    state = tiny_model.state_dict()
    (folder / ONE).unlink()
    torch.save(state | {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "pytorch_model.bin")
    same(checkpoint.load_tensors(folder), state)
    (folder / "pytorch_model.bin").unlink()
    names = list(state)
    for number, part in enumerate((names[:9], names[9:])):
        torch.save({name: state[name] for name in part}, folder / f"{number}.bin")
    weight_map = {name: f"{int(position >= 9)}.bin" for position, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same(checkpoint.load_tensors(folder), state)


def test_load_tensors_widens_halves(folder, tiny_model):
    state = {name: value.bfloat16() for name, value in tiny_model.state_dict().items()}
    save_file(state, folder / ONE)
    same(checkpoint.load_tensors(folder), {name: value.float() for name, value in state.items()})


def test_load_tensors_leaves_out_what_is_no_parameter(folder, tiny_model):
    change_weights(folder, transformer__h__0__attn__bias=torch.ones(1, 1, 64, 64), other=torch.ones(3))
    same(checkpoint.load_tensors(folder), tiny_model.state_dict())


@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("value", [None, torch.zeros(3, 5)], ids=["missing", "wrong shape"])
def test_load_tensors_names_what_is_wrong(folder, old, value):
    change_weights(folder, transformer__h__1__mlp__c_fc__bias=value)
    if old:
        torch.save(load_file(folder / ONE), folder / "pytorch_model.bin")
        (folder / ONE).unlink()
    with pytest.raises(InputError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias") as error:
        checkpoint.load_tensors(folder)
    assert str(folder) in str(error.value)


def test_load_tensors_never_runs_what_a_bin_file_says(folder, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (folder / ONE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"transformer.wte.weight": Evil()}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin can't be loaded"):
        checkpoint.load_tensors(folder)
    assert not (tmp_path / "ran").exists()


def test_load_tensors_of_a_head_that_is_the_embedding(folder):
    change_weights(folder, lm_head__weight=None)
    config = checkpoint.read_config(folder) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = checkpoint.load_tensors(folder)
    assert tensors[checkpoint.HEAD].shape == (16, 32)
    assert np.shares_memory(tensors[checkpoint.HEAD], tensors["transformer.wte.weight"])
    np.testing.assert_array_equal(tensors[checkpoint.HEAD], load_file(folder / ONE)["transformer.wte.weight"][:16])


# What a model is known by.


def test_a_fingerprint_is_of_the_content_and_not_of_the_place(folder, tiny_folder):
    told = checkpoint.fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{16}", told)
    assert told == checkpoint.fingerprint(tiny_folder)
    assert told != checkpoint.fingerprint(checkpoint.EMBEDDED["nano"])


@pytest.mark.parametrize("name", ["config.json", ONE])
@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_a_fingerprint_changes_with_any_byte(folder, name, at):
    before = checkpoint.fingerprint(folder)
    content = bytearray((folder / name).read_bytes())
    content[int(at * len(content)) if at != -1 else -1] ^= 1
    (folder / name).write_bytes(content)
    assert checkpoint.fingerprint(folder) != before


def test_a_fingerprint_is_of_all_shards(sharded, tmp_path):
    before = checkpoint.fingerprint(sharded)
    copy = shutil.copytree(sharded, tmp_path / "copy")
    assert checkpoint.fingerprint(copy) == before
    for shard in sorted(copy.glob("*.safetensors")):
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.fingerprint(copy) != before
        shard.write_bytes(content)
    assert checkpoint.fingerprint(copy) == before


def test_a_fingerprint_sees_which_bytes_are_in_which_file(sharded):
    before = checkpoint.fingerprint(sharded)
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    assert checkpoint.fingerprint(sharded) != before


# A config.json of another network.


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("layers", [1, 3, 10**12])
def test_other_blocks_than_config_json_asks_for(folder, layers):
    change_config(folder, n_layer=layers)
    refuses(folder, f"asks for n_layer {layers}", "the weights have 2 blocks")


def test_a_head_beside_an_embedding_that_is_the_head(folder):
    change_config(folder, tie_word_embeddings=True)
    refuses(folder, "lm_head.weight", "tie_word_embeddings")


def test_a_tensor_of_another_kind_of_network(folder):
    change_weights(folder, transformer__h__1__ln_1__bias=torch.zeros(32))
    refuses(folder, "transformer.h.1.ln_1.bias", "config.json")


def test_weights_of_cross_attention_may_be_there(folder):
    change_weights(folder, transformer__h__1__crossattention__c_proj__bias=torch.zeros(32))
    check(folder)


def test_old_files_are_compared_too(folder):
    torch.save(load_file(folder / ONE), folder / "pytorch_model.bin")
    (folder / ONE).unlink()
    assert len(checkpoint.load_tensors(folder))
    change_config(folder, n_layer=1)
    with pytest.raises(InputError, match=r"asks for n_layer 1, and the weights have 2 blocks"):
        checkpoint.load_tensors(folder)


def test_is_causal_is_true_or_false(folder):
    change_config(folder, is_causal="no")
    with pytest.raises(InputError, match="is_causal must be true or false, not 'no'"):
        checkpoint.is_causal(folder)
