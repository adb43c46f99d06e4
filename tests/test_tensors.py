"""Safetensors read by numpy, against the safetensors library."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from imagegpt.errors import InputError
from imagegpt.tensors import Entry, map_tensors, read_header

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def some(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of many sizes, and those that are none."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = values * 10.0 ** torch.randint(-4, 4, shape, generator=generator)
    flat = values.reshape(-1)
    flat[:4] = torch.tensor([0.0, -0.0, float("inf"), -1.0])[: len(flat)]
    return values.to(dtype)


def write(path, header: object, data: bytes = b"", pad: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * pad
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def equal(path) -> None:
    """What we read is, bit by bit, what the library reads and torch converts."""
    ours, theirs = map_tensors(path), load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == np.float32
        assert ours[name].shape == tuple(tensor.shape)
        expected = tensor.float().numpy()
        np.testing.assert_array_equal(np.asarray(ours[name]).view(np.uint32), expected.view(np.uint32), err_msg=name)


@pytest.mark.parametrize("name", TYPES)
def test_every_float_type(tmp_path, name):
    dtype = TYPES[name]
    tensors = {"a": some(dtype, 5, 7), "b.c": some(dtype, 3, seed=1), "one": some(dtype, seed=2) + 3}
    tensors |= {"deep": some(dtype, 2, 3, 4, 5), "none": some(dtype, 0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    equal(tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert {key: (entry.dtype, entry.shape) for key, entry in header.items()} == {
        key: (name, tuple(tensor.shape)) for key, tensor in tensors.items()
    }


def test_all_types_in_one_file(tmp_path):
    save_file({name: some(dtype, 3, 3) for name, dtype in TYPES.items()}, tmp_path / "a.safetensors")
    equal(tmp_path / "a.safetensors")


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(sorted(TYPES)), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_any_names_and_shapes(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    save_file({name: some(TYPES[dtype], *shape) for name, (dtype, shape) in tensors.items()}, path)
    equal(path)


def mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a file."""
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = array.base if isinstance(array, np.ndarray) else None
    return False


def test_float32_stays_in_the_file_and_can_not_be_written(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": some(torch.float32, 64, 8), "b": some(torch.float32, 5), "half": some(torch.float16, 5)}, path)
    before = path.read_bytes()
    tensors = map_tensors(path)
    assert mapped(tensors["a"])
    assert mapped(tensors["b"])
    assert not mapped(tensors["half"])
    for name in "ab":
        with pytest.raises(ValueError, match="read-only"):
            tensors[name][0] = 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("pad", range(8))
@pytest.mark.parametrize("name", TYPES)
def test_old_files_whose_data_begin_anywhere(tmp_path, name, pad):
    tensor = some(TYPES[name], 3, 5)
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    header = {"a": {"dtype": name, "shape": [3, 5], "data_offsets": [0, len(data)]}}
    write(tmp_path / "a.safetensors", header, data, pad)
    ours = map_tensors(tmp_path / "a.safetensors")["a"]
    np.testing.assert_array_equal(ours, tensor.float().numpy())
    assert ours.flags.aligned


def test_a_file_without_tensors(tmp_path):
    write(tmp_path / "a.safetensors", {"__metadata__": {"format": "pt"}})
    assert map_tensors(tmp_path / "a.safetensors") == read_header(tmp_path / "a.safetensors") == {}
    write(tmp_path / "a.safetensors", {})
    assert map_tensors(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_types_that_weights_do_not_have(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    save_file({"good": torch.ones(2), "bad": torch.ones(2, dtype=dtype)}, path)
    assert read_header(path)["bad"].shape == (2,)
    with pytest.raises(InputError, match=r"a\.safetensors: bad is of type \w+; weights are F64, F32, F16, BF16"):
        map_tensors(path)


def test_where_a_tensor_lies(tmp_path):
    write(tmp_path / "a", {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
    size = (tmp_path / "a").stat().st_size
    assert read_header(tmp_path / "a") == {"x": Entry("F32", (2,), size - 8, size)}


@pytest.mark.parametrize("cut", [1, 8, 60, 99])
def test_a_truncated_file(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(16)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    for read in (read_header, map_tensors):
        with pytest.raises(InputError, match=r"a\.safetensors is damaged or no safetensors file"):
            read(path)


def test_the_sizes_of_a_truncated_file_are_told(tmp_path):
    write(tmp_path / "a", {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(15))
    size = (tmp_path / "a").stat().st_size
    with pytest.raises(InputError, match=f"should have {size + 1} bytes and has {size}"):
        read_header(tmp_path / "a")


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F32", [3]), ("F32", [5]), ("F32", [2, 2, 2]), ("F16", [4]), ("F64", [4]), ("BF16", [9])]
)
def test_another_number_of_bytes_than_the_shape_has(tmp_path, dtype, shape):
    write(tmp_path / "a", {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, 16]}}, bytes(16))
    with pytest.raises(InputError, match=rf"x has 16 bytes, which is not {dtype} of shape"):
        map_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ["a"]},
        {"shape": [-2, -2]},
        {"shape": [4.0]},
        {"shape": [2**40, 2**40]},
        {"shape": None},
        {"shape": "4"},
        {"shape": [[4]]},
        {"dtype": None},
        {"dtype": ["F32"]},
        {"dtype": {}},
        {"dtype": "f4"},
        {"data_offsets": [0.0, 16.0]},
        {"data_offsets": [-4, 16]},
        {"data_offsets": [True, 16]},
        {"data_offsets": [16, 0]},
        {"data_offsets": [0, 16, 32]},
        {"data_offsets": "ab"},
        {"data_offsets": None},
    ],
    ids=str,
)
def test_headers_that_make_no_sense(tmp_path, changes):
    write(tmp_path / "a", {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}, bytes(16))
    with pytest.raises(InputError, match=str(tmp_path / "a")):
        map_tensors(tmp_path / "a")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="gone is damaged or no safetensors file"):
        map_tensors(tmp_path / "gone")
