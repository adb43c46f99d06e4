"""Files of features: what is put in comes out, of every kind, and other libraries read it."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from imagegpt import array_file
from imagegpt.array_file import FORMATS, check_format, join_parts, write_part
from imagegpt.errors import InputError, MissingExtra
from imagegpt.feature_file import name_of, read_features

FACTS = {"model": "0123", "layers": [8, 12, 4], "pool": "mean", "classes": ["cat", "dög"], "source": "here"}
each_format = pytest.mark.parametrize("suffix", FORMATS)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def part(first, count, dtype=np.float32, tail=(5,), layers=(8, 12, 4), labels=np.int64):
    """A part's arrays, which say where they belong."""
    generator = np.random.default_rng(first)
    arrays = {name_of(layer): generator.normal(layer, 1, (count, *tail)).astype(dtype) for layer in layers}
    arrays["numbers"] = np.arange(first, first + count)
    if labels is not None:
        arrays["labels"] = (np.arange(first, first + count) % 2).astype(labels)
    return arrays


def joined(suffix, parts, skipped=(), facts=FACTS):
    """Write parts and join them; the path of the result."""
    paths = []
    for number, arrays in enumerate(parts):
        paths.append(Path(f"part-{number}.safetensors"))
        write_part(paths[-1], arrays, skipped[number] if skipped else [])
    path = Path(f"result{suffix}")
    join_parts(path, paths, facts)
    return path


def whole(parts):
    return {name: np.concatenate([arrays[name] for arrays in parts]) for name in parts[0]}


def check(found, parts):
    expected = whole(parts)
    assert {name_of(layer) for layer in found.layers} == {name for name in expected if name.startswith("layer.")}
    for layer, array in found.layers.items():
        assert array.dtype == expected[name_of(layer)].dtype
        np.testing.assert_array_equal(array, expected[name_of(layer)])
    assert found.numbers.dtype == np.int64
    np.testing.assert_array_equal(found.numbers, expected["numbers"])
    if "labels" in expected:
        assert found.labels.dtype == expected["labels"].dtype
        np.testing.assert_array_equal(found.labels, expected["labels"])
    else:
        assert found.labels is None


@pytest.mark.parametrize("tail", [(5,), (1,), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("labels", [np.int64, np.float64, None])
@each_format
def test_what_is_put_in_comes_out(suffix, dtype, tail, labels):
    parts = [part(0, 4, dtype, tail, labels=labels), part(4, 4, dtype, tail, labels=labels)]
    parts.append(part(8, 1, dtype, tail, labels=labels))
    found = read_features(joined(suffix, parts))
    check(found, parts)
    assert found.facts == {**FACTS, "skipped": []}
    assert found.classes == ("cat", "dög")


@each_format
def test_labels_of_several_numbers(suffix):
    parts = [part(0, 3), part(3, 2)]
    for arrays in parts:
        arrays["labels"] = np.stack([arrays["numbers"], -arrays["numbers"], arrays["numbers"] % 2], 1)
    check(read_features(joined(suffix, parts)), parts)


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (2, 0, 2), (0,), (0, 0)], ids=str)
@pytest.mark.parametrize("tail", [(5,), (3, 5)], ids=str)
@each_format
def test_parts_that_hold_nothing(suffix, counts, tail):
    """Every picture of theirs was skipped."""
    parts = [part(10 * number, count, tail=tail) for number, count in enumerate(counts)]
    check(read_features(joined(suffix, parts)), parts)


@each_format
def test_numbers_that_are_none_and_the_largest(suffix):
    arrays = part(0, 4)
    arrays["layer.4"][0] = [np.inf, -np.inf, np.nan, -0.0, np.finfo(np.float32).max]
    found = read_features(joined(suffix, [arrays]))
    assert found.layers[4].tobytes() == arrays["layer.4"].tobytes()


@each_format
def test_the_skipped_of_all_parts_are_listed_in_order(suffix):
    skipped = [["a.png: no picture"], [], ['b.png: "odd" ä\nline', "c.png"]]
    found = read_features(joined(suffix, [part(0, 2), part(3, 2), part(5, 2)], skipped))
    assert found.facts["skipped"] == [sentence for sentences in skipped for sentence in sentences]


@each_format
def test_data_without_classes(suffix):
    found = read_features(joined(suffix, [part(0, 2)], facts={"layers": [4], "classes": []}))
    assert found.classes == ()
    assert read_features(joined(suffix, [part(0, 2)], facts={})).classes == ()


@each_format
def test_layers_come_in_the_order_in_which_they_were_asked_for(suffix):
    """Not as words are ordered, with 12 before 4."""
    found = read_features(joined(suffix, [part(0, 2), part(2, 2)]))
    assert list(found.layers) == [8, 12, 4]


@each_format
def test_the_same_parts_make_the_same_bytes_at_any_time(suffix, monkeypatch):
    import time

    first = joined(suffix, [part(0, 3), part(3, 3)]).read_bytes()
    now = time.localtime(time.time() + 86400)
    monkeypatch.setattr(time, "localtime", lambda *_: now)
    assert joined(suffix, [part(0, 3), part(3, 3)]).read_bytes() == first


# What others read.


def test_the_safetensors_library_reads_it():
    parts = [part(0, 3), part(3, 2)]
    with safe_open(joined(".safetensors", parts), "np") as file:
        assert set(file.keys()) == set(whole(parts))
        for name, array in whole(parts).items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
        assert json.loads(file.metadata()["imagegpt"]) == {**FACTS, "skipped": []}


def test_numpy_reads_it():
    parts = [part(0, 3, tail=(3, 5)), part(3, 2, tail=(3, 5))]
    with np.load(joined(".npz", parts), allow_pickle=False) as file:
        for name, array in whole(parts).items():
            np.testing.assert_array_equal(file[name], array)
            assert file[name].dtype == array.dtype


@pytest.mark.parametrize("tail", [(5,), (3, 5)], ids=str)
def test_pyarrow_reads_it_row_by_row(tail):
    parquet = pytest.importorskip("pyarrow.parquet")
    parts = [part(0, 3, tail=tail), part(3, 2, tail=tail)]
    table = parquet.read_table(joined(".parquet", parts))
    rows = table.to_pylist()
    expected = whole(parts)
    assert set(table.column_names) == set(expected)
    for number, row in enumerate(rows):
        for name, array in expected.items():
            np.testing.assert_array_equal(np.array(row[name], array.dtype), array[number])
    assert json.loads(table.schema.metadata[b"imagegpt"]) == {**FACTS, "skipped": []}


def test_safetensors_stay_on_the_disk():
    found = read_features(joined(".safetensors", [part(0, 3)]))
    array = found.layers[12]
    while not isinstance(array, np.memmap):
        array = array.base
        assert array is not None


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_joining_holds_no_more_than_a_part(suffix):
    """Of arrow's memory, which is not Python's, this says nothing."""
    paths = []
    for number in range(12):
        paths.append(Path(f"part-{number}.safetensors"))
        write_part(paths[-1], part(number, 512, tail=(512,), layers=(3,)), [])  # 1 MiB
    tracemalloc.start()
    try:
        join_parts(Path(f"result{suffix}"), paths, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20
    assert len(read_features(f"result{suffix}").numbers) == 12 * 512


# Names.


@pytest.mark.parametrize("name", ["a", "a.pt", "a.npy", "a.csv", "a.safetensors.txt", ".npz", "a.NPZ2", "a.parquet/"])
def test_endings_that_name_no_format(name):
    path = Path(name) if not name.endswith("/") else Path(name) / "b"
    with pytest.raises(InputError, match=r"give a file that ends in \.safetensors, \.npz, \.parquet"):
        check_format(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_endings_that_do(suffix):
    check_format(Path(f"a{suffix}"))
    check_format(Path(f"deep/a.b{suffix}"))


def test_parquet_without_pyarrow(monkeypatch):
    path = joined(".parquet", [part(0, 2)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (check_format, read_features):
        with pytest.raises(MissingExtra, match=r'needs pyarrow: pip install "imagegpt\[data\]"'):
            use(path)
    check_format(Path("a.npz"))


@pytest.mark.parametrize("name", ["a.pt", "a", "a.npy"])
def test_files_that_are_read_must_have_an_ending_too(name):
    Path(name).write_bytes(b"")
    with pytest.raises(InputError, match="is no file of features; these end in"):
        read_features(name)


@each_format
def test_names_may_be_text_or_paths(suffix):
    path = joined(suffix, [part(0, 2)])
    check(read_features(path), [part(0, 2)])
    check(read_features(str(path)), [part(0, 2)])


# Damage.


@each_format
@pytest.mark.parametrize("content", [b"", b"text", bytes(1000), b"PK\x03\x04" + bytes(50), b"PAR1" * 8])
def test_files_that_are_something_else(suffix, content):
    path = Path(f"a{suffix}")
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\{suffix}"):
        read_features(path)


@each_format
@pytest.mark.parametrize("cut", [1, 10, 200])
def test_files_that_are_cut_off(suffix, cut):
    path = joined(suffix, [part(0, 5), part(5, 5)])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=rf"result\{suffix}"):
        read_features(path)


@each_format
def test_files_that_are_not_there(suffix):
    with pytest.raises(InputError, match="gone"):
        read_features(f"gone{suffix}")


def test_files_of_the_right_kind_that_hold_no_features(tiny_folder):
    np.savez("a.npz", arr_0=np.zeros(3))
    np.savez("b.npz", numbers=np.arange(3), **{"layer.1": np.zeros((3, 2))})
    for path in ("a.npz", "b.npz", tiny_folder / "model.safetensors"):
        with pytest.raises(InputError, match="can't be read as features"):
            read_features(path)


def test_an_npz_of_pickles_is_not_unpickled():
    class Trap:
        def __reduce__(self):
            return (Path("sprung").touch, ())

    np.savez("a.npz", numbers=np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npz"):
        read_features("a.npz")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_part_is_named(suffix):
    paths = [Path("part-0.safetensors"), Path("part-1.safetensors")]
    for number, path in enumerate(paths):
        write_part(path, part(number, 3), [])
    paths[1].write_bytes(paths[1].read_bytes()[:-7])
    with pytest.raises(InputError, match=r"part-1\.safetensors"):
        array_file.join_parts(Path(f"a{suffix}"), paths, {})
