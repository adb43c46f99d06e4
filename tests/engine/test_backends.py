"""Which backend runs a model, and what backends share."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decoding import decode
from imagegpt.checkpoint import fingerprint, read_spec
from imagegpt.engine import backends, onnx_backend
from imagegpt.engine.backends import check_choice, choose_backend, load_network, open_onnx, torch_device
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError

# Names.


@pytest.mark.parametrize(
    ("backend", "device", "precision", "words"),
    [
        ("jax", None, "fp32", "backend must be"),
        ("", None, "fp32", "backend must be"),
        (None, None, "float32", "precision must be one of fp32, bf16, fp16, int8, not 'float32'"),
        (None, None, "", "precision must be"),
        ("onnx", None, "bf16", "'bf16' needs backend=\"torch\""),
        ("onnx", None, "fp16", "'fp16' needs backend=\"torch\""),
        ("onnx", "cuda", "fp32", "device 'cuda' needs backend=\"torch\""),
        ("onnx", "cuda", "int8", "'cuda'"),
        ("torch", None, "int8", "int8.*imagegpt.quantize"),
        (None, "cuda", "int8", "int8"),
    ],
)
def test_choices_that_do_not_go_together_are_input_errors(backend, device, precision, words):
    with pytest.raises(InputError, match=words):
        check_choice(backend, device, precision)


@pytest.mark.parametrize(
    ("backend", "device", "precision"),
    [
        (None, None, "fp32"),
        (None, None, "int8"),
        (None, "cpu", "int8"),
        (None, "cuda:1", "bf16"),
        ("onnx", None, "fp32"),
        ("onnx", "cpu", "fp32"),
        ("onnx", "cpu", "int8"),
        ("torch", "cpu", "fp16"),
        ("torch", "mps", "fp32"),
    ],
)
def test_choices_that_go_together(backend, device, precision):
    check_choice(backend, device, precision)


# Choosing.


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(backends, "may_have_accelerator", lambda: False)


def gpu(monkeypatch, kind):
    """A machine with drivers, on which torch finds this device."""
    monkeypatch.setattr(backends, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(backends, "torch_device", lambda name: torch.device(kind))


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        (None, "fp32", "onnx"),
        ("cpu", "fp32", "onnx"),
        (None, "int8", "onnx"),
        (None, "bf16", "torch"),
        ("cpu", "fp16", "torch"),
        ("cuda", "fp32", "torch"),
        ("mps", "fp32", "torch"),
    ],
)
def test_without_a_gpu_onnxruntime_runs_what_it_can(tiny_folder, no_gpu, device, precision, expected):
    assert choose_backend(tiny_folder, read_spec(tiny_folder), device, precision) == expected


@pytest.mark.parametrize(
    ("kind", "device", "precision", "expected"),
    [
        ("cuda", None, "fp32", "torch"),
        ("mps", None, "fp32", "torch"),
        ("cpu", None, "fp32", "onnx"),  # drivers, and a torch without them
        ("cuda", "cpu", "fp32", "onnx"),
        ("cuda", None, "int8", "onnx"),
    ],
)
def test_a_gpu_is_torch_s_unless_the_cpu_is_asked_for(tiny_folder, monkeypatch, kind, device, precision, expected):
    gpu(monkeypatch, kind)
    assert choose_backend(tiny_folder, read_spec(tiny_folder), device, precision) == expected


@pytest.mark.parametrize(
    "numbers", [{"activation_function": "tanh"}, {"n_embd": 24, "n_head": 2}, {"n_embd": 20, "n_head": 4}], ids=str
)
def test_torch_runs_what_onnxruntime_lacks(tiny_folder, no_gpu, numbers):
    spec = dataclasses.replace(read_spec(tiny_folder), **numbers)
    assert choose_backend(tiny_folder, spec, None, "fp32") == "torch"


def test_torch_runs_quantised_folders(folder, no_gpu):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "quanto"}}))
    assert choose_backend(folder, read_spec(folder), None, "fp32") == "torch"


@pytest.mark.parametrize(
    ("platform", "there", "expected"),
    [
        ("linux", "/dev/nvidiactl", True),
        ("linux", "/dev/kfd", True),
        ("linux", "/dev/dxg", True),
        ("linux", "/dev/null", False),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
        ("win32", "nvcuda", True),
        ("win32", "other", False),
    ],
)
def test_drivers_tell_whether_torch_might_find_a_gpu(monkeypatch, platform, there, expected):
    monkeypatch.setattr(backends.sys, "platform", platform)
    monkeypatch.setattr(backends.os.path, "exists", lambda path: path == there)
    monkeypatch.setattr(backends.os, "uname", lambda: SimpleNamespace(machine=there), raising=False)
    monkeypatch.setattr(backends, "find_library", lambda name: name if name == there else None)
    assert backends.may_have_accelerator() is expected


# Devices.


@pytest.fixture
def machine(monkeypatch):
    """Give torch these devices."""

    def put(cuda=0, mps=False):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)

    return put


@pytest.mark.parametrize(
    ("cuda", "mps", "rank", "expected"),
    [
        (0, False, None, "cpu"),
        (0, False, "3", "cpu"),
        (0, True, None, "mps"),
        (2, True, None, "cuda"),
        (2, False, "0", "cuda:0"),
        (2, False, "1", "cuda:1"),
        (2, False, "3", "cuda:1"),  # more processes than GPUs share them
    ],
)
def test_the_first_device_that_is_there_and_with_torchrun_one_s_own(machine, monkeypatch, cuda, mps, rank, expected):
    machine(cuda, mps)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(torch_device(None)) == expected
    assert str(torch_device("cuda:7")) == "cuda:7"  # what is named is not changed


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x", ""])
def test_a_device_that_can_not_be_used_is_an_input_error(name):
    with pytest.raises(InputError, match="can't be used here"):
        torch_device(name)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_network_is_loaded_in_the_precision(tiny_folder, precision, dtype):
    model = load_network(tiny_folder, "cpu", precision)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


# Sessions.


def test_a_session_is_shared_while_it_is_in_use_and_dropped_after(folder, tiny_folder, tmp_path):
    spec, key = read_spec(folder), (fingerprint(folder), "fp32")
    gc.collect()
    one = open_onnx(folder, spec, "fp32")
    assert open_onnx(folder, spec, "fp32") is one
    assert open_onnx(shutil.copytree(folder, tmp_path / "copy"), spec, "fp32") is one  # the same weights
    assert key in backends._sessions
    other = open_onnx(folder, spec, "int8")
    assert other is not one
    assert (one.cache_dtype, other.cache_dtype) == (np.float32, np.int8)
    del one
    gc.collect()
    assert key not in backends._sessions
    assert (fingerprint(folder), "int8") in backends._sessions


def test_other_weights_are_another_session(folder, tiny_model, tmp_path):
    import copy

    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        changed.lm_head.weight.mul_(-1)
    changed.save_pretrained(tmp_path / "changed")
    one, other = (open_onnx(path, read_spec(path), "fp32") for path in (folder, tmp_path / "changed"))
    assert one is not other
    first, second = (backend.prefill(np.full((1, 1), 16), np.zeros(1, int)).logits_BK for backend in (one, other))
    np.testing.assert_allclose(first, -second, atol=1e-5)


# Scales of the cache in eight bits.


@pytest.fixture
def calibrations(monkeypatch, tmp_path):
    """How often scales are made, with a cache of the test's own."""
    made, real = [], onnx_backend.calibrate
    monkeypatch.setattr(onnx_backend, "calibrate", lambda *args: made.append(1) or real(*args))
    monkeypatch.setenv("IMAGEGPT_CACHE", str(tmp_path / "cache"))
    gc.collect()
    return made


def ids_in_eight_bits(folder):
    """Open anew, and draw."""
    gc.collect()
    assert (fingerprint(folder), "int8") not in backends._sessions
    backend = open_onnx(folder, read_spec(folder), "int8")
    return decode(backend, np.zeros((1, 0), int), [0], Sampling(), np.random.default_rng(0).random((1, 64))).tolist()


def test_scales_are_made_once_and_kept_on_disk(folder, calibrations, tmp_path):
    first = ids_in_eight_bits(folder)
    name = f"int8-{fingerprint(folder)}-{backends.CALIBRATION}.npz"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    assert ids_in_eight_bits(folder) == first
    assert len(calibrations) == 1


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "other": lambda content: b"no scales at all",
    "flipped": lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_of_scales_is_made_again(folder, calibrations, tmp_path, damage):
    first = ids_in_eight_bits(folder)
    [path] = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert ids_in_eight_bits(folder) == first
    assert len(calibrations) == 2
    assert path.read_bytes() == whole
    assert ids_in_eight_bits(folder) == first
    assert len(calibrations) == 2


@pytest.mark.parametrize("what", ["fewer", "pickled", "an array"])
def test_a_file_with_other_contents_is_made_again(folder, calibrations, tmp_path, what):
    first = ids_in_eight_bits(folder)
    [path] = (tmp_path / "cache").iterdir()
    with np.load(path) as file:
        scales = dict(file)
    with path.open("wb") as file:
        if what == "fewer":
            scales.popitem()
            np.savez(file, **scales)
        elif what == "pickled":
            np.savez(file, **{name: np.array([{}], object) for name in scales})
        else:
            np.save(file, next(iter(scales.values())))
    assert ids_in_eight_bits(folder) == first
    assert len(calibrations) == 2


def test_without_a_cache_folder_nothing_is_written(folder, calibrations, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEGPT_CACHE", "off")
    first = ids_in_eight_bits(folder)
    assert ids_in_eight_bits(folder) == first
    assert len(calibrations) == 2
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_can_not_be_made_costs_only_the_cache(folder, calibrations, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("IMAGEGPT_CACHE", str(tmp_path / "file" / "cache"))
    ids_in_eight_bits(folder)
    assert len(calibrations) == 1
    assert (tmp_path / "file").read_text() == "in the way"
