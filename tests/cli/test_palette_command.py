"""imagegpt palette fit and show: what they write, what they print, and what they refuse."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.cli.main import main
from imagegpt.codec.fit import cluster_colors, palette_error
from imagegpt.codec.palette import PaletteCodec

PICTURES = [np.random.default_rng(seed).integers(0, 256, (12, 10 + seed, 3), dtype=np.uint8) for seed in range(3)]
FLAT = np.concatenate([picture.reshape(-1, 3) for picture in PICTURES])


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(f"pictures/{number}.png")
    return tmp_path


@pytest.fixture
def told(capsys):
    """Run a command that works; what it prints as JSON."""

    def run(*arguments: str) -> dict:
        assert main(["palette", *arguments, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return json.loads(captured.out)

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that is refused; its one line."""

    def run(*arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        assert main(["palette", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert sorted(Path().rglob("*")) == before
        return captured.err

    return run


# --- fit


def test_fit_writes_the_palette_of_all_pixels_and_a_picture_of_it(place, told):
    record = told("fit", "pictures", "--colors", "9")
    clusters = np.load("palette.npy")
    assert (clusters.shape, clusters.dtype) == ((9, 3), np.float32)
    np.testing.assert_array_equal(clusters, cluster_colors(FLAT, 9, seed=0))
    codec = PaletteCodec.load("palette.npy")
    with Image.open("palette.png") as image:
        assert image.format == "PNG"
        drawn = np.asarray(image.convert("RGB"))[8::16, 8::16].reshape(-1, 3)
    np.testing.assert_array_equal(drawn, codec.decode(np.arange(9)))
    assert record["written"] == ["palette.npy", "palette.png"]
    assert sorted(path.name for path in place.iterdir()) == ["palette.npy", "palette.png", "pictures"]


def test_fit_tells_what_it_did(place, told):
    record = told("fit", "pictures", "--colors", "9", "--seed", "5", "--out", "mine.npy")
    codec = PaletteCodec.load("mine.npy")
    error = palette_error(codec, [FLAT])
    assert record.pop("seconds") > 0
    assert record == {
        "written": ["mine.npy", "mine.png"],
        "colors": 9,
        "fingerprint": codec.fingerprint,
        **{"rmse": pytest.approx(error["rmse"]), "psnr": pytest.approx(error["psnr"]), "pixels": len(FLAT)},
        **{"on": "sample", "data": "pictures", "sampled": len(FLAT), "seed": 5, "skipped": []},
    }


def test_the_same_seed_writes_the_same_bytes_and_another_others(place, told):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        told("fit", "pictures", "--colors", "12", "--seed", seed, "--pixels", "200", "--out", f"{name}.npy")
    read = {name: Path(f"{name}.npy").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_fit_takes_no_more_pixels_than_it_is_told_to(place, told):
    record = told("fit", "pictures", "--colors", "4", "--pixels", "50")
    assert (record["sampled"], record["pixels"]) == (50, 50)


def test_the_error_is_that_on_the_validation_pictures(place, told):
    Image.fromarray(PICTURES[0] // 2).save("other.png")
    record = told("fit", "pictures", "--colors", "6", "--validation", "other.png")
    expected = palette_error(PaletteCodec.load("palette.npy"), [PICTURES[0] // 2])
    assert record["rmse"] == pytest.approx(expected["rmse"])
    assert (record["pixels"], record["on"]) == (120, "other.png")


def test_exactly_as_many_colours_as_there_are_lose_nothing_and_the_record_is_json(place, told, capsys):
    Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).save("two.png")
    assert main(["palette", "fit", "two.png", "--colors", "2", "--json"]) == 0

    def strict(name):
        raise AssertionError(f"{name} is no JSON")

    record = json.loads(capsys.readouterr().out, parse_constant=strict)
    assert record["rmse"] == 0
    assert record["psnr"] is None  # infinite, which JSON can't say
    np.testing.assert_allclose(np.load("palette.npy"), [[-1] * 3, [1] * 3])


def test_a_table_tells_the_same_to_people(place, capsys):
    assert main(["palette", "fit", "pictures", "--colors", "4"]) == 0
    printed = capsys.readouterr().out
    error = palette_error(PaletteCodec.load("palette.npy"), [FLAT])["rmse"]
    for words in ("palette.npy, palette.png", f"{error:.3f}", str(len(FLAT)), "sample"):
        assert words in printed


def test_a_broken_picture_stops_the_fit_or_is_skipped_and_named(place, told, refused):
    Path("pictures/1.png").write_bytes(Path("pictures/1.png").read_bytes()[:90])
    assert "pictures/1.png: the picture is truncated or damaged" in refused("fit", "pictures", "--colors", "4")
    record = told("fit", "pictures", "--colors", "4", "--on-error", "skip")
    (reason,) = record["skipped"]
    assert reason.startswith("pictures/1.png: the picture is truncated or damaged")
    assert record["sampled"] == PICTURES[0].size // 3 + PICTURES[2].size // 3


def test_broken_pictures_alone_are_refused(place, refused):
    for path in Path("pictures").iterdir():
        path.write_bytes(b"text")
    told = refused("fit", "pictures", "--on-error", "skip")
    assert told.startswith(
        "error: pictures holds no picture that can be read; the first: pictures/0.png is not a picture"
    )


def test_broken_validation_pictures_alone_are_refused(place, refused):
    Path("shown").mkdir()
    Path("shown/0.png").write_bytes(b"text")
    told = refused("fit", "pictures", "--colors", "4", "--on-error", "skip", "--validation", "shown")
    assert told.startswith("error: shown holds no picture that can be read; the first: shown/0.png is not a picture")


def test_fit_reads_parquet(place, told):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = []
    for pixels in PICTURES:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    parquet.write_table(arrow.table({"image": cells}), "train-0.parquet")
    told("fit", ".:train", "--colors", "5", "--out", "a.npy")
    told("fit", "pictures", "--colors", "5", "--out", "b.npy")
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone",), "gone: there is no such file or folder"),
        (("pictures", "--out", "palette.png"), "ends in .npy"),
        (("pictures", "--out", "gone/palette.npy"), "can't be written"),
        (("pictures", "--colors", "100000"), "100000 colours can't be fitted to"),
        (("pictures", "--colors", "0"), "0 colours can't be fitted"),
        (("pictures", "--colors", "4.5"), "no whole number"),
        (("pictures", "--pixels", "0"), "at least one pixel"),
        (("pictures", "--seed", "-1"), "--seed must be 0 to 4294967295, not -1"),
        (("pictures", "--seed", "4294967296"), "not 4294967296"),
        (("pictures", "--validation", "gone", "--colors", "4"), "gone: there is no such file or folder"),
        (("pictures", "--on-error", "ignore"), "ignore"),
        ((), "data"),
    ],
)
def test_what_can_not_be_fitted_is_one_sentence_and_nothing_is_written(place, refused, arguments, words):
    assert words in refused("fit", *arguments).lower()


def test_without_an_extra_the_sentence_says_how_to_install_it(place, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    Path("data.parquet").write_bytes(b"PAR1")
    told = refused("fit", "pictures", "--colors", "4")
    assert told == 'error: Fitting a palette needs scikit-learn: pip install "imagegpt[probe]".\n'
    told = refused("fit", "data.parquet", "--colors", "4")
    assert told == 'error: Reading parquet files needs pyarrow: pip install "imagegpt[data]".\n'


# --- show


def test_show_tells_a_palettes_numbers(place, told):
    rgb = np.array([[10, 20, 30], [200, 210, 220], [0, 0, 1], [10, 20, 30]])
    np.save("kmeans_centers.npy", rgb / 127.5 - 1)  # OpenAI's file is in float64 or float32, and of this name
    assert told("show", "kmeans_centers.npy") == {
        **{"codec": "palette of 4", "colors": 4},
        **{"fingerprint": PaletteCodec(rgb / 127.5 - 1).fingerprint, "distinct as uint8": 3},
        **{"darkest": [0, 0, 1], "lightest": [200, 210, 220]},
    }


def test_show_draws_the_palette(place, told):
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (10, 3)))
    codec.save("mine.npy")
    assert told("show", "mine.npy", "--out", "drawn.png")["written"] == ["drawn.png"]
    drawn = np.asarray(Image.open("drawn.png").convert("RGB"))
    np.testing.assert_array_equal(drawn[8::16, 8::16].reshape(-1, 3)[:10], codec.decode(np.arange(10)))


def test_show_reads_what_fit_has_written_and_model_folders_and_the_model_that_comes_along(place, told, tiny_folder):
    fitted = told("fit", "pictures", "--colors", "7")
    assert told("show", "palette.npy")["fingerprint"] == fitted["fingerprint"]
    assert told("show", str(tiny_folder))["colors"] == 16
    assert told("show")["colors"] == told("show", "nano")["colors"] == 512


def test_show_prints_a_table_for_people(place, capsys):
    PaletteCodec([[-1, -1, -1], [1, 1, 1]]).save(Path("mine.npy"))
    assert main(["palette", "show", "mine.npy"]) == 0
    printed = capsys.readouterr().out
    assert "darkest" in printed
    assert "255, 255, 255" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone.npy",), "gone.npy: there is no such file"),
        (("text.npy",), "text.npy holds no palette"),
        (("wide.npy",), "wide.npy holds no palette"),
        (("pictures",), "pictures"),
        (("nano", "--out", "drawn.jpg"), "ends in .png"),
        (("nano", "--out", "gone/drawn.png"), "can't be written"),
    ],
)
def test_what_can_not_be_shown_is_one_sentence(place, refused, arguments, words):
    Path("text.npy").write_bytes(b"text")
    np.save("wide.npy", np.zeros((4, 4)))
    assert words in refused("show", *arguments)


def test_the_command_line_shows_no_model(place):
    """A palette needs no torch, whose import takes seconds."""
    code = "import sys; from imagegpt.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    np.save("mine.npy", np.zeros((1, 3)))
    found = subprocess.run([sys.executable, "-c", code, "palette", "show", "mine.npy"], capture_output=True, text=True)
    assert found.stdout.endswith("False\n"), found.stderr
