"""Fuzzed indexes: a sentence or a correct read; never a crash, a hang or a large allocation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from bundles import SMALL, less_memory_than, optimiser, record, sealed, table, variable_shapes, variables, write_bundle
from imagegpt.convert.bundle import Bundle
from imagegpt.convert.names import parts_of, read_sizes
from imagegpt.convert.sstable import read_table
from imagegpt.errors import InputError

SIZES = [0, 1, 2, 3, 5, 8, 16, 127, 1 << 20, 1 << 31, 1 << 47, 1 << 48, 1 << 62, (1 << 63) - 1, -1]
NUMBERS = [0, 1, 2, 7, 8, 127, 128, 255]
BOUND = 1 << 27  # bytes; the promise is 1 GiB
CUTS = {"model/wpe": [[(0, 5), (0, -1)], [(5, 11), (0, 4)], [(5, 11), (4, 4)]]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint in two shards, with slices; its arrays, its index's bytes, entries and places of blocks."""
    folder = tmp_path_factory.mktemp("fuzz")
    arrays = variables(variable_shapes(**SMALL))
    arrays |= optimiser({name: arrays[name] for name in ("model/wte", "model/wpe")})
    index = write_bundle(folder / "m-1.index", arrays, 2, CUTS, size=300)
    content = index.read_bytes()
    return index, arrays, content, read_table(index), blocks_of(content)


def scratched(data: bytes, chance: random.Random, most: int = 4) -> bytes:
    """Some bytes changed, put in, taken out or repeated."""
    made = bytearray(data)
    for _ in range(chance.randint(1, most)):
        place = chance.randrange(len(made) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            made[place : place + 1] = bytes([chance.choice(NUMBERS)])
        elif kind == 1 and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            made[place:place] = chance.randbytes(chance.randint(1, 12))
        elif kind == 3:
            del made[place : place + chance.randint(1, 12)]
        else:
            made[place:place] = made[place : place + chance.randint(1, 40)] * chance.randint(1, 3)
    return bytes(made)


def mutated(content: bytes, entries: list, blocks: list, number: int) -> bytes:
    """The file with damage as it comes (even numbers), or with damage below correct checksums (odd ones)."""
    chance = random.Random(number)
    if number % 2 == 0:
        return scratched(content, chance) if chance.random() < 0.8 else content[: chance.randrange(len(content))]
    if number % 4 == 1:  # keys and values
        made = dict(entries)
        for key in chance.sample(sorted(made), chance.randint(1, 3)):
            value = made.pop(key)
            if chance.random() < 0.3:
                key = scratched(key, chance, 1)
            others = [lambda: forged(chance), lambda: chance.choice(sorted(made.values()))]
            made[key] = scratched(value, chance, 2) if chance.random() < 0.5 else chance.choice(others)()
        return table(sorted(made.items()), chance.randint(1, 600), chance.randint(1, 17))
    # The layout within blocks; the places of the others stay right, for the block keeps its size.
    start, size = chance.choice(blocks)
    damaged = scratched(content[start : start + size], chance, 3)
    damaged = damaged[:size].ljust(size, bytes([chance.choice(NUMBERS)]))
    return content[:start] + sealed(damaged, chance.choice([0, 0, 0, 1, 2])) + content[start + size + 5 :]


def forged(chance: random.Random) -> bytes:
    """A record of any numbers; half of them claim a size that fits their shape."""
    shape = [chance.choice(SIZES) for _ in range(chance.randrange(4))]
    size = 4 * math.prod(shape) if chance.random() < 0.5 else chance.choice(SIZES)
    slices = [[(chance.choice(SIZES), chance.choice([-1, *SIZES])) for _ in shape]] * chance.choice([0, 0, 0, 1, 2])
    numbers = [chance.choice([0, 0, 1, 2]), chance.choice([0, *SIZES]), size, chance.randrange(1 << 32)]
    return record(chance.choice([1, 1, 1, 7, 9, 14]), shape, *numbers, slices)


def blocks_of(content: bytes) -> list[tuple[int, int]]:
    """Where a table's blocks begin, and their sizes: found by their checksums."""
    found, start = [], 0
    while start < len(content) - 48:
        ends = range(start, len(content))
        size = next(end for end in ends if sealed(content[start:end]) == content[start : end + 5]) - start
        found.append((start, size))
        start += size + 5
    return found


def reads(index, arrays: dict, content: bytes) -> bool:
    """Whether a fuzzed index is read; if it is, then what is in it are bytes of the shards."""
    index.write_bytes(content)
    try:
        bundle = Bundle(index)
    except InputError as error:
        assert str(index.parent) in str(error)
        return False
    try:
        spec, causal = read_sizes(bundle.shapes)
        parts_of(spec, causal)
    except InputError as error:
        assert str(error)
    held = sum(array.nbytes for array in arrays.values())
    for name in bundle.shapes:
        try:
            found = bundle.read(name)
        except InputError as error:
            assert str(index.parent) in str(error)
            continue
        assert found.nbytes <= held
        if name in arrays and found.nbytes == arrays[name].nbytes and name not in CUTS:
            np.testing.assert_array_equal(np.frombuffer(found.tobytes(), np.uint8), bytes_of(arrays[name]))
    return True


def bytes_of(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.tobytes(), np.uint8)


def run(original, first: int, count: int) -> int:
    """Fuzz so many; how many could be read all the same."""
    index, arrays, content, entries, blocks = original
    fuzzed = (mutated(content, entries, blocks, number) for number in range(first, first + count))
    try:
        with less_memory_than(BOUND):
            read = sum(reads(index, arrays, made) for made in fuzzed)
    finally:
        index.write_bytes(content)
    return read


def test_the_original_is_read(original):
    assert reads(*original[:3])


def test_300_fuzzed_indexes(original):
    assert 0 < run(original, 0, 300) < 200


@pytest.mark.slow
def test_5000_fuzzed_indexes(original):
    assert 0 < run(original, 300, 5000) < 4000
