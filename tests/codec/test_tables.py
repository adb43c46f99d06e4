from __future__ import annotations

import threading

import numpy as np
import pytest

from imagegpt import files
from imagegpt.codec import tables
from imagegpt.codec.nearest import LEVELS, build_table, nearest
from imagegpt.codec.palette import PaletteCodec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache of its own, in memory and on disk."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "cache"))
    tables.forget()
    yield tmp_path / "cache"
    tables.forget()


@pytest.fixture
def builds(monkeypatch):
    """Counts how often a table is built."""
    calls = []

    def build(clusters):
        calls.append(len(clusters))
        return build_table(clusters)

    monkeypatch.setattr(tables, "build_table", build)
    return calls


def random_codec(colors=40, seed=0):
    return PaletteCodec(np.random.default_rng(seed).uniform(-1, 1, (colors, 3)))


def random_pixels(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)


def indices(pixels):
    red, green, blue = pixels.astype(np.int64).T
    return red * 65536 + green * 256 + blue


@pytest.mark.parametrize(
    "clusters",
    [
        np.random.default_rng(0).uniform(-1, 1, (512, 3)),
        np.random.default_rng(1).uniform(-3, 3, (64, 3)),  # most colours lie outside of the cube
        np.array([[0, 0, 0]]),
        np.array([[0.1, 0.2, 0.3]] * 3),  # equal colours: the lowest id
        LEVELS[np.random.default_rng(2).integers(0, 256, (300, 3))],  # many exact ties
        np.stack(np.meshgrid(*[LEVELS[7::16]] * 3), -1).reshape(-1, 3)[:2000],  # on the borders of cells
    ],
    ids=["random", "wide", "one", "equal", "levels", "grid"],
)
def test_the_table_has_the_ids_of_all_distances(clusters):
    clusters = clusters.astype(np.float32)
    pixels = np.concatenate([random_pixels(30_000), np.array([[0, 0, 0], [255, 255, 255]], np.uint8)])
    table = build_table(clusters)
    assert table.shape == (1 << 24,)
    np.testing.assert_array_equal(table[indices(pixels)], nearest(pixels, clusters))


def test_more_than_65536_colours_get_larger_ids():
    colors = np.random.default_rng(0).uniform(-1, 1, (65537, 3)).astype(np.float32)
    colors[-1] = 5  # nearest to nothing
    colors[0] = colors[-2]
    pixels = random_pixels(50)
    assert nearest(pixels, colors).max() < 65537
    assert tables._dtype(65537) == np.uint32
    assert tables._dtype(65536) == np.uint16


@pytest.mark.usefixtures("folder")
def test_few_pixels_build_nothing_and_many_build_once(builds):
    codec, pixels = random_codec(), random_pixels(tables.TO_BUILD)
    direct = nearest(pixels, codec.clusters)
    codec.encode(pixels[: tables.AT_HAND])
    assert builds == []
    np.testing.assert_array_equal(codec.encode(pixels), direct)
    assert builds == [40]
    np.testing.assert_array_equal(PaletteCodec(codec.clusters).encode(pixels[:5]), direct[:5])
    assert builds == [40]


@pytest.mark.usefixtures("folder")
def test_many_small_calls_come_to_a_table_too(builds, monkeypatch):
    monkeypatch.setattr(tables, "AT_HAND", 500)
    monkeypatch.setattr(tables, "TO_BUILD", 1000)
    codec = random_codec()
    for _ in range(9):
        codec.encode(random_pixels(100))
    assert builds == []
    codec.encode(random_pixels(100))
    assert builds == [40]


def test_another_process_finds_the_table_on_disk(folder, builds):
    codec = random_codec()
    built = codec.table
    assert [path.name for path in folder.iterdir()] == [f"nearest-{codec.fingerprint}.bin"]
    tables.forget()  # as in a new process
    codec.encode(random_pixels(tables.AT_HAND))
    np.testing.assert_array_equal(codec.table, built)
    assert builds == [40]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_built_again(folder, builds, damage):
    codec = random_codec()
    built = codec.table
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:1000], "flipped": content, "empty": b""}[damage])
    tables.forget()
    np.testing.assert_array_equal(codec.table, built)
    assert builds == [40, 40]
    tables.forget()
    assert codec.table is not None
    assert builds == [40, 40]  # the file was mended


def test_off_writes_nothing(folder, monkeypatch, builds):
    monkeypatch.setenv(files.VARIABLE, "off")
    codec = random_codec()
    codec.encode(random_pixels(tables.TO_BUILD))
    assert builds == [40]
    assert not folder.exists()
    assert files.cache_folder() is None


def test_the_cache_lies_where_the_platform_wants_it(monkeypatch):
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.delenv(files.VARIABLE, raising=False)
    assert files.cache_folder() == platformdirs.user_cache_path("imagegpt", appauthor=False)


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path, monkeypatch, builds):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "file" / "cache"))
    tables.forget()
    assert random_codec().table.shape == (1 << 24,)
    assert builds == [40]
    tables.forget()


@pytest.mark.usefixtures("folder")
def test_memory_and_disk_hold_only_the_latest(folder, monkeypatch):
    fast = np.zeros(1 << 24, np.uint16)
    monkeypatch.setattr(tables, "build_table", lambda clusters: fast.copy())
    monkeypatch.setattr(tables, "ON_DISK", 3)
    codecs = [random_codec(4, seed) for seed in range(tables.IN_MEMORY + 2)]
    for codec in codecs:
        assert codec.table is not None
    assert len(tables._tables) == tables.IN_MEMORY
    assert len(list(folder.iterdir())) == 3
    assert (folder / f"nearest-{codecs[-1].fingerprint}.bin").exists()


@pytest.mark.usefixtures("folder")
def test_threads_share_one_table(builds):
    codec, seen = random_codec(), []
    threads = [threading.Thread(target=lambda: seen.append(codec.table)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [40]
    assert all(table is seen[0] for table in seen)


@pytest.mark.usefixtures("folder")
def test_a_table_cannot_be_written_to():
    codec = random_codec()
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            codec.table[0] = 1
        tables.forget()  # then from disk
