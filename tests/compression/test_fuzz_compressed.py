"""Damaged and forged files: each gives one sentence, or exactly the pictures; never a crash, a hang or wrong ones."""

from __future__ import annotations

import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from compressing import decoded, photographs, resealed, same
from imagegpt import ImageGPT
from imagegpt.compression import compress
from imagegpt.compression.container import CHECKSUM, START, Fields, pack_short, read_file
from imagegpt.errors import InputError

pytest.importorskip("constriction")
NUMBERS = [-1, 0, 1, 2, 3, 7, 8, 64, 255, 1024, 65_536, 10**6, 2**31, 2**63, 2**70, 1.5, None, True, "8", [], {}]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ImageGPT(tiny_folder, device="cpu", backend="onnx")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Bytes and pictures of some small files."""
    folder, made = tmp_path_factory.mktemp("files"), []
    for number, (given, lossless) in enumerate(
        [(photographs(3), False), (photographs(3), True), ([*photographs(1), *photographs(1, 3, 5, grey=True)], True)]
    ):
        path = folder / f"{number}.igpt"
        compress(model, given, path, lossless, batch_size=2)
        made.append((path.read_bytes(), decoded(path, model)))
    return made


class File:
    """A file taken apart."""

    def __init__(self, content: bytes, path) -> None:
        path.write_bytes(content)
        layout = read_file(path)
        self.start = list(START.unpack(content[: START.size]))
        self.header = json.loads(zlib.decompress(content[START.size : START.size + self.start[2]]))
        self.batches = [self._parts(layout.read(number)) for number in range(len(layout.batches))]

    def _parts(self, content: bytes) -> list:
        fields = Fields(content)
        rows, digest = fields.short(1 << 20), fields.take(8)
        info = fields.take(fields.short(1 << 20))
        words = fields.short(1 << 20)
        info = json.loads(zlib.decompress(info)) if info else {}
        return [rows, digest, info, words, fields.take(4 * words), fields.rest()]

    def bytes(self) -> bytes:
        batches = b""
        for rows, digest, info, count, words, rest in self.batches:
            packed = zlib.compress(json.dumps(info).encode()) if info else b""
            content = pack_short(rows) + digest + pack_short(len(packed)) + packed + pack_short(count) + words + rest
            batches += pack_short(len(content)) + content
        header = zlib.compress(json.dumps(self.header).encode())
        self.start[2:] = [len(header), len(batches)]
        return resealed(START.pack(*self.start) + header + batches + bytes(CHECKSUM))


def flip(rng, content, path):
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(rng, content, path):
    first, last = sorted(rng.integers(0, len(content) + 1, 2))
    return content[:first] if rng.random() < 0.5 else content[:first] + content[last:]


def insert(rng, content, path):
    place = rng.integers(len(content) + 1)
    return content[:place] + rng.bytes(rng.integers(1, 20)) + content[place:]


def sealed(change):
    """The same, with the checksum made right."""
    return lambda rng, content, path: resealed(change(rng, content, path))


def header_field(rng, content, path):
    file = File(content, path)
    name = rng.choice(list(file.header))
    file.header[str(name)] = NUMBERS[rng.integers(len(NUMBERS))]
    return file.bytes()


def batch_field(rng, content, path):
    file = File(content, path)
    batch, at = file.batches[rng.integers(len(file.batches))], rng.integers(6)
    if at in (0, 3):
        batch[at] = int(rng.choice([0, 1, 2, 3, batch[at] + 1, 1000, 10**6, 2**40]))
    elif at == 2:
        batch[2] = forged_info(rng, batch[2])
    else:
        batch[at] = sealed_part(rng, batch[at])
    return file.bytes()


def forged_info(rng, info):
    shape = [int(rng.choice([1, 2, 3, 5, 8, 9, 100, 3000, 10**5])) for _ in range(2)] + [int(rng.choice([1, 2, 3]))]
    value = NUMBERS[rng.integers(len(NUMBERS))]
    return [
        {**info, "shapes": [shape]},
        {**info, "shapes": [shape] * int(rng.integers(0, 4))},
        {**info, "shapes": [[value, 8, 3]]},
        {**info, "names": [value, "../../x"]},
        {**info, "more": value},
        [value],
    ][rng.integers(6)]


def sealed_part(rng, part):
    return flip(rng, part, None) if part and rng.random() < 0.7 else rng.bytes(rng.integers(0, 40))


def swapped(rng, content, path):
    """Batches in another order, doubled or gone, the count to match."""
    file = File(content, path)
    file.batches = [file.batches[number] for number in rng.integers(0, len(file.batches), rng.integers(1, 4))]
    file.header["count"] = sum(batch[0] for batch in file.batches)
    return file.bytes()


MUTATIONS = [
    flip,
    cut,
    insert,
    sealed(flip),
    sealed(cut),
    sealed(insert),
    header_field,
    batch_field,
    batch_field,
    swapped,
]


def check(rng, model, files, path):
    content, expected = files[rng.integers(len(files))]
    change = MUTATIONS[rng.integers(len(MUTATIONS))]
    changed = change(rng, content, path)
    path.write_bytes(changed)
    try:
        found = decoded(path, model)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return 0
    # Batches are whole pictures, each with its digest: in another order they are other pictures, and none is wrong.
    if change is swapped:
        assert all(any(np.array_equal(mine, theirs) for theirs in expected) for mine in found)
    else:
        assert same(found, expected), (change, len(found))
    return 1


def fuzz(model, files, path, count, seed):
    rng = np.random.default_rng(seed)
    passed, slowest = 0, 0.0
    for _ in range(count):
        began = time.thread_time()
        passed += check(rng, model, files, path)
        slowest = max(slowest, time.thread_time() - began)
    assert slowest < 60  # of the processor: no hang
    return passed


def test_mutations(model, files, tmp_path):
    assert fuzz(model, files, tmp_path / "a.igpt", 300, 0) < 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_five_thousand_mutations(model, files, tmp_path, seed):
    fuzz(model, files, tmp_path / "a.igpt", 500, seed)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 1024),
        (3, 2**28),
        (2, {"shapes": [[8000, 8000, 3]]}),
        (2, {"shapes": [[1, 64_000_000, 3]]}),
        (2, {"shapes": [[64_000_000, 1, 1]] * 2}),
        (2, {"shapes": [[3000, 3000, 3], [1, 1, 1]]}),
        (2, {"shapes": [[8, 8, 3]], "names": ["x" * 10**6, "y"]}),
        (2, {"shapes": [[8, 8, 3]], "names": ["x" * 10**8]}),
    ],
)
def test_sizes_that_are_only_claimed_take_no_memory(model, files, tmp_path, at, value):
    path = tmp_path / "a.igpt"
    file = File(files[1][0], path)
    file.batches[0][at] = value
    if at == 0:
        file.header |= {"count": 1024 + sum(batch[0] for batch in file.batches[1:]), "rows": 1024}
    path.write_bytes(file.bytes())
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            decoded(path, model)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
