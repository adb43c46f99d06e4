"""OpenAI's variables in an .npz: the round trip is exact, and what has no form there, or is forged, is refused."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest

from bundles import SMALL, colours, less_memory_than, variable_shapes, variables, write_release
from imagegpt import checkpoint
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.convert.archive import Archive, write_archive
from imagegpt.convert.openai import convert_openai
from imagegpt.errors import InputError


@pytest.fixture
def model(tmp_path):
    """A converted model's folder, and OpenAI's variables of it."""
    made = write_release(tmp_path / "release")
    convert_openai(tmp_path / "release", tmp_path / "model")
    return tmp_path / "model", made


def saved(path, **changes):
    """An .npz of a small model with other arrays in it."""
    arrays = variables(variable_shapes(**SMALL)) | {"kmeans_centers": colours(5)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("bert", [False, True])
def test_the_round_trip_is_exact(tmp_path, bert):
    made = write_release(tmp_path / "release", bert=bert)
    convert_openai(tmp_path / "release", tmp_path / "a")
    record = write_archive(tmp_path / "a", tmp_path / "a.npz")
    assert record["variables"] == len(made)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {*made, "kmeans_centers", "run.json"}
        for name, array in made.items():
            np.testing.assert_array_equal(file[name], array, strict=True)
        np.testing.assert_array_equal(file["kmeans_centers"], colours(5), strict=True)
    convert_openai(tmp_path / "a.npz", tmp_path / "b")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    write_archive(tmp_path / "b", tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_model_of_transformers_goes_there_and_back(tmp_path):
    """A model that this package made: without biases it is OpenAI's function."""
    import torch

    from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
    from imagegpt.codec.palette import PaletteCodec
    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor

    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=6, n_positions=9, n_embd=8, n_layer=2, n_head=2)
    ImageGPTForCausalImageModeling(config).save_pretrained(tmp_path / "a")
    save_preprocessor(tmp_path / "a", PaletteCodec(colours(5)), Framing(3, 3))
    write_archive(tmp_path / "a", tmp_path / "a.npz")
    convert_openai(tmp_path / "a.npz", tmp_path / "b")
    before, after = (checkpoint.load_tensors(tmp_path / name) for name in "ab")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    assert load_preprocessor(tmp_path / "b")[0].fingerprint == load_preprocessor(tmp_path / "a")[0].fingerprint


def test_a_plain_npz_of_someone_elses(tmp_path):
    record = convert_openai(saved(tmp_path / "a.npz"), tmp_path / "model")
    assert (record["step"], record["left_out"], len(record["files"])) == (None, {}, 1)
    saved(tmp_path / "b.npz", kmeans_centers=None)
    with pytest.raises(InputError, match=r"kmeans_centers\.npy: there is no such file"):
        convert_openai(tmp_path / "b.npz", tmp_path / "other")
    np.save(tmp_path / "kmeans_centers.npy", colours(5))
    assert convert_openai(tmp_path / "b.npz", tmp_path / "other")["palette"] == record["palette"]


def test_progress_and_what_is_there_stays(model, tmp_path):
    seen = []
    (tmp_path / "a.npz").write_text("old")
    with pytest.raises(InputError, match="ends in"):
        write_archive(model[0], tmp_path / "a.zip")
    assert (tmp_path / "a.npz").read_text() == "old"
    write_archive(model[0], tmp_path / "a.npz", lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


# --- models that OpenAI's code can't run


def test_a_model_with_biases(tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"bias is not zero, and OpenAI's layers have no biases"):
        write_archive(tiny_folder, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("activation_function", "gelu"), ("n_inner", 16), ("layer_norm_epsilon", 1e-6)),
        *(("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True), ("pruned_heads", {"0": [1]})),
    ],
)
def test_a_model_that_is_another_function(model, tmp_path, name, value):
    config = json.loads((model[0] / "config.json").read_text())
    (model[0] / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(InputError, match=rf"has {name} .*, which OpenAI's code has not"):
        write_archive(model[0], tmp_path / "a.npz")


def test_numbers_that_say_what_is_usual_are_no_hindrance(model, tmp_path):
    config = json.loads((model[0] / "config.json").read_text())
    (model[0] / "config.json").write_text(json.dumps(config | {"n_inner": 32, "pruned_heads": {}}))
    write_archive(model[0], tmp_path / "a.npz")


def test_a_palette_of_another_model(model, tmp_path):
    config = json.loads((model[0] / "preprocessor_config.json").read_text())
    (model[0] / "preprocessor_config.json").write_text(json.dumps(config | {"clusters": colours(4).tolist()}))
    with pytest.raises(InputError, match="a palette of 4, and its model has 5 colours"):
        write_archive(model[0], tmp_path / "a.npz")
    (model[0] / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="its palette is unknown"):
        write_archive(model[0], tmp_path / "a.npz")


# --- archives that are damaged or forged


def test_a_damaged_byte_of_an_array_is_noticed(tmp_path):
    path = saved(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    place = content.index(np.load(path)["model/wpe"].tobytes())
    content[place + 77] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz can't be read as \.npz: .*CRC"):
        convert_openai(path, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("cut", [1, 30, 300, 3000])
def test_an_archive_that_is_cut_off(tmp_path, cut):
    path = saved(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"a\.npz can't be read as \.npz"):
        Archive(path)


def test_any_damaged_byte_is_an_error_or_harmless(tmp_path):
    path = saved(tmp_path / "a.npz")
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 80).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 0x41
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            convert_openai(tmp_path / "b.npz", tmp_path / "model")
        except InputError as error:
            assert "b.npz" in str(error) or "kmeans_centers.npy" in str(error)
            continue
        convert_openai(path, tmp_path / "whole")
        same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "whole")]
        assert same[0] == same[1]
        for name in ("model", "whole"):
            shutil.rmtree(tmp_path / name)


def test_a_packed_archive(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **{"model/wte": np.zeros((5, 8), np.float32)})
    with pytest.raises(InputError, match=r"model/wte is packed; write it with numpy\.savez"):
        Archive(tmp_path / "a.npz")


def test_pickled_objects(tmp_path):
    np.savez(tmp_path / "a.npz", **{"model/wte": np.array([{}], object)})
    with pytest.raises(InputError, match="model/wte holds pickled objects, which are not read"):
        Archive(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", ["(999999999999,)", "(99999999, 99999999, 99999)", "(-1,)"])
def test_an_array_that_claims_to_be_huge(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("model/wte.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    why = r"a\.npz can't be read as \.npz: model/wte has not the bytes"
    with less_memory_than(1 << 22), pytest.raises(InputError, match=why):
        Archive(tmp_path / "a.npz")


def test_two_entries_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning):
        for _ in range(2):
            archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match="the same name"):
        Archive(tmp_path / "a.npz")


def test_no_file_no_archive_no_steps(tmp_path):
    with pytest.raises(InputError, match=r"a\.npz: there is no such file"):
        Archive(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_text("no")
    with pytest.raises(InputError, match=r"a\.npz can't be read as \.npz"):
        Archive(tmp_path / "a.npz")
    with pytest.raises(InputError, match="has no steps"):
        convert_openai(tmp_path / "a.npz", tmp_path / "model", step=3)


def test_other_types_and_missing_arrays_are_named(tmp_path):
    saved(tmp_path / "a.npz", **{"model/wpe": np.zeros((16, 8))})
    with pytest.raises(InputError, match=r"a\.npz: model/wpe is <f8"):
        convert_openai(tmp_path / "a.npz", tmp_path / "model")
    saved(tmp_path / "a.npz", **{"model/wtet": None})
    with pytest.raises(InputError, match=r"a\.npz: model/wtet is missing"):
        convert_openai(tmp_path / "a.npz", tmp_path / "model")


def test_fortran_order_is_read_right(tmp_path):
    made = variables(variable_shapes(**SMALL))
    turned = {name: np.asfortranarray(array) for name, array in made.items()}
    np.savez(tmp_path / "a.npz", kmeans_centers=colours(5), **turned)
    saved(tmp_path / "b.npz")
    for name in "ab":
        convert_openai(tmp_path / f"{name}.npz", tmp_path / name)
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert found[0] == found[1]
