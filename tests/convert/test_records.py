"""Headers and records: what Google's protobuf writes, TensorFlow's ordered code, and nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
from imagegpt.convert.records import read_header, read_record, slice_key, slice_shape
from imagegpt.convert.wire import Message, read_varint

SHAPES = st.lists(st.integers(0, 2**9), max_size=5)
# tensor_bundle.proto and those it uses: message -> field -> (number, type, repeated).
SCHEMA = {
    "Dim": {"size": (1, "int64", False), "name": (2, "string", False)},
    "Shape": {"dim": (2, "Dim", True), "unknown_rank": (3, "bool", False)},
    "Extent": {"start": (1, "int64", False), "length": (2, "int64", False)},
    "Slice": {"extent": (1, "Extent", True)},
    "Entry": {
        **{"dtype": (1, "int32", False), "shape": (2, "Shape", False), "shard_id": (3, "int32", False)},
        **{"offset": (4, "int64", False), "size": (5, "int64", False), "crc32c": (6, "fixed32", False)},
        "slices": (7, "Slice", True),
    },
    "Version": {"producer": (1, "int32", False), "min_consumer": (2, "int32", False)},
    "Header": {"num_shards": (1, "int32", False), "endianness": (2, "int32", False), "version": (3, "Version", False)},
}


@pytest.fixture(scope="module")
def google():
    """TensorFlow's messages, as Google's own library makes them of their description."""
    pool_of = pytest.importorskip("google.protobuf.descriptor_pool")
    described = pytest.importorskip("google.protobuf.descriptor_pb2")
    factory = pytest.importorskip("google.protobuf.message_factory")
    file = described.FileDescriptorProto(name="bundle.proto", package="tests")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for key, (number, kind, repeated) in fields.items():
            made = message.field.add(name=key, number=number, label=3 if repeated else 1)
            if kind in SCHEMA:
                made.type, made.type_name = 11, f".tests.{kind}"
            else:
                made.type = {"int64": 3, "int32": 5, "fixed32": 7, "bool": 8, "string": 9}[kind]
    pool = pool_of.DescriptorPool()
    pool.Add(file)
    return lambda name, **values: factory.GetMessageClass(pool.FindMessageTypeByName(f"tests.{name}"))(**values)


@given(shape=SHAPES, shard=st.integers(0, 10**5), offset=st.integers(0, 2**62), crc=st.integers(0, 2**32 - 1))
def test_records_that_google_writes(google, shape, shard, offset, crc):
    entry = google("Entry", dtype=1, shard_id=shard, offset=offset, size=12, crc32c=crc)
    for size in shape:
        entry.shape.dim.add(size=size, name="x")
    found = read_record(entry.SerializeToString())
    assert (found.dtype, found.shape, found.slices) == ("<f4", tuple(shape), ())
    assert (found.shard, found.offset, found.size, found.crc) == (shard, offset, 12, crc)


def test_slices_that_google_writes(google):
    entry = google("Entry", dtype=9)
    for size in (6, 4):
        entry.shape.dim.add(size=size)
    for extent in ({"start": 2, "length": 3}, {}):
        entry.slices.add().extent.extend([google("Extent", **extent), google("Extent")])
    found = read_record(entry.SerializeToString())
    assert found.slices == (((2, 3), (0, -1)), ((0, -1), (0, -1)))
    assert slice_shape(found.slices[0], found.shape) == (3, 4)


@pytest.mark.parametrize("shards", [1, 2, 64, 99_999])
def test_headers_that_google_writes(google, shards):
    header = google("Header", num_shards=shards, version=google("Version", producer=1))
    assert read_header(header.SerializeToString()) == shards
    assert header.SerializeToString() == bundles.header(shards)


def test_the_writer_of_the_tests_writes_what_google_does(google):
    entry = google("Entry", dtype=3, shard_id=1, offset=300, size=24, crc32c=77)
    entry.shape.dim.add(size=6)
    entry.slices.add().extent.add(start=1, length=5)
    assert bundles.record(3, (6,), 1, 300, 24, 77, [[(1, 5)]]) == entry.SerializeToString()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bundles.header(0), "0 shards"),
        (bundles.header(100_000), "100000 shards"),
        (bundles.header(-1), "-1 shards"),
        (bundles.header(big_endian=True), "big-endian"),
        (bundles.header(needs=2), "a later format"),
        (b"\x0a\x01\x01", "is no number"),
        (b"", "0 shards"),
    ],
)
def test_headers_that_are_not_read(data, why):
    with pytest.raises(ValueError, match=why):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bundles.record(1, [-1]), "no known shape"),
        (bundles.record(1, [(1 << 48) + 1]), "no known shape"),
        (bundles.record(1, [0, 1 << 30, 1 << 30]), "no known shape"),
        (bundles.record(1, [1] * 33), "no known shape"),
        (bundles.field(2, bundles.field(3, 1)), "no known shape"),
        (bundles.record(1, [2], shard=-1), "lies nowhere"),
        (bundles.record(1, [2], offset=-8), "lies nowhere"),
        (bundles.record(1, [2], size=-8), "lies nowhere"),
        (bundles.record(1, [2], slices=[[(0, 1), (0, 1)]]), "other dimensions"),
        (bundles.record(1, [2], slices=[[(1, 2)]]), "outside of its tensor"),
        (bundles.record(1, [2], slices=[[(-1, 2)]]), "outside of its tensor"),
        (b"\x08", "cut off"),
        (b"\x12\x05", "cut off"),
        (b"\x35\x01", "cut off"),
        (b"\x0b", "unknown kind"),
        (b"\x10\x01", "is a number"),
    ],
)
def test_records_that_make_no_sense(data, why):
    with pytest.raises(ValueError, match=why):
        read_record(data)


@pytest.mark.parametrize("kind", [7, 14, 8, 0, 101])
def test_types_that_numpy_lacks(kind):
    assert read_record(bundles.record(kind, [2])).dtype is None


@given(st.integers(0, 2**64 - 1))
def test_varints(number):
    data = bundles.varint(number)
    assert read_varint(b"x" + data + b"y", 1) == (number, 1 + len(data))
    with pytest.raises(ValueError, match="cut off"):
        read_varint(data[:-1], 0)


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 10 + b"\x01", b""])
def test_varints_that_nobody_writes(data):
    with pytest.raises(ValueError, match="cut off or too long"):
        read_varint(data, 0)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        Message(data)
    except ValueError as error:
        assert "in it" in str(error)


# TensorFlow's ordered code: the two examples in ordered_code.cc, and the ends of each length.
@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((0x424242, "f0424242"), (-0x800, "3800"), (0, "80"), (-1, "7f"), (63, "bf"), (64, "c040"), (-64, "40")),
        *((2**63 - 1, "ffc07fffffffffffffff"), (-(2**63), "003f8000000000000000"), (8191, "dfff"), (8192, "e02000")),
    ],
)
def test_ordered_numbers(number, code):
    start, length = (number, 1) if number >= 0 else (0, number)
    key = slice_key(b"", ((start, length),)).hex()
    assert key.startswith("000001" + "0101")
    assert code in key
    assert bundles.ordered(number).hex() == code


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2))
def test_the_order_of_codes_is_that_of_numbers(numbers):
    codes = [slice_key(b"a", ((number, 1),)) for number in numbers]
    assert (codes[0] < codes[1]) == (numbers[0] < numbers[1])


def test_names_with_special_bytes():
    assert slice_key(b"a\0b\xff", ((0, -1),)) == b"\0a\0\xffb\xff\0\0\1\1\1\x80\x7f"
