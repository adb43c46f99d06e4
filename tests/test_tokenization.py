"""Tokenised data sets: the right ids in the folder, whatever interrupts, by one process or several."""

from __future__ import annotations

import io
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagegpt import __version__, tokenization
from imagegpt.checkpoint import EMBEDDED
from imagegpt.cli.main import main
from imagegpt.codec.augment import Augmentation
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.data.records import Record, Source
from imagegpt.data.sources import open_source
from imagegpt.data.tokens import verify
from imagegpt.errors import InputError
from imagegpt.tokenization import Tokenization
from making import KINDS
from running import start, wait_for_parts

TRAIN = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10" / "train.parquet"
CLASSES = ("ant", "bee", "cow")
COUNT, PART = 11, 4
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
FRAMING = Framing(8, 16, "center")
CIFAR, IMAGENET = Augmentation.parse("cifar"), Augmentation.parse("imagenet")


class StoppedError(Exception):
    """What ends a run in a test."""


def picture(number: int) -> np.ndarray:
    """Of other sides for each number."""
    return np.random.default_rng(number).integers(0, 256, (9 + number % 5, 20 - number % 3, 3), np.uint8)


def label(number: int) -> int:
    return number * len(CLASSES) // COUNT


def save_folder(folder: Path) -> Path:
    """Pictures in folders of their classes; the order is that of the folders."""
    for number in range(COUNT):
        path = folder / CLASSES[label(number)] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenization, "PART", PART)
    return tmp_path


def run_of(data, codec=CODEC, framing=FRAMING, **options) -> Tokenization:
    return Tokenization(data if isinstance(data, Source) else open_source(data), codec, framing, **options)


def tokenise(data, out="tokens", rank=0, processes=1, progress=None, **options) -> int:
    return run_of(data, **options).run(Path(out), rank, processes, progress)


def memory(images, labels=None) -> Source:
    """A source that lies nowhere."""

    def records(start: int, stop: int) -> Iterator[Record]:
        for number in range(start, stop):
            yield Record(f"record {number}", images[number], None if labels is None else labels[number])

    return Source("here", len(images), records, labels is not None)


def expected(numbers: Sequence[int] = range(COUNT), codec=CODEC, framing=FRAMING) -> np.ndarray:
    """The ids of the image processor, one picture after another."""
    processor = ImageGPTImageProcessor.from_codec(codec, framing)
    return np.stack([processor(Image.fromarray(picture(n)))["input_ids"][0] for n in numbers])


def views(augmentation, copies, seed=0, numbers: Sequence[int] = range(COUNT)) -> np.ndarray:
    """The ids of the views, one after another."""
    grids = [
        augmentation.apply(Image.fromarray(picture(n)), FRAMING, np.random.default_rng([seed, copy, n]))
        for copy in range(copies)
        for n in numbers
    ]
    return np.stack([CODEC.encode(grid).reshape(-1) for grid in grids])


def stored(out: str | Path = "tokens") -> np.ndarray:
    return np.load(Path(out) / "ids.npy")


def meta(out="tokens") -> dict:
    return json.loads((Path(out) / "meta.json").read_text())


def listing(folder: Path | str) -> dict[str, bytes | None]:
    found = sorted(Path(folder).rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


# What is in the folder.


@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("grid", [(8, 16), (3, 2), (1, 1), (40, 40)])
def test_the_ids_are_those_of_the_image_processor(place, pictures, crop, grid):
    told = []
    framing = Framing(grid[0], grid[1], crop)
    assert tokenise(pictures, framing=framing, progress=lambda *at: told.append(at)) == COUNT
    assert (stored().dtype, stored().shape) == (np.uint16, (COUNT, grid[0] * grid[1]))
    np.testing.assert_array_equal(stored(), expected(framing=framing))
    assert np.load("tokens/labels.npy").tolist() == [label(n) for n in range(COUNT)]
    assert np.load("tokens/labels.npy").dtype == np.int64
    assert (told[0], told[-1]) == ((0, COUNT), (COUNT, COUNT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert sorted(listing(place)) == ["tokens", "tokens/ids.npy", "tokens/labels.npy", "tokens/meta.json"]


def test_the_ids_are_the_nearest_colours(pictures):
    """By all distances, in float64."""
    tokenise(pictures)
    for number, ids in enumerate(stored()):
        seen = FRAMING.apply(Image.fromarray(picture(number))).reshape(-1, 1, 3) / 127.5 - 1
        distances = ((seen - CODEC.clusters.astype(np.float64)) ** 2).sum(2)
        rows = np.arange(len(ids))
        np.testing.assert_allclose(distances[rows, ids], distances.min(1), atol=1e-6)


def test_the_folder_is_data(pictures):
    tokenise(pictures)
    source = open_source("tokens")
    assert source.tokens is not None
    assert (source.tokens.codec, source.tokens.grid) == (CODEC.fingerprint, (8, 16))
    np.testing.assert_array_equal(np.array(source.tokens.entries["clusters"], np.float32), CODEC.clusters)
    assert (len(source), source.labelled, source.classes) == (COUNT, True, CLASSES)
    np.testing.assert_array_equal([record.ids for record in source], expected())
    assert verify("tokens")


def test_the_folder_says_what_made_it(pictures):
    source = open_source(pictures)
    tokenise(source, augmentation=CIFAR, copies=2, seed=7, on_error="skip")
    told = meta()
    assert list(told.pop("checksums")) == ["ids.npy", "labels.npy"]
    assert np.array_equal(np.array(told.pop("clusters"), np.float32), CODEC.clusters)
    assert told == {
        **{"codec": CODEC.fingerprint, "grid": [8, 16], "count": 2 * COUNT, "classes": list(CLASSES)},
        **{"framing": {"height": 8, "width": 16, "crop": "center", "resample": 2}, "augmentation": "pad,flip"},
        **{"copies": 2, "seed": 7, "on_error": "skip", "skipped": [], "data": source.fingerprint()},
        **{"records": COUNT, "source": str(pictures), "imagegpt": __version__},
    }


def test_the_arrays_are_written_as_numpy_writes_them(pictures):
    tokenise(pictures)
    for name in ("ids.npy", "labels.npy"):
        file = io.BytesIO()
        np.save(file, np.load(f"tokens/{name}"))
        assert Path(f"tokens/{name}").read_bytes() == file.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_every_kind_of_data(kind, tmp_path):
    numbers, labels = [3, 1, 4, 1, 0, 2, 2], [0, 0, 0, 0, 1, 1, 1]
    tokenise(KINDS[kind](tmp_path / "data", numbers, labels))
    tokenise(KINDS["folder"](tmp_path / "again", numbers, labels), "same")
    np.testing.assert_array_equal(stored(), stored("same"))
    assert np.load("tokens/labels.npy").tolist() == labels


def test_data_without_labels(place):
    tokenise(memory([picture(n) for n in range(COUNT)]))
    np.testing.assert_array_equal(stored(), expected())
    assert sorted(listing("tokens")) == ["ids.npy", "meta.json"]
    assert list(meta()["checksums"]) == ["ids.npy"]
    assert not open_source("tokens").labelled
    assert verify("tokens")


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3, 0.5, 1.5], [True, False] * 3, [[0, 1]] * 6, [[0.5, 1]] * 5 + [[1, 2]]], ids=str
)
def test_labels_of_any_kind(labels):
    """The first part has four records."""
    tokenise(memory([picture(n) for n in range(6)], labels))
    assert np.load("tokens/labels.npy").tolist() == labels
    assert [record.label for record in open_source("tokens")] == labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, None, 3, 4, 5], "Record 2 has no label"),
        ([[0, 1], [1], [0, 1], [1, 1], [0, 1], [1, 1]], "labels from record 0 on do not all have as many numbers"),
        ([[0, 1]] * 4 + [[0, 1, 2]] * 2, "labels do not all have as many numbers"),
    ],
    ids=["missing", "ragged within a part", "ragged between parts"],
)
def test_labels_that_are_no_table(labels, words):
    with pytest.raises(InputError, match=words) as error:
        tokenise(memory([picture(n) for n in range(6)], labels))
    assert "\n" not in str(error.value)
    assert not Path("tokens/meta.json").exists()


@pytest.mark.parametrize("limit", [1, PART, PART + 1, 1000])
def test_the_first_records_alone(pictures, limit):
    assert tokenise(open_source(pictures, limit=limit)) == min(limit, COUNT)
    np.testing.assert_array_equal(stored(), expected(range(min(limit, COUNT))))


def test_as_many_colours_as_16_bits_hold():
    levels = np.arange(1 << 16)
    codec = PaletteCodec(np.stack([levels >> 8, levels & 255, 0 * levels], 1) / 127.5 - 1)
    image = np.array([[[255, 255, 0], [0, 1, 0]]], np.uint8)
    tokenise(memory([image]), codec=codec, framing=Framing(1, 2))
    assert stored().tolist() == [[65535, 1]]
    with pytest.raises(InputError, match="65,536 colours at most, not 65,537"):
        run_of(memory([image]), codec=PaletteCodec(np.concatenate([codec.clusters, [[0.5, 0.5, 0.5]]])))


# Real pictures.


@pytest.fixture(scope="module")
def nano() -> PaletteCodec:
    return load_preprocessor(EMBEDDED["nano"])[0]


def check_cifar_10(nano, count, monkeypatch):
    """Beside the image processor, which reads the table itself."""
    parquet = pytest.importorskip("pyarrow.parquet")
    if not TRAIN.exists():
        pytest.skip("shared/data is not here")
    monkeypatch.setattr(tokenization, "PART", 700)
    assert tokenise(open_source(TRAIN, limit=count), codec=nano, framing=Framing(32, 32, "center")) == count
    ids, labels = stored(), np.load("tokens/labels.npy")
    assert len(ids) == count
    processor = ImageGPTImageProcessor(nano.clusters, size=32, crop="center")
    first = 0
    for batch in parquet.ParquetFile(TRAIN).iter_batches(1000):
        rows = batch.to_pylist()[: count - first]
        if rows:
            theirs = processor([row["image"]["bytes"] for row in rows], return_tensors="np")["input_ids"]
            np.testing.assert_array_equal(ids[first : first + len(rows)], theirs)
            assert labels[first : first + len(rows)].tolist() == [row["label"] for row in rows]
        first += len(rows)
    assert first == count
    assert verify("tokens")


def test_2000_pictures_of_cifar_10_have_the_ids_of_the_image_processor(nano, monkeypatch):
    check_cifar_10(nano, 2000, monkeypatch)


@pytest.mark.slow
def test_45000_pictures_of_cifar_10_have_the_ids_of_the_image_processor(nano, monkeypatch):
    check_cifar_10(nano, 45000, monkeypatch)


# Copies.


@pytest.mark.parametrize("augmentation", [CIFAR, IMAGENET, Augmentation(flip=True), Augmentation(crop=True, flip=True)])
@pytest.mark.parametrize("seed", [0, 2**40])
def test_copies_are_the_views_that_the_augmentation_draws(pictures, augmentation, seed):
    assert tokenise(pictures, augmentation=augmentation, copies=3, seed=seed) == 3 * COUNT
    np.testing.assert_array_equal(stored(), views(augmentation, 3, seed))
    assert np.load("tokens/labels.npy").tolist() == [label(n) for n in range(COUNT)] * 3
    assert meta()["count"] == 3 * COUNT
    assert len({ids.tobytes() for ids in stored()}) > 1.8 * COUNT


def test_more_copies_begin_with_the_same_ones(pictures):
    tokenise(pictures, "one", augmentation=CIFAR, copies=1)
    tokenise(pictures, "two", augmentation=CIFAR, copies=2)
    np.testing.assert_array_equal(stored("two")[:COUNT], stored("one"))


def test_another_seed_is_another_data_set(pictures):
    tokenise(pictures, "a", augmentation=CIFAR, copies=1)
    tokenise(pictures, "b", augmentation=CIFAR, copies=1, seed=1)
    assert (stored("a") != stored("b")).any()


def test_a_view_depends_on_the_number_of_its_record_and_not_on_what_is_skipped():
    images = [b"none" if n in (0, 5) else picture(n) for n in range(COUNT)]
    tokenise(memory(images, list(range(COUNT))), augmentation=CIFAR, copies=2, on_error="skip")
    good = [n for n in range(COUNT) if n not in (0, 5)]
    np.testing.assert_array_equal(stored(), views(CIFAR, 2, numbers=good))
    assert np.load("tokens/labels.npy").tolist() == good * 2
    assert [sentence.split(":")[0] for sentence in meta()["skipped"]] == ["record 0", "record 5"]  # of both copies


@settings(max_examples=40)
@given(
    records=st.integers(1, 9),
    copies=st.integers(0, 4),
    part=st.integers(1, 12),
    processes=st.integers(1, 3),
    bad=st.sets(st.integers(1, 8)),
    name=st.sampled_from(["cifar", "imagenet", "crop,pad", "flip"]),
)
def test_neither_parts_nor_processes_change_a_byte(records, copies, part, processes, bad, name):
    bad = bad & set(range(records))
    images = [b"none" if n in bad else picture(n) for n in range(records)]
    augmentation = Augmentation.parse(name) if copies else Augmentation()
    run = run_of(memory(images, list(range(records))), augmentation=augmentation, copies=copies, on_error="skip")
    good = [n for n in range(records) if n not in bad]
    wanted = views(augmentation, copies, numbers=good) if copies else expected(good)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        out = Path(folder, "tokens")
        patch.setattr(tokenization, "PART", part)
        made = sum(run.run(out, rank, processes) for rank in reversed(range(processes)))
        assert made == records * max(1, copies)
        np.testing.assert_array_equal(stored(out), wanted)
        assert np.load(out / "labels.npy").tolist() == good * max(1, copies)
        assert verify(out)
        assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize("side", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_pictures_of_few_pixels_can_be_augmented(side):
    image = np.random.default_rng(0).integers(0, 256, (*side, 3), np.uint8)
    tokenise(memory([image]), augmentation=Augmentation(True, True, True), copies=20)
    assert stored().shape == (20, 128)


# Pictures that can't be read.


def spoil(folder: Path, *numbers: int) -> Path:
    save_folder(folder)
    files = sorted(folder.rglob("*.png"))
    for number in numbers:
        files[number].write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("bad", [(0, 5, 6), range(4), range(4, 8), range(8, 11)], ids=str)
def test_unreadable_pictures_are_left_out_and_listed(bad):
    assert tokenise(spoil(Path("data"), *bad), on_error="skip") == COUNT
    good = [n for n in range(COUNT) if n not in bad]
    np.testing.assert_array_equal(stored(), expected(good))
    assert np.load("tokens/labels.npy").tolist() == [label(n) for n in good]
    assert np.load("tokens/labels.npy").dtype == np.int64
    for sentence, number in zip(meta()["skipped"], bad, strict=True):
        assert sentence.startswith(f"data/{CLASSES[label(number)]}/{number:03}.png")


def test_where_none_can_be_read_there_is_no_data_set():
    with pytest.raises(InputError, match=r"data holds no picture that can be read; the first: data/ant/000\.png"):
        tokenise(spoil(Path("data"), *range(COUNT)), on_error="skip")
    assert not Path("tokens").exists()


def test_an_empty_folder_that_was_there_stays():
    Path("tokens").mkdir()
    with pytest.raises(InputError, match="holds no picture that can be read"):
        tokenise(spoil(Path("data"), *range(COUNT)), on_error="skip")
    assert list(Path("tokens").iterdir()) == []


def test_the_first_unreadable_picture_ends_a_run_that_is_not_told_to_skip():
    with pytest.raises(InputError, match=r"data/bee/005\.png"):
        tokenise(spoil(Path("data"), 5, 6))
    assert not Path("tokens/meta.json").exists()


# What can't be done.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"copies": 2}, "Copies without augmentation would all be the same"),
        ({"augmentation": CIFAR}, "how many copies of each picture the augmentation pad,flip should make"),
        ({"copies": -1, "augmentation": CIFAR}, "copies must be at least 0, not -1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"framing": Framing(8, 16, "random")}, "A random crop differs from run to run"),
        ({"framing": Framing(10**5, 10**5)}, "100000 x 100000 ids; that is too many"),
    ],
)
def test_settings_that_make_no_sense(place, pictures, options, words):
    with pytest.raises(InputError, match=words):
        tokenise(pictures, **options)
    assert listing(place) == {}


def test_ids_are_refused(pictures):
    tokenise(pictures)
    with pytest.raises(InputError, match="tokens holds ids already; give the pictures"):
        tokenise("tokens", "again")
    assert not Path("again").exists()


def test_a_folder_that_holds_something_else_is_left_as_it_is(place, pictures):
    tokenise(pictures, "old")
    for name in ("other", "half"):
        Path(name).mkdir()
    Path("other/notes.txt").write_text("mine")
    Path("half/ids.npy").write_bytes(b"whose")
    Path("file").write_text("mine")
    before = listing(place)
    for out, words in (
        ("old", "old holds a tokenised data set already; remove it"),
        ("other", "other is a folder with other files"),
        ("half", "half is a folder with other files"),
        ("file", "file is a file"),
        ("gone/tokens", "gone/tokens can't be written"),
        ("file/tokens", "file/tokens can't be written"),
    ):
        with pytest.raises(InputError, match=words):
            tokenise(pictures, out)
        if out != "old":  # another process may come late
            with pytest.raises(InputError, match=words):
                tokenise(pictures, out, rank=1, processes=2)
    assert listing(place) == before


def test_an_empty_folder_will_do(pictures):
    Path("tokens").mkdir()
    Path("tokens/.keep").touch()
    tokenise(pictures)
    np.testing.assert_array_equal(stored(), expected())


# Interrupted runs.


def parts(out="tokens") -> dict[str, int]:
    """Name -> time of its last change."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(out, "meta.json.parts").glob("part-*"))}


@pytest.fixture
def stop_after(monkeypatch):
    """Have a function of the module fail when it has been called so often."""

    def arrange(name: str, calls: int):
        patch, made, function = pytest.MonkeyPatch(), [], getattr(tokenization, name)

        def fail(*args, **kwargs):
            if len(made) == calls:
                patch.undo()
                raise StoppedError
            made.append(1)
            return function(*args, **kwargs)

        patch.setattr(tokenization, name, fail)

    return arrange


@pytest.fixture
def whole(pictures) -> dict[str, bytes | None]:
    """What a run writes that nothing disturbs."""
    tokenise(pictures, "whole", augmentation=CIFAR, copies=2)
    return listing("whole")


@pytest.mark.parametrize("calls", range(6))
def test_a_run_continues_where_it_was_stopped(pictures, whole, stop_after, calls):
    stop_after("write_part", calls)
    with pytest.raises(StoppedError):
        tokenise(pictures, augmentation=CIFAR, copies=2)
    there = parts()
    assert len(there) == calls
    assert not Path("tokens/meta.json").exists()
    assert tokenise(pictures, augmentation=CIFAR, copies=2) == 2 * COUNT - PART * calls
    assert listing("tokens") == whole


@pytest.mark.parametrize("calls", [0, 1])
def test_a_run_continues_that_was_stopped_while_it_joined(pictures, whole, stop_after, calls):
    stop_after("write_whole", calls)
    with pytest.raises(StoppedError):
        tokenise(pictures, augmentation=CIFAR, copies=2)
    assert len(parts()) == 6
    assert (Path("tokens/ids.npy").exists(), Path("tokens/meta.json").exists()) == (calls == 1, False)
    Path("tokens/meta.json.parts/.ids-0badf00d.npy").write_bytes(b"half")  # as a kill leaves them
    Path("tokens/meta.json.parts/.part-000000004-0badf00d.safetensors").write_bytes(b"half")
    Path("tokens/.meta-0badf00d.json").write_bytes(b"half")
    assert tokenise(pictures, augmentation=CIFAR, copies=2) == 0
    assert listing("tokens") == whole


@pytest.fixture
def stopped(pictures, stop_after) -> Path:
    """The folder of the parts of a run that was stopped after one of three."""
    stop_after("write_part", 1)
    with pytest.raises(StoppedError):
        tokenise(pictures)
    return Path("tokens/meta.json.parts")


def test_parts_of_other_settings_are_refused(stopped, pictures):
    before = listing(stopped)
    refused = {
        "codec": {"codec": PaletteCodec(CODEC.clusters[::-1])},
        "(grid|framing)": {"framing": Framing(16, 8, "center")},
        "framing": {"framing": Framing(8, 16, "none")},
        "framing ": {"framing": replace(FRAMING, resample=0)},
        "(augmentation|copies)": {"augmentation": CIFAR, "copies": 1},
        "seed": {"seed": 1},
        "on_error": {"on_error": "skip"},
        "(records|data)": {"data": open_source(pictures, limit=9)},
    }
    for name, change in refused.items():
        with pytest.raises(InputError, match=rf"meta\.json\.parts holds ids with {name}"):
            tokenise(**{"data": pictures, **change})
    assert listing(stopped) == before
    tokenise(pictures)
    np.testing.assert_array_equal(stored(), expected())


def test_a_part_that_is_damaged_is_named(stopped, pictures):
    path = stopped / "part-000000000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"part-000000000\.safetensors"):
        tokenise(pictures)
    assert not Path("tokens/meta.json").exists()
    path.unlink()
    tokenise(pictures)
    np.testing.assert_array_equal(stored(), expected())


# Memory.


def test_a_part_of_large_grids_fits_into_memory(monkeypatch, stop_after):
    monkeypatch.setattr(tokenization, "PART", 2048)
    monkeypatch.setattr(tokenization, "PART_BYTES", 1 << 16)
    stop_after("write_part", 0)
    with pytest.raises(StoppedError):
        tokenise(memory([picture(n) for n in range(3)]), framing=Framing(128, 128))
    assert json.loads(Path("tokens/meta.json.parts/run.json").read_text())["part"] == 2


def test_not_all_ids_are_in_memory_when_they_are_joined(monkeypatch):
    peaks, join = [], Tokenization._join

    def measured(*args):
        tracemalloc.start()
        join(*args)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(Tokenization, "_join", measured)
    monkeypatch.setattr(tokenization, "PART", 8)
    tokenise(memory([np.zeros((2, 2, 3), np.uint8)] * 160), framing=Framing(128, 128))
    assert Path("tokens/ids.npy").stat().st_size > 160 * 128 * 128 * 2
    assert peaks[0] < 2 * 8 * 128 * 128 * 2


# Several processes, and the end of some.


def test_each_process_makes_its_share(pictures):
    assert tokenise(pictures, rank=1, processes=2) == PART
    assert list(parts()) == ["part-000000004.safetensors"]
    assert tokenise(pictures, rank=0, processes=2) == COUNT - PART
    np.testing.assert_array_equal(stored(), expected())
    assert tokenise(pictures, rank=1, processes=2) == 0  # it comes late, and is content
    with pytest.raises(InputError, match="is there already"):
        tokenise(pictures, rank=1, processes=2, seed=5)


MANY = 2048 * 5  # in two copies: ten parts


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("many") / "data.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (MANY, 8, 8, 3), np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, 10, MANY))
    return path


@pytest.fixture(scope="module")
def palette(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("palette") / "palette.npy"
    CODEC.save(path)
    return path


def command(many: Path, palette: Path) -> list[str]:
    augmented = ["--augment", "cifar", "--augment-copies", "2", "--seed", "3"]
    return ["tokenize", str(many), "--codec", str(palette), "--grid", "8x8", *augmented, "--out", "tokens", "--json"]


@pytest.fixture(scope="module")
def uninterrupted(many, palette, tmp_path_factory) -> dict[str, bytes | None]:
    """What a command writes that nothing disturbs."""
    folder, here = tmp_path_factory.mktemp("whole"), os.getcwd()
    os.chdir(folder)
    try:
        assert main(command(many, palette)) == 0
        return listing("tokens")
    finally:
        os.chdir(here)


def test_killed_twice_the_same_command_makes_the_same_bytes(place, many, palette, monkeypatch, uninterrupted):
    there: dict[str, int] = {}
    for _ in range(2):
        process = start(command(many, palette), most=len(there) + 3)
        try:
            wait_for_parts(process, len(there) + 2, "tokens/meta.json")
        finally:
            process.kill()  # no signal that could be caught
            process.communicate()
        found = parts()
        assert found.items() >= there.items()  # what was finished has not been written again
        assert len(there) + 2 <= len(found) < 10
        assert not Path("tokens/meta.json").exists()
        there = found
    process = start(command(many, palette))
    written, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    record = json.loads(written)
    assert (record["count"], record["made"]) == (2 * MANY, 2 * MANY - 2048 * len(there))
    assert listing("tokens") == uninterrupted
    assert [path.name for path in place.iterdir()] == ["tokens"]


def test_two_real_processes_make_the_same_bytes(place, many, palette, uninterrupted):
    both = [start(command(many, palette), RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    try:
        (told, errors), other = (process.communicate(timeout=120) for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert (errors, *other) == ("", "", "")
    assert json.loads(told)["count"] == 2 * MANY
    assert listing("tokens") == uninterrupted
    assert [path.name for path in place.iterdir()] == ["tokens"]
