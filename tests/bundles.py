"""Checkpoints as TensorFlow and OpenAI's code write them, of any shapes: what the tests convert."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt.convert.crc32c import crc32c, masked

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
NUMBERS = {"<f4": 1, "<f8": 2, "<i4": 3, "|u1": 4, "<i2": 5, "|i1": 6, "<i8": 9, "|b1": 10}
NUMBERS |= {"<u2": 17, "<f2": 19, "<u4": 22, "<u8": 23}
MAGIC = 0xDB4775248B80FB57
Entries = Sequence[tuple[bytes, bytes]]


@contextmanager
def less_memory_than(bound: int) -> Iterator[None]:
    """What is done within allocates fewer bytes at any time; mapped files are not counted."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < bound
    finally:
        tracemalloc.stop()


# --- the table


def varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def block(entries: Entries, restart: int = 16) -> bytes:
    """A block's content: keys leave out what they share with the one before, but for each `restart`-th."""
    content, places, before = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart == 0:
            places.append(len(content))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    places = places or [0]
    return content + struct.pack(f"<{len(places) + 1}I", *places, len(places))


def sealed(content: bytes, kind: int = 0) -> bytes:
    """A block with its kind and checksum."""
    return content + bytes([kind]) + struct.pack("<I", masked(crc32c(content + bytes([kind]))))


def table(entries: Entries, size: int = 512, restart: int = 16, pack: Callable[[bytes], bytes] | None = None) -> bytes:
    """A table's file, of blocks of about `size` bytes, packed by `pack` if it is given."""
    file, index, group = b"", [], []

    def add(group: Entries) -> tuple[int, int]:
        nonlocal file
        content = block(group, restart)
        content, kind = (pack(content), 1) if pack else (content, 0)
        place = (len(file), len(content))
        file += sealed(content, kind)
        return place

    def place_of(place: tuple[int, int]) -> bytes:
        return varint(place[0]) + varint(place[1])

    for number, (key, value) in enumerate(entries):
        group.append((key, value))
        if sum(len(key) + len(value) for key, value in group) >= size or number == len(entries) - 1:
            index.append((key, place_of(add(group))))
            group = []
    footer = place_of(add([])) + place_of(add(index))
    return file + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


# --- the records


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value % (1 << 64)) if value else b""


def shape_of(shape: Iterable[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def header(shards: int = 1, big_endian: bool = False, needs: int = 0) -> bytes:
    return field(1, shards) + field(2, int(big_endian)) + field(3, field(1, 1) + field(2, needs))


def extents_of(extents: Iterable[tuple[int, int]]) -> bytes:
    parts = [b"" if length == -1 else field(1, start) + field(2, length) for start, length in extents]
    return b"".join(field(1, part) for part in parts)


def record(
    kind: int, shape: Iterable[int], shard: int = 0, offset: int = 0, size: int = 0, crc: int = 0, slices: Any = ()
) -> bytes:
    """A BundleEntryProto."""
    content = field(1, kind) + field(2, shape_of(shape)) + field(3, shard) + field(4, offset) + field(5, size)
    content += varint(6 << 3 | 5) + struct.pack("<I", crc) if crc else b""
    return content + b"".join(field(7, extents_of(extents)) for extents in slices)


def ordered(number: int) -> bytes:
    """A signed number in TensorFlow's ordered code, by its description: sign, bits that count the bytes, the number."""
    count = 1
    while not -(1 << 7 * count - 1) <= number < 1 << 7 * count - 1:
        count += 1
    bits = format(number % (1 << 7 * count), f"0{7 * count}b")
    sign = "1" if number >= 0 else "0"
    prefix = sign * count + {"1": "0", "0": "1"}[sign]  # the last bit ends the count and stands for the sign's copy
    bits = prefix[: count + 1] + bits[1:]
    return int(bits, 2).to_bytes(count, "big")


def slice_key(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    escaped = name.encode().replace(b"\xff", b"\xff\0")
    numbers = b"".join(ordered(start if length >= 0 else 0) + ordered(length) for start, length in extents)
    return b"\0" + escaped + b"\0\1" + bytes([1, len(extents)]) + numbers


# --- the files


def shard_path(index: Path, number: int, shards: int) -> Path:
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{number:05}-of-{shards:05}")


def write_bundle(
    index: Path,
    arrays: Mapping[str, Any],
    shards: int = 1,
    slices: Mapping[str, Sequence[Sequence[tuple[int, int]]]] | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint; arrays, or functions that make them, go to the shards in turn.

    `slices` has the extents of those that are divided; `options` are the table's.
    """
    files = [shard_path(index, number, shards).open("wb") for number in range(shards)]
    entries: dict[bytes, bytes] = {b"": header(shards)}
    turn = 0

    def add(key: bytes, array: np.ndarray) -> None:
        nonlocal turn
        file, data = files[turn % shards], np.frombuffer(array.tobytes(), np.uint8)
        crc = masked(crc32c(data))
        entries[key] = record(NUMBERS[array.dtype.str], array.shape, turn % shards, file.tell(), data.size, crc)
        file.write(data.data)
        turn += 1

    for name, made in arrays.items():
        array = made() if callable(made) else made
        cuts = (slices or {}).get(name)
        if cuts is None:
            add(name.encode(), array)
            continue
        entries[name.encode()] = record(NUMBERS[array.dtype.str], array.shape, slices=cuts)
        for extents in cuts:
            place = tuple(slice(start, None if length < 0 else start + length) for start, length in extents)
            add(slice_key(name, extents), array[place])
    for file in files:
        file.close()
    index.write_bytes(table(sorted(entries.items()), **options))
    return index


# --- OpenAI's variables


def variable_shapes(layers: int, width: int, heads: int, colors: int, positions: int, bert: bool = False) -> dict:
    """Name -> shape, as OpenAI's src/model.py makes them."""
    attention = (heads, width // heads, width)
    shapes: dict[str, tuple[int, ...]] = {"model/wpe": (positions, width), "model/wte": (colors, width)}
    shapes |= {"model/wtet": (colors, width)} | ({} if bert else {"model/sos": (width,)})
    for layer in range(layers):
        prefix = f"model/h{layer}/"
        shapes |= {f"{prefix}attn/{name}_proj": attention for name in "qkvc"}
        shapes |= {f"{prefix}ln_1/g": (width,), f"{prefix}ln_2/g": (width,)}
        shapes |= {f"{prefix}mlp/c_fc/w": (width, 4 * width), f"{prefix}mlp/c_proj/w": (4 * width, width)}
    return shapes | {"model/ln_f/g": (width,)}


def variables(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 arrays of these shapes."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def optimiser(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What Adam and the training loop add to a checkpoint."""
    slots = {f"{name}/Adam{end}": array * 0.1 for name, array in arrays.items() for end in ("", "_1")}
    counters = {f"beta{number}_power": np.float32(0.9) for number in (1, 2)}
    return slots | {name: np.asarray(value) for name, value in counters.items()} | {"global_step": np.asarray(1000)}


def colours(count: int, seed: int = 0) -> np.ndarray:
    """A palette."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


SMALL = {"layers": 2, "width": 8, "heads": 2, "colors": 5, "positions": 16}


def write_release(folder: Path, step: int = 1000, seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """A small checkpoint as OpenAI released them: two shards, Adam, a palette; the model's variables."""
    folder.mkdir(parents=True, exist_ok=True)
    made = variables(variable_shapes(**{**SMALL, **changes}), seed)
    write_bundle(folder / f"model.ckpt-{step}.index", made | optimiser(made), 2)
    np.save(folder / "kmeans_centers.npy", colours({**SMALL, **changes}["colors"], seed))
    return made
