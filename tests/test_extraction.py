"""Features of data sets: the right rows in the file, whatever interrupts, by one process or several."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imagegpt import backbone, checkpoint, extraction
from imagegpt.array_file import FORMATS
from imagegpt.cli.main import main
from imagegpt.data.records import Record, Source
from imagegpt.data.sources import open_source
from imagegpt.engine import backends, torch_features
from imagegpt.errors import InputError
from imagegpt.extraction import Extraction
from imagegpt.feature_file import read_features
from imagegpt.pipeline import ImageGPT
from running import start, wait_for_parts

CLASSES = ("ant", "bee", "cow")
COUNT, PART = 11, 4
each_format = pytest.mark.parametrize("suffix", FORMATS)


class StoppedError(Exception):
    """What ends a run in a test."""


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)


def save_folder(folder: Path, count: int = COUNT) -> Path:
    """Pictures in folders of their classes; the order is that of the folders."""
    for number in range(count):
        path = folder / CLASSES[number * len(CLASSES) // count] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extraction, "PART", PART)
    return tmp_path


@pytest.fixture
def told():
    return []


def extract(model, data, out="a.safetensors", layers=(1,), rank=0, processes=1, progress=None, **options):
    source = data if hasattr(data, "records") else open_source(data)
    return Extraction(model, source, list(layers), **options).run(Path(out), rank, processes, progress)


def expected(model, layers=(1,), pool="mean", numbers=range(COUNT)):
    """The features of these pictures, one call each, one after another."""
    return {layer: np.concatenate([model.features(picture(n), layer, pool) for n in numbers]) for layer in layers}


def labels(numbers=range(COUNT), count=COUNT):
    return [number * len(CLASSES) // count for number in numbers]


def check(found, model, layers=(1,), pool="mean", numbers=range(COUNT), atol=1e-6):
    for layer, values in expected(model, layers, pool, numbers).items():
        assert found.layers[layer].shape == values.shape
        np.testing.assert_allclose(found.layers[layer], values, atol=atol, rtol=0)
    assert set(found.layers) == set(layers)
    assert found.numbers.tolist() == list(numbers)
    assert found.labels.tolist() == labels(numbers)


# What is in the file.


@pytest.mark.parametrize("pool", ["mean", "none"])
@each_format
def test_the_file_holds_the_features_of_every_picture(place, model, pictures, pool, suffix, told):
    run = extract(model, pictures, f"a{suffix}", (2, 0, 1), progress=lambda *at: told.append(at), pool=pool)
    assert run == COUNT
    found = read_features(f"a{suffix}")
    check(found, model, (0, 1, 2), pool)
    assert all(values.dtype == np.float32 for values in found.layers.values())
    assert found.labels.dtype == np.int64
    assert found.classes == CLASSES
    assert told[0] == (0, COUNT)
    assert told[-1] == (COUNT, COUNT)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert [path.name for path in place.iterdir()] == [f"a{suffix}"]


@each_format
def test_half_the_size(model, pictures, suffix):
    extract(model, pictures, f"a{suffix}", (1, 2), dtype="float16")
    found = read_features(f"a{suffix}")
    assert all(values.dtype == np.float16 for values in found.layers.values())
    for layer, values in expected(model, (1, 2)).items():
        np.testing.assert_array_equal(found.layers[layer], values.astype(np.float16))


def test_both_backends_write_the_same(tiny_folder, model, pictures):
    extract(ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="torch"), pictures, layers=(0, 1, 2))
    found = read_features("a.safetensors")
    check(found, model, (0, 1, 2), atol=1e-5)
    assert found.facts["backend"] == "torch"


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_other_precisions(tiny_folder, model, pictures, precision):
    extract(ImageGPT.from_pretrained(tiny_folder, device="cpu", precision=precision), pictures)
    found = read_features("a.safetensors")
    exact = expected(model)[1]
    assert 1e-5 < np.linalg.norm(found.layers[1] - exact) / np.linalg.norm(exact) < 0.1
    assert found.facts["precision"] == precision


def test_the_file_says_what_made_it(model, pictures):
    source = open_source(pictures)
    extract(model, source, layers=(2, 1), dtype="float16", on_error="skip")
    facts = read_features("a.safetensors").facts
    wanted = {
        **{"model": checkpoint.fingerprint(model.path), "palette": model.codec.fingerprint, "layers": [2, 1]},
        **{"pool": "mean", "precision": "fp32", "backend": "onnx", "dtype": "float16", "records": COUNT},
        **{"data": source.fingerprint(), "classes": list(CLASSES), "source": str(pictures), "skipped": []},
    }
    assert {name: facts.get(name) for name in wanted} == wanted


def test_the_version_is_part_of_what_made_it(model, pictures):
    from imagegpt import __version__

    extract(model, pictures)
    assert read_features("a.safetensors").facts["imagegpt"] == __version__


def test_layers_are_in_the_order_in_which_they_were_asked_for(model, pictures):
    extract(model, pictures, layers=(2, 0, 1))
    assert list(read_features("a.safetensors").layers) == [2, 0, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(model, pictures, batch_size):
    extract(model, pictures, batch_size=batch_size)
    check(read_features("a.safetensors"), model)


@pytest.mark.parametrize("limit", [1, PART, PART + 1, COUNT, 1000])
def test_the_first_records_alone(model, pictures, limit):
    source = open_source(pictures, limit=limit)
    assert extract(model, source) == min(limit, COUNT)
    check(read_features("a.safetensors"), model, numbers=range(min(limit, COUNT)))


def test_data_without_labels(model):
    for number in range(5):
        Path("flat").mkdir(exist_ok=True)
        Image.fromarray(picture(number)).save(f"flat/{number}.png")
    extract(model, "flat")
    found = read_features("a.safetensors")
    assert found.labels is None
    assert found.classes == ()
    np.testing.assert_allclose(found.layers[1], expected(model, numbers=range(5))[1], atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6),
        np.arange(6, dtype=np.uint8),
        np.arange(6) / 3,
        np.arange(6) % 2 == 0,
        np.arange(12).reshape(6, 2),
    ],
    ids=["int64", "uint8", "float64", "bool", "two"],
)
@each_format
def test_labels_of_any_kind(model, suffix, values):
    np.savez("data.npz", images=np.stack([picture(n) for n in range(6)]), labels=values)
    extract(model, "data.npz", f"a{suffix}")
    np.testing.assert_array_equal(read_features(f"a{suffix}").labels, values)


@pytest.mark.parametrize(
    "values",
    [[0, 1, 2, 3, 0.5, 1.5], [0.5, 1.5, 2.5, 3.5, 1, 2], [None, None, None, None, [1, 2], [3, 4]]],
    ids=["whole at first", "whole at last", "two, of pictures that can be read"],
)
@each_format
def test_labels_of_which_a_part_has_another_kind(model, suffix, values):
    """The first part has four records; of `None` the picture can't be read."""

    def records(start, stop):
        for number in range(start, stop):
            good = values[number] is not None
            yield Record(f"record {number}", picture(number) if good else b"none", values[number] if good else [0, 0])

    extract(model, Source("here", len(values), records, labelled=True), f"a{suffix}", on_error="skip")
    found = read_features(f"a{suffix}").labels
    assert found.tolist() == [value for value in values if value is not None]


def test_ids_give_the_features_of_their_pictures(model, pictures):
    """A tokenised folder: the same features without reading a picture."""
    files = sorted(pictures.rglob("*.png"))
    Path("ids").mkdir()
    meta = {"codec": model.codec.fingerprint, "grid": [8, 8], "count": COUNT, "classes": list(CLASSES)}
    Path("ids/meta.json").write_text(json.dumps(meta))
    np.save("ids/ids.npy", model.encode(files).astype(np.uint16))
    np.save("ids/labels.npy", np.array(labels()))
    extract(model, "ids")
    check(read_features("a.safetensors"), model)


# Pictures that can't be read.


def spoil(folder: Path, *numbers: int) -> Path:
    save_folder(folder)
    files = sorted(folder.rglob("*.png"))
    for number in numbers:
        files[number].write_bytes(b"no picture")
    return folder


@each_format
def test_unreadable_pictures_are_left_out_and_listed(model, suffix):
    data = spoil(Path("data"), 0, 5, 6)
    extract(model, data, f"a{suffix}", on_error="skip")
    found = read_features(f"a{suffix}")
    numbers = [n for n in range(COUNT) if n not in (0, 5, 6)]
    check(found, model, numbers=numbers)
    skipped = found.facts["skipped"]
    assert len(skipped) == 3
    for sentence, name in zip(skipped, ("ant/000.png", "bee/005.png", "bee/006.png"), strict=True):
        assert sentence.startswith(f"data/{name}")


@pytest.mark.parametrize("numbers", [range(4), range(4, 8), range(8, 11)], ids=["first", "middle", "last"])
@pytest.mark.parametrize("pool", ["mean", "none"])
@each_format
def test_a_part_without_any_readable_picture(model, suffix, numbers, pool):
    extract(model, spoil(Path("data"), *numbers), f"a{suffix}", on_error="skip", pool=pool)
    found = read_features(f"a{suffix}")
    check(found, model, pool=pool, numbers=[n for n in range(COUNT) if n not in numbers])
    assert found.labels.dtype == np.int64
    assert len(found.facts["skipped"]) == len(numbers)


def test_the_first_unreadable_picture_ends_a_run_that_is_not_told_to_skip(model):
    data = spoil(Path("data"), 5, 6)
    with pytest.raises(InputError, match=r"data/bee/005\.png"):
        extract(model, data)
    assert not Path("a.safetensors").exists()
    Image.fromarray(picture(5)).save(data / "bee/005.png")


# What can't be done.


def test_a_file_that_is_there_is_not_overwritten(place, model, pictures):
    Path("a.npz").write_bytes(b"old")
    with pytest.raises(InputError, match=r"a\.npz is there already"):
        extract(model, pictures, "a.npz")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"a.npz": b"old"}


@pytest.mark.parametrize("out", ["a.pt", "a", "gone/a.npz"])
def test_files_that_can_not_be_written(place, model, pictures, out):
    with pytest.raises(InputError, match=out):
        extract(model, pictures, out)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [({"pool": "max"}, "pool must be"), ({"batch_size": 0}, "batch_size must be at least 1, not 0")],
)
def test_settings_that_make_no_sense(place, model, pictures, options, words):
    with pytest.raises(InputError, match=words):
        extract(model, pictures, **options)
    assert list(place.iterdir()) == []


# Interrupted runs.


def parts(out: str = "a.safetensors") -> dict[str, int]:
    """Name -> time of its last change."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(f"{out}.parts").glob("part-*"))}


def stop_after(monkeypatch, calls: int) -> list[int]:
    """Have the network fail after so many parts; holds how many pictures each call had."""
    made, features_of = [], ImageGPT.features_of

    def fail(self, ids_BT, *args, **kwargs):
        if len(made) == calls:
            raise StoppedError
        made.append(len(ids_BT))
        return features_of(self, ids_BT, *args, **kwargs)

    monkeypatch.setattr(ImageGPT, "features_of", fail)
    return made


@each_format
def test_a_run_continues_where_it_was_stopped(place, model, pictures, monkeypatch, suffix):
    out = f"a{suffix}"
    extract(model, pictures, out, (2, 1))
    whole = Path(out).read_bytes()
    Path(out).unlink()
    with monkeypatch.context() as patch:
        assert stop_after(patch, 2) == []
        with pytest.raises(StoppedError):
            extract(model, pictures, out, (2, 1))
    before = parts(out)
    assert list(before) == ["part-000000000.safetensors", "part-000000004.safetensors"]
    assert not Path(out).exists()
    with monkeypatch.context() as patch:
        made = stop_after(patch, 99)
        assert extract(model, pictures, out, (2, 1)) == 3
        assert made == [3]
    assert Path(out).read_bytes() == whole
    assert [path.name for path in place.iterdir()] == [out]


@pytest.fixture
def stopped(place, model, pictures, monkeypatch) -> Path:
    """The folder of a run that was stopped after one part of three."""
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StoppedError):
            extract(model, pictures)
    return Path("a.safetensors.parts")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_of_other_settings_are_refused(stopped, tiny_folder, model, pictures):
    before = listing(stopped)
    refused = {
        "layers": {"layers": (2,)},
        "pool": {"pool": "none"},
        "dtype": {"dtype": "float16"},
        "on_error": {"on_error": "skip"},
        "(records|data)": {"data": open_source(pictures, limit=9)},
        "precision": {"model": ImageGPT.from_pretrained(tiny_folder, precision="int8")},
        "backend": {"model": ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="torch")},
    }
    for name, change in refused.items():
        with pytest.raises(InputError, match=rf"a\.safetensors\.parts holds features with {name} "):
            extract(**{"model": model, "data": pictures, **change})
    assert listing(stopped) == before


def test_parts_of_other_data_are_refused_and_of_the_same_elsewhere_are_not(stopped, model, pictures):
    save_folder(Path("data"))
    Image.fromarray(picture(99)).save("data/bee/005.png")
    with pytest.raises(InputError, match="holds features with data "):
        extract(model, "data")
    Image.fromarray(picture(5)).save("data/bee/005.png")
    assert extract(model, "data") == COUNT - PART
    check(read_features("a.safetensors"), model)


CHANGES = {
    "clusters": lambda config: {"clusters": config["clusters"][::-1]},
    "size": lambda config: {"size": {"height": 4, "width": 16}},
    "resample": lambda config: {"resample": 0},
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_of_another_palette_grid_or_way_onto_the_grid_are_refused(stopped, folder, pictures, change):
    """None of these is in the weights or in config.json, and all of them change features."""
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **CHANGES[change](config)}))
    other = ImageGPT.from_pretrained(folder, device="cpu", backend="onnx")
    assert np.abs(other.features(picture(0), 1) - expected(other, numbers=[1])[1]).max() > 1e-3
    with pytest.raises(InputError, match="holds features with"):
        extract(other, pictures)


def test_other_weights_are_refused(stopped, folder, pictures):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"] * 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds features with model "):
        extract(ImageGPT.from_pretrained(folder, device="cpu", backend="onnx"), pictures)


def test_a_part_that_is_damaged_is_named(stopped, model, pictures):
    path = stopped / "part-000000000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"part-000000000\.safetensors"):
        extract(model, pictures)
    assert not Path("a.safetensors").exists()
    path.unlink()
    extract(model, pictures)
    check(read_features("a.safetensors"), model)


def test_what_a_kill_left_half_written_does_no_harm(stopped, model, pictures):
    (stopped / ".part-000000004-0badf00d.safetensors").write_bytes(b"half")
    extract(model, pictures)
    check(read_features("a.safetensors"), model)
    assert not stopped.exists()


# Which backend.


@pytest.fixture
def modules(monkeypatch):
    """Of a process that has not imported torch yet, on a machine without a GPU."""
    found = {}
    monkeypatch.setattr(backends, "may_have_accelerator", lambda: False)
    monkeypatch.setattr(backends, "sys", SimpleNamespace(modules=found, platform=sys.platform))
    return found


def test_one_backend_makes_all_parts_even_if_torch_is_imported_meanwhile(modules, tiny_folder, pictures, monkeypatch):
    """As reading a data set of Hugging Face's may."""
    used = []
    open_onnx_features, torch_class = backbone.open_onnx_features, torch_features.TorchFeatures
    monkeypatch.setattr(backbone, "open_onnx_features", lambda *args: used.append("onnx") or open_onnx_features(*args))
    monkeypatch.setattr(torch_features, "TorchFeatures", lambda *args: used.append("torch") or torch_class(*args))
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    extract(model, pictures, progress=lambda done, _: modules.update(torch=object()) if done >= PART else None)
    assert modules
    assert used == [read_features("a.safetensors").facts["backend"]]


def test_a_run_continues_in_a_process_that_has_imported_torch(modules, tiny_folder, pictures, monkeypatch):
    """Nobody named a backend, so the same call continues the run, with the backend that began it."""
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StoppedError):
            extract(model, pictures)
    modules["torch"] = object()
    again = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    assert extract(again, pictures) == COUNT - PART
    assert read_features("a.safetensors").facts["backend"] == "onnx"
    check(read_features("a.safetensors"), again)


# Memory.


def test_a_part_of_unpooled_features_fits_into_memory(folder, monkeypatch):
    """256 pictures of 64 x 64 ids that are 512 wide would be 2 GiB a layer."""
    from imagegpt.codec.palette import PaletteCodec
    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    monkeypatch.undo()  # the size of parts that users get
    monkeypatch.chdir(folder)
    config = ImageGPTConfig(vocab_size=4, n_positions=64 * 64, n_embd=512, n_layer=1, n_head=1, n_inner=8)
    ImageGPTForCausalImageModeling(config).save_pretrained("wide")
    save_preprocessor(Path("wide"), PaletteCodec(np.eye(3)), Framing(64, 64))
    np.savez("data.npz", images=np.zeros((300, 2, 2, 3), np.uint8))
    asked = []

    def features_of(self, ids_BT, *_, **__):
        asked.append(len(ids_BT))
        raise StoppedError

    monkeypatch.setattr(ImageGPT, "features_of", features_of)
    for layers in ([1], [0, 1]):
        with pytest.raises(StoppedError):
            extract(ImageGPT.from_pretrained("wide", device="cpu"), "data.npz", f"{layers}.npz", layers, pool="none")
        assert asked[-1] * len(layers) * 64 * 64 * 512 * 4 <= 2**30
    with pytest.raises(StoppedError):
        extract(ImageGPT.from_pretrained("wide", device="cpu"), "data.npz", "pooled.npz", [0, 1])
    assert asked[-1] >= 64  # of pooled ones there is room for many


# Several processes, and the end of some.


def test_each_process_makes_its_share(model, pictures):
    assert extract(model, pictures, rank=1, processes=2) == PART
    assert list(parts()) == ["part-000000004.safetensors"]
    assert not Path("a.safetensors").exists()
    assert extract(model, pictures, rank=0, processes=2) == COUNT - PART
    check(read_features("a.safetensors"), model)
    assert extract(model, pictures, rank=1, processes=2) == 0  # it comes late, and is content
    with pytest.raises(InputError, match="is there already"):
        extract(model, pictures, layers=(2,), rank=1, processes=2)


MANY = 256 * 20


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("many") / "data.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (MANY, 8, 8, 3), np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, 10, MANY))
    return path


def command(many: Path, tiny_folder: Path, out: str) -> list[str]:
    return [
        *["features", str(many), "--model", str(tiny_folder), "--device", "cpu", "--backend", "onnx"],
        *["--layer", "1,2", "--out", out, "--json"],
    ]


@pytest.fixture(scope="module")
def uninterrupted(many, tiny_folder, tmp_path_factory) -> bytes:
    """What a run writes that nothing disturbs."""
    folder, here = tmp_path_factory.mktemp("whole"), os.getcwd()
    os.chdir(folder)
    try:
        assert main(command(many, tiny_folder, "a.safetensors")) == 0
        return Path("a.safetensors").read_bytes()
    finally:
        os.chdir(here)


def test_killed_twice_the_same_command_makes_the_same_bytes(place, many, tiny_folder, uninterrupted):
    arguments, out = command(many, tiny_folder, "a.safetensors"), "a.safetensors"
    there: dict[str, int] = {}
    for _ in range(2):
        process = start(arguments, most=len(there) + 5)
        try:
            wait_for_parts(process, len(there) + 3, out)
        finally:
            process.kill()  # no signal that could be caught
            process.communicate()
        assert not Path(out).exists()
        found = parts(out)
        assert found.items() >= there.items()  # what was finished has not been written again
        assert len(there) + 3 <= len(found) < 17
        there = found
    process = start(arguments)
    written, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    record = json.loads(written)
    assert (record["pictures"], record["made"]) == (MANY, MANY - 256 * len(there))
    assert Path(out).read_bytes() == uninterrupted
    assert [path.name for path in place.iterdir()] == [out]


def test_two_real_processes_make_the_same_bytes(place, many, tiny_folder, uninterrupted):
    arguments = command(many, tiny_folder, "a.safetensors")
    both = [start(arguments, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    try:
        (told, errors), other = (process.communicate(timeout=120) for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert (errors, *other) == ("", "", "")
    assert json.loads(told)["made"] == MANY / 2
    assert Path("a.safetensors").read_bytes() == uninterrupted
    assert [path.name for path in place.iterdir()] == ["a.safetensors"]
