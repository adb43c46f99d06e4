"""Scores of data sets: the right rows in the file, whatever interrupts, by one process or several; their pictures."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt import checkpoint, score_file, scoring
from imagegpt.array_file import read_arrays
from imagegpt.cli.main import main
from imagegpt.data.records import Record, Source
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.score_file import FORMATS, read_scores
from imagegpt.score_pictures import ScorePictures
from imagegpt.scoring import Scoring
from running import parts_of, start, wait_for_parts

COUNT, PART = 11, 4
CLASSES = ("ant", "bee", "cow")
each_format = pytest.mark.parametrize("suffix", FORMATS)


class StoppedError(Exception):
    """What ends a run in a test."""


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)


def save_folder(folder: Path, *spoilt: int) -> Path:
    for number in range(COUNT):
        path = folder / CLASSES[number * len(CLASSES) // COUNT] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
        if number in spoilt:
            path.write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def model(tiny_folder) -> ImageGPT:
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")


@pytest.fixture(scope="module")
def expected(model):
    return model.score([picture(number) for number in range(COUNT)])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "PART", PART)
    monkeypatch.setattr(scoring, "BATCH", 3)
    return tmp_path


def run(model, data, out="a.csv", rank=0, processes=1, progress=None, watch=None, **options):
    source = data if isinstance(data, Source) else open_source(data)
    return Scoring(model, source, **options).run(Path(out), rank, processes, progress, watch)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is in the file.


@each_format
def test_the_file_holds_the_score_of_every_picture(place, model, pictures, expected, suffix):
    told = []
    assert run(model, pictures, f"a{suffix}", progress=lambda *at: told.append(at)) == COUNT
    numbers, values, facts = read_scores(f"a{suffix}")
    assert numbers.tolist() == list(range(COUNT))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected.log_likelihood, rtol=1e-6)
    wanted = {
        **{"model": checkpoint.fingerprint(model.path), "palette": model.codec.fingerprint, "method": "likelihood"},
        **{"codec": "palette of 16", "precision": "fp32", "backend": "onnx", "records": COUNT, "passes": 1},
        **{"data": open_source(pictures).fingerprint(), "classes": list(CLASSES), "source": str(pictures)},
    }
    assert {name: facts.get(name) for name in wanted} == wanted
    assert told[0] == (0, COUNT)
    assert told[-1] == (COUNT, COUNT)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    beside = {"a.csv.json"} if suffix == ".csv" else set()
    assert set(listing(place)) == {f"a{suffix}"} | beside


def test_the_table(model, pictures, expected):
    run(model, pictures)
    with open("a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(COUNT))
    assert rows[3]["picture"].endswith("ant/003.png")
    assert [int(row["label"]) for row in rows] == [number * 3 // COUNT for number in range(COUNT)]
    columns = {"nats_per_token": expected.nats_per_token, "bits_per_dim": expected.bits_per_dim}
    columns |= {"log_likelihood": expected.log_likelihood, "entropy": expected.mean_entropy}
    for name, values in columns.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6)
    assert {row["skipped"] for row in rows} == {""}


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_maps_and_labels_are_kept_on_request(model, pictures, expected, suffix):
    run(model, pictures, f"a{suffix}", maps=True)
    arrays, facts = read_arrays(Path(f"a{suffix}"), "scores")
    np.testing.assert_array_equal(arrays["surprise_map"], expected.surprise.astype(np.float16))
    np.testing.assert_array_equal(arrays["entropy_map"], expected.entropy.astype(np.float16))
    np.testing.assert_allclose(arrays["entropy"], expected.mean_entropy, rtol=1e-6)
    assert arrays["labels"].tolist() == [number * 3 // COUNT for number in range(COUNT)]
    assert facts["maps"] is True


def test_a_table_has_no_room_for_maps(place, model, pictures):
    with pytest.raises(InputError, match="no room for maps"):
        run(model, pictures, maps=True)
    assert listing(place) == {}


@each_format
def test_unreadable_pictures_are_left_out_and_listed(model, expected, suffix):
    data = save_folder(Path("data"), 0, 4, 5, 6, 7)  # the second part has none left
    run(model, data, f"a{suffix}", on_error="skip")
    numbers, values, _ = read_scores(f"a{suffix}")
    kept = [1, 2, 3, 8, 9, 10]
    assert numbers.tolist() == kept
    np.testing.assert_allclose(values, expected.log_likelihood[kept], rtol=1e-6)
    if suffix == ".csv":
        with open("a.csv", encoding="utf-8", newline="") as file:
            skipped = [row["skipped"] for row in csv.DictReader(file) if row["skipped"]]
    else:
        skipped = read_arrays(Path(f"a{suffix}"), "scores")[1]["skipped"]
    assert [sentence.split(" is not")[0] for sentence in skipped] == [
        str(data / CLASSES[number * 3 // COUNT] / f"{number:03}.png") for number in (0, 4, 5, 6, 7)
    ]


def test_the_first_unreadable_picture_ends_a_run_that_is_not_told_to_skip(model):
    with pytest.raises(InputError, match=r"005\.png"):
        run(model, save_folder(Path("data"), 5))
    assert not Path("a.csv").exists()


def test_names_with_commas_and_quotes_come_back(model):
    Path("data").mkdir()
    name = 'a, "b".png'
    Image.fromarray(picture(0)).save(Path("data", name))
    run(model, "data")
    with open("a.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["picture"].endswith(name)


# Interrupted runs, and several processes.


@each_format
def test_a_run_continues_where_it_was_stopped(model, pictures, monkeypatch, suffix):
    run(model, pictures, f"whole{suffix}")
    made, score_ids = [], ImageGPT.score_ids

    def fail(self, ids_BT, **options):
        if len(made) == 3:
            raise StoppedError
        made.append(len(ids_BT))
        return score_ids(self, ids_BT, **options)

    monkeypatch.setattr(ImageGPT, "score_ids", fail)
    with pytest.raises(StoppedError):
        run(model, pictures, f"a{suffix}")
    assert not Path(f"a{suffix}").exists()
    monkeypatch.setattr(ImageGPT, "score_ids", score_ids)
    assert run(model, pictures, f"a{suffix}") == COUNT - PART
    assert Path(f"a{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()


@each_format
def test_two_processes_share_the_parts(model, pictures, suffix):
    run(model, pictures, f"whole{suffix}")
    source = open_source(pictures)
    # The second makes its part and leaves; the first makes the rest and joins.
    assert Scoring(model, source).run(Path(f"a{suffix}"), 1, 2) == PART
    assert Scoring(model, source).run(Path(f"a{suffix}"), 0, 2) == COUNT - PART
    assert Path(f"a{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    assert Scoring(model, source).run(Path(f"a{suffix}"), 1, 2) == 0  # joined by now


def test_parts_of_other_settings_are_not_mixed_in(model, pictures, monkeypatch):
    monkeypatch.setattr(score_file, "join_parts", lambda *_: (_ for _ in ()).throw(StoppedError))
    with pytest.raises(StoppedError):
        run(model, pictures, "a.npz")
    with pytest.raises(InputError, match=r"scores with maps False, not True"):
        run(model, pictures, "a.npz", maps=True)


@pytest.mark.parametrize("named", [None, "onnx"])
def test_a_run_goes_on_with_the_backend_that_it_began_with(tiny_folder, pictures, monkeypatch, named):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend=named)
    with monkeypatch.context() as patch:
        patch.setattr(ImageGPT, "score_backend", lambda self, pictures: "onnx")
        patch.setattr(score_file, "join_parts", lambda *_: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            run(model, pictures)
    monkeypatch.setattr(ImageGPT, "score_backend", lambda self, pictures: "torch")
    run(model, pictures)
    assert read_scores("a.csv")[2]["backend"] == "onnx"


def test_kill_9_costs_a_part_at_most(tiny_folder):
    ids = np.random.default_rng(0).integers(0, 16, (2000, 64)).astype(np.uint16)
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend="onnx")
    Path("ids").mkdir()
    meta = {"codec": model.codec.fingerprint, "grid": [8, 8], "count": len(ids), "classes": []}
    Path("ids/meta.json").write_text(json.dumps(meta))
    np.save("ids/ids.npy", ids)
    command = ["score", "ids", "--model", str(tiny_folder), "--device", "cpu", "--backend", "onnx", "--out", "a.npz"]
    process = start(command, most=5)
    wait_for_parts(process, 2)
    process.kill()
    process.communicate()
    assert 2 <= len(parts_of("a.npz")) < 8  # of 256 each
    assert main([*command, "--json"]) == 0
    np.testing.assert_allclose(read_scores("a.npz")[1], model.score_ids(ids).log_likelihood, rtol=1e-6)


# The stream.


def test_the_stream_tells_every_batch(model, pictures, expected):
    told = []
    batches = list(Scoring(model, open_source(pictures)).stream(progress=lambda *at: told.append(at)))
    assert [len(batch) for batch, _ in batches] == [3, 3, 3, 2]
    found = np.concatenate([scores.log_likelihood for _, scores in batches])
    np.testing.assert_allclose(found, expected.log_likelihood, rtol=1e-6)
    assert told == [(done, COUNT) for done in range(1, COUNT + 1)]


def test_a_part_of_the_stream(model, pictures, expected):
    batches = list(Scoring(model, open_source(pictures)).stream(5, 9))
    assert np.concatenate([batch.numbers for batch, _ in batches]).tolist() == [5, 6, 7, 8]
    found = np.concatenate([scores.log_likelihood for _, scores in batches])
    np.testing.assert_allclose(found, expected.log_likelihood[5:9], rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_pictures(model, monkeypatch):
    """Pictures without end: after the first batches as much is in memory as after many."""
    monkeypatch.setattr(scoring, "BATCH", 64)

    def most(count):
        def records(start, stop):
            return (Record(f"{number}", picture(0)) for number in range(start, stop))

        run = Scoring(model, Source("here", count, records))
        tracemalloc.start()
        for _ in run.stream(backend="onnx"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    most(64)
    assert most(1280) < 1.2 * most(256)


# What can't be done.


@each_format
def test_a_file_that_is_there_is_not_overwritten(place, model, pictures, suffix):
    Path(f"a{suffix}").write_bytes(b"old")
    with pytest.raises(InputError, match="is there already"):
        run(model, pictures, f"a{suffix}")
    assert listing(place) == {f"a{suffix}": b"old"}


@pytest.mark.parametrize("out", ["a.txt", "a", "gone/a.csv"])
def test_files_that_can_not_be_written(place, model, pictures, out):
    with pytest.raises(InputError, match=out):
        run(model, pictures, out)
    assert listing(place) == {}


@pytest.mark.parametrize(
    ("options", "words"), [({"passes": 3}, "bidirectional"), ({"batch_size": 0}, "batch_size must be at least 1")]
)
def test_settings_that_make_no_sense(model, pictures, options, words):
    with pytest.raises(InputError, match=words):
        run(model, pictures, **options)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"", b"number\n1\n", b"\x00" * 100])
def test_files_that_hold_no_scores(suffix, content):
    path = Path(f"a{suffix}")
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"a{suffix}"):
        read_scores(path)
    Path("a.csv.json").write_text("{}")
    with pytest.raises(InputError, match=f"a{suffix}"):
        read_scores(path)


# Pictures.


def test_a_picture_of_each_and_two_sheets(model, pictures, expected):
    source = open_source(pictures)
    scoring_run = Scoring(model, source)
    drawn = ScorePictures(Path("maps"), scoring_run)
    run(model, pictures, watch=drawn.draw)
    numbers, values, _ = read_scores("a.csv")
    assert drawn.draw_sheets(numbers, values) == [str(Path("maps/likeliest.png")), str(Path("maps/unlikeliest.png"))]
    names = sorted(path.name for path in Path("maps").iterdir())
    assert names == [f"{number:06}-{number:03}.png" for number in range(COUNT)] + ["likeliest.png", "unlikeliest.png"]
    sheets = {path.name: Image.open(path).convert("RGB") for path in Path("maps").iterdir()}
    # On the sheets the pictures stand in the order of their scores.
    order = np.argsort(-expected.log_likelihood)
    for name, wanted in (("likeliest.png", order), ("unlikeliest.png", order[::-1])):
        for place, number in enumerate(wanted):
            row, column = divmod(place, 8)
            corner = (8 + column * 136, 8 + 22 + row * 158)
            cell = (
                sheets[name].crop((*corner, corner[0] + 128, corner[1] + 128)).resize((8, 8), Image.Resampling.NEAREST)
            )
            np.testing.assert_array_equal(np.array(cell), np.array(model.decode(model.encode(picture(number)))[0]))


def test_the_map_of_a_picture_shows_its_surprise(model, expected):
    from imagegpt.heatmap import draw_heatmap

    Path("data").mkdir()
    Image.fromarray(picture(0)).save("data/a b.png")
    scoring_run = Scoring(model, open_source("data"))
    for batch, scores in scoring_run.stream():
        ScorePictures(Path("maps"), scoring_run).draw(batch, scores)
    sheet = Image.open("maps/000000-a-b.png")
    for column, values in enumerate((expected.surprise[0], expected.entropy[0]), 1):
        left = 8 + column * 136
        wanted = draw_heatmap(values.reshape(8, 8), np.log(16))
        np.testing.assert_array_equal(np.array(sheet.crop((left, 30, left + 128, 158))), np.array(wanted))
