"""Bundles: any arrays in any number of shards and slices; what does not fit together is refused before it is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bundles
from bundles import FIXTURES, NUMBERS, less_memory_than, shard_path, table, write_bundle
from imagegpt.convert.bundle import Bundle, find_index, step_of
from imagegpt.convert.crc32c import crc32c, masked
from imagegpt.errors import InputError

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
ARRAYS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(NUMBERS)), st.lists(st.integers(0, 4), max_size=4)), max_size=6
)


def numbers(dtype: str, shape, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    high = 2 if dtype == "|b1" else 256
    return generator.integers(0, high, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype).reshape(shape)


def same(found: np.ndarray, array: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@given(ARRAYS, st.integers(1, 4), st.integers(1, 300))
def test_any_arrays(tmp_path_factory, arrays, shards, size):
    made = {name: numbers(*entry, seed) for seed, (name, entry) in enumerate(arrays.items())}
    bundle = Bundle(write_bundle(tmp_path_factory.mktemp("bundles") / "m-7.index", made, shards, size=size))
    assert bundle.shapes == {name: array.shape for name, array in made.items()}
    for name, array in made.items():
        same(bundle.read(name), array)
        assert (bundle.dtype(name), bundle.size(name)) == (array.dtype.str, array.nbytes)
        bundle.check(name)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data(), st.integers(1, 3))
def test_any_slices(tmp_path_factory, shape, data, shards):
    array = numbers("<f4", shape)
    axes = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    cuts: list = [[]]
    for axis, size in zip(axes, shape, strict=True):
        spans = [(a, b - a) for a, b in itertools.pairwise(axis)]
        spans = [(0, -1)] if spans == [(0, size)] and data.draw(st.booleans()) else spans
        cuts = [[*before, span] for before in cuts for span in spans]
    both = {"whole": array, "parts\xff": array}
    bundle = Bundle(write_bundle(tmp_path_factory.mktemp("b") / "m.index", both, shards, {"parts\xff": cuts}))
    assert bundle.shapes == {"whole": array.shape, "parts\xff": array.shape}
    same(bundle.read("parts\xff"), array)
    assert bundle.size("parts\xff") == array.nbytes


def test_what_tensorflow_wrote_passes_every_checksum():
    for name, shards in (("openai_8px", 2), ("openai_bert_8px", 1)):
        folder = FIXTURES / name
        if not folder.exists():
            pytest.skip("shared/fixtures is not here")
        bundle = Bundle(folder / "model.ckpt-1000.index")
        assert len(bundle.files) == 1 + shards
        for tensor in bundle.shapes:
            bundle.check(tensor)
        assert bundle.read("global_step").dtype == np.int64
        assert bundle.read("model/ln_f/g").dtype == np.float32


def test_whole_tensors_stay_on_the_disk_and_can_not_be_written(tmp_path):
    array = numbers("<f4", (2000, 1000))
    bundle = Bundle(write_bundle(tmp_path / "m.index", {"a": array}))
    bundle.read("a")
    with less_memory_than(3_000_000):  # what a checksum takes, however large the tensor is
        found = bundle.read("a")
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


# --- damage

ONE = np.arange(6, dtype="<f4").reshape(2, 3)
CRC = masked(crc32c(ONE.tobytes()))


def forged(folder, records: dict[bytes, bytes], shards: int = 1, content: bytes = ONE.tobytes()):
    """A checkpoint with a given index, and one shard."""
    entries = sorted({b"": bundles.header(shards), **records}.items())
    (folder / "m.index").write_bytes(table(entries))
    shard_path(folder / "m.index", 0, shards).write_bytes(content)
    return folder / "m.index"


def test_the_forgery_of_the_tests_below_is_right(tmp_path):
    same(Bundle(forged(tmp_path, {b"a": bundles.record(1, (2, 3), 0, 0, 24, CRC)})).read("a"), ONE)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (bundles.record(1, (2, 3), 0, 0, 20, CRC), r"m\.index is damaged: a has 20 bytes, which is not <f4"),
        (bundles.record(1, (2, 3), 0, 0, 28, CRC), r"m\.index is damaged: a has 28 bytes"),
        (bundles.record(1, (1 << 40,), 0, 0, 1 << 42, CRC), r"m\.data-00000-of-00001 is cut off, .* it has 24 bytes"),
        (bundles.record(1, (1 << 40, 1 << 40), 0, 0, 24, CRC), r"m\.index is damaged: a tensor has no known shape"),
        (bundles.record(1, (1 << 20, 1 << 20), 0, 0, 24, CRC), r"m\.index is damaged: a has 24 bytes"),
        (bundles.record(1, (2, 3), 0, 4, 24, CRC), r"m\.data-00000-of-00001 is cut off"),
        (bundles.record(1, (2, 3), 0, 1 << 62, 24, CRC), r"m\.data-00000-of-00001 is cut off"),
        (bundles.record(1, (2, 3), 1, 0, 24, CRC), r"m\.index is damaged: it names shard 1 of 1"),
        (bundles.record(1, (2, 3), 0, 0, 24, CRC, [[(0, 1), (0, -1)]]), "a slice of a is missing"),
        (b"\xff", "damaged"),
    ],
)
def test_records_that_do_not_fit_the_files(tmp_path, record, why):
    index = forged(tmp_path, {b"a": record})
    with less_memory_than(1_000_000), pytest.raises(InputError, match=why):
        Bundle(index).read("a")


def test_a_wrong_checksum(tmp_path):
    index = forged(tmp_path, {b"a": bundles.record(1, (2, 3), 0, 0, 24, CRC ^ 1)})
    for read in (Bundle(index).read, Bundle(index).check):
        with pytest.raises(InputError, match=r"m\.data-00000-of-00001 is damaged: the checksum of a is wrong"):
            read("a")


def test_tensors_that_share_bytes(tmp_path):
    both = {name: bundles.record(1, (2, 3), 0, 0, 24, CRC) for name in (b"a", b"b")}
    with pytest.raises(InputError, match="b lies where another tensor does"):
        Bundle(forged(tmp_path, both))


@pytest.mark.parametrize(
    ("cuts", "why"),
    [
        ([[(0, 1), (0, -1)]], "do not fill it"),
        ([[(0, 1), (0, -1)], [(0, 1), (0, -1)]], "missing or is another's"),  # the same slice twice
        ([[(0, 2), (0, 2)], [(0, 1), (1, 2)]], "overlap"),
    ],
)
def test_slices_that_do_not_divide(tmp_path, cuts, why):
    index = write_bundle(tmp_path / "m.index", {"a": ONE}, slices={"a": cuts})
    with pytest.raises(InputError, match=rf"m\.index is damaged: .*{why}"):
        Bundle(index)


def test_slices_of_another_shape_of_no_tensor_and_too_many(tmp_path, monkeypatch):
    key = bundles.slice_key("a", [(0, -1)])
    whole = bundles.record(1, (6,), slices=[[(0, -1)]])
    forged(tmp_path, {b"a": whole, key: bundles.record(1, (6,), 0, 0, 24, CRC)})
    same(Bundle(tmp_path / "m.index").read("a"), ONE.reshape(-1))
    for wrong in (bundles.record(1, (2, 3), 0, 0, 24, CRC), bundles.record(3, (6,), 0, 0, 24, CRC)):
        with pytest.raises(InputError, match="a slice of a is missing or is another's"):
            Bundle(forged(tmp_path, {b"a": whole, key: wrong}))
    with pytest.raises(InputError, match="slices of no tensor"):
        Bundle(forged(tmp_path, {key: bundles.record(1, (6,), 0, 0, 24, CRC)}))
    monkeypatch.setattr("imagegpt.convert.bundle.MOST_SLICES", 0)
    with pytest.raises(InputError, match="in more than 0 slices"):
        Bundle(forged(tmp_path, {b"a": whole, key: bundles.record(1, (6,), 0, 0, 24, CRC)}))


def test_no_header_and_names_that_are_no_text(tmp_path):
    (tmp_path / "m.index").write_bytes(table([(b"a", b"")]))
    with pytest.raises(InputError, match=r"m\.index is damaged: it has no header"):
        Bundle(tmp_path / "m.index")
    with pytest.raises(InputError, match="name is no text"):
        Bundle(forged(tmp_path, {b"\xfe": bundles.record(1, (2, 3), 0, 0, 24, CRC)}))


def test_texts_are_listed_but_not_read(tmp_path):
    bundle = Bundle(forged(tmp_path, {b"text": bundles.record(7, (1,), 0, 0, 5, 1)}))
    assert bundle.dtype("text") is None
    bundle.check("text")
    with pytest.raises(InputError, match="text is of a type that numpy lacks"):
        bundle.read("text")


def test_shards_that_are_missing_cut_off_or_swapped(tmp_path):
    made = {name: numbers("<f4", (50,), seed) for seed, name in enumerate("abcd")}
    index = write_bundle(tmp_path / "m.index", made, 2)
    first, second = (shard_path(index, number, 2) for number in range(2))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(InputError, match=r"m\.data-0000\d-of-00002 is damaged"):
        Bundle(index).read("a")
    first.write_bytes(content[0][:-1])
    with pytest.raises(InputError, match=r"m\.data-00000-of-00002 is cut off"):
        Bundle(index)
    first.rename(tmp_path / "other")
    with pytest.raises(InputError, match=r"m\.data-00000-of-00002 is missing, in which m\.index says"):
        Bundle(index)


def test_a_shard_that_is_emptied_after_it_was_measured(tmp_path):
    bundle = Bundle(forged(tmp_path, {b"a": bundles.record(1, (2, 3), 0, 0, 24, CRC)}))
    shard_path(tmp_path / "m.index", 0, 1).write_bytes(b"")
    with pytest.raises(InputError, match=r"m\.data-00000-of-00001 can't be read"):
        bundle.read("a")


# --- which checkpoint


def test_a_checkpoint_is_found_by_folder_file_or_prefix(tmp_path):
    index = write_bundle(tmp_path / "model.ckpt-1000.index", {"a": ONE})
    for source in (tmp_path, index, tmp_path / "model.ckpt-1000"):
        assert find_index(source) == find_index(source, 1000) == index
    assert step_of(index) == 1000
    assert step_of(tmp_path / "model.ckpt.index") is None


def test_of_several_steps_one_must_be_named(tmp_path):
    for step in (131000, 1000000):
        (tmp_path / f"model.ckpt-{step}.index").touch()
    assert find_index(tmp_path, 131000).name == "model.ckpt-131000.index"
    for step in (None, 7):
        with pytest.raises(InputError, match=r"has checkpoints of these steps: 1000000, 131000; name one"):
            find_index(tmp_path, step)
    with pytest.raises(InputError, match="is not of step 7"):
        find_index(tmp_path / "model.ckpt-131000.index", 7)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"no file that ends in \.index"):
        find_index(tmp_path)
    with pytest.raises(InputError, match=r"There is no TensorFlow checkpoint .*nothing"):
        find_index(tmp_path / "nothing")
    with pytest.raises(InputError, match="There is no TensorFlow checkpoint"):
        find_index(tmp_path / ("long" * 100))
