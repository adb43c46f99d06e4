"""Safetensors read and written by numpy, against the safetensors library."""

from __future__ import annotations

import json
import struct
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as library
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imagegpt.errors import InputError
from imagegpt.tensors import Entry, map_tensors, read_header, read_metadata, read_tensors, write_tensors

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


# Written, and read in their own types.

STORED = ["float64", "float32", "float16", "int64", "int32", "uint16", "uint8"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4)
TEXTS = st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3)


def numbers(dtype: str, shape, seed: int = 0) -> np.ndarray:
    """Any bytes there are, but no NaN, which is not equal to itself."""
    generator = np.random.default_rng(seed)
    array = generator.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype).reshape(shape)
    return np.asarray(np.nan_to_num(array, nan=-0.0) if array.dtype.kind == "f" else array)


def save(path, arrays, cuts=(), metadata=None) -> None:
    """Write arrays, their rows cut at some places."""

    def chunks(name):
        array = arrays[name]
        return [array] if array.ndim == 0 else np.split(array, [cut for cut in sorted(cuts) if cut <= len(array)])

    write_tensors(path, {name: (a.dtype, a.shape) for name, a in arrays.items()}, chunks, metadata or {})


def assert_same(found, arrays) -> None:
    """Bit by bit, names and types too."""
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name


@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(STORED), SHAPES), max_size=5),
    st.lists(st.integers(0, 4), max_size=4),
    TEXTS,
)
def test_what_is_written_is_what_the_library_reads_and_what_we_read(tmp_path_factory, tensors, cuts, metadata):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    arrays = {name: numbers(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(tensors.items())}
    save(path, arrays, cuts, metadata)
    assert_same(read_tensors(path), arrays)
    assert_same(library.load_file(path), arrays)
    assert read_metadata(path) == metadata
    with safe_open(path, "np") as file:
        assert (file.metadata() or {}) == metadata


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(STORED), SHAPES), min_size=1, max_size=5), TEXTS)
def test_what_the_library_writes_is_what_we_read(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    arrays = {name: numbers(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(tensors.items())}
    library.save_file(arrays, path, metadata=metadata)
    assert_same(read_tensors(path), arrays)
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (5,), (7, 3), (2, 3, 4)], ids=str)
def test_every_type_and_kind_of_shape(tmp_path, dtype, shape):
    path = tmp_path / "a.safetensors"
    arrays = {"a": numbers(dtype, shape), "odd": numbers("uint8", (3,))}
    save(path, arrays)
    assert_same(read_tensors(path), arrays)
    assert_same(library.load_file(path), arrays)


def test_rows_that_do_not_lie_together_are_written_in_their_order(tmp_path):
    array = numbers("float32", (6, 4))
    for turned in (array.T, array[::2], array[:, ::-1], np.asfortranarray(array)):
        save(tmp_path / "a.safetensors", {"a": turned}, [1, 2])
        assert_same(library.load_file(tmp_path / "a.safetensors"), {"a": turned})


def test_each_tensor_begins_at_a_multiple_of_its_numbers_size_and_is_mapped(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {f"{at}.{dtype}": numbers(dtype, (2 * at + 1,)) for at in range(3) for dtype in STORED}
    save(path, arrays, metadata={"text": "ä" * 5})
    before = path.read_bytes()
    for name, entry in read_header(path).items():
        assert entry.start % arrays[name].itemsize == 0
    for name, tensor in read_tensors(path).items():
        assert mapped(tensor), name
        assert tensor.flags.aligned, name
        with pytest.raises(ValueError, match="read-only"):
            tensor[0] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("pad", range(8))
@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_files_of_others_whose_data_begin_anywhere(tmp_path, dtype, pad):
    array = numbers(dtype, (3, 5))
    kind = {"float64": "F64", "float16": "F16", "int32": "I32"}[dtype]
    header = {"a": {"dtype": kind, "shape": [3, 5], "data_offsets": [0, array.nbytes]}}
    write(tmp_path / "a.safetensors", header, array.tobytes(), pad)
    found = read_tensors(tmp_path / "a.safetensors")["a"]
    assert_same({"a": found}, {"a": array})
    assert found.flags.aligned


def test_the_same_tensors_are_the_same_bytes_however_they_are_cut(tmp_path):
    arrays = {"b": numbers("float32", (6, 2)), "a": numbers("int64", (6,)), "c": numbers("float16", (6, 2))}
    written = []
    for cuts, names in [((), "abc"), ((1, 2), "cba"), ((5,), "bca")]:
        save(tmp_path / "a", {name: arrays[name] for name in names}, cuts, {"x": "y"})
        written.append((tmp_path / "a").read_bytes())
    assert written[0] == written[1] == written[2]


def test_no_more_than_a_chunk_is_held(tmp_path):
    alive, most = set(), []

    def chunks(name):
        for start in range(0, 50, 5):
            chunk = np.full((5, 3), start, np.float32)
            alive.add(start)
            weakref.finalize(chunk, alive.discard, start)
            most.append(len(alive))
            yield chunk
            del chunk

    write_tensors(tmp_path / "a", {"a": (np.dtype(np.float32), (50, 3))}, chunks, {})
    assert read_tensors(tmp_path / "a")["a"][:, 0].tolist() == [start for start in range(0, 50, 5) for _ in range(5)]
    assert max(most) <= 2


def test_types_that_numpy_lacks_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"good": torch.ones(2), "bad": torch.ones(2, dtype=torch.bfloat16)}, path)
    with pytest.raises(InputError, match=r"a\.safetensors: bad is of type BF16; only .* can be read"):
        read_tensors(path)


@pytest.mark.parametrize("cut", [1, 8, 60, 130])
def test_a_written_file_that_is_cut_off(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save(path, {"a": numbers("int64", (16,))}, metadata={"x": "y"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    for read in (read_tensors, read_metadata):
        with pytest.raises(InputError, match=r"a\.safetensors is damaged or no safetensors file"):
            read(path)


@pytest.mark.parametrize("extra", [1, 8])
def test_a_file_that_is_longer_than_its_tensors(tmp_path, extra):
    path = tmp_path / "a.safetensors"
    save(path, {"a": numbers("int64", (16,))})
    path.write_bytes(path.read_bytes() + bytes(extra))
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ["a"]},
        {"shape": [-2, -1]},
        {"shape": [3]},
        {"shape": [2**40, 2**40]},
        {"shape": None},
        {"dtype": None},
        {"dtype": "f4"},
        {"dtype": "I64"},
        {"data_offsets": [-4, 8]},
        {"data_offsets": [8, 0]},
        {"data_offsets": "ab"},
    ],
    ids=str,
)
def test_own_types_are_not_read_from_headers_that_make_no_sense(tmp_path, changes):
    write(tmp_path / "a", {"x": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8], **changes}}, bytes(8))
    with pytest.raises(InputError, match=str(tmp_path / "a")):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize("metadata", [None, {}])
def test_a_file_without_texts(tmp_path, metadata):
    header = {"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    write(tmp_path / "a", header if metadata is None else {"__metadata__": metadata, **header}, bytes(2))
    assert read_metadata(tmp_path / "a") == {}
    assert read_tensors(tmp_path / "a")["x"].tolist() == [0, 0]


def test_texts_of_a_file_that_is_not_there(tmp_path):
    for read in (read_tensors, read_metadata):
        with pytest.raises(InputError, match="gone is damaged or no safetensors file"):
            read(tmp_path / "gone")
