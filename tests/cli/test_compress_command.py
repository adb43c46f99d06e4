"""imagegpt compress and imagegpt decompress."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressing import photographs
from imagegpt import ImageGPT
from imagegpt.cli.main import main
from imagegpt.compression.container import read_file
from making import tokenise
from running import parts_of, start, wait_for_parts

pytest.importorskip("constriction")


@pytest.fixture
def command(capsys, tmp_path, monkeypatch, tiny_folder):
    """Runs a verb in an empty folder; its exit code, what it printed (JSON, read, if asked for), and its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny_folder):
        code = main([*map(str, arguments), *(() if model is None else ("--model", str(model)))])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments and not code else out, " ".join(err.split())

    return run


@pytest.fixture
def data(tmp_path):
    """A folder of pictures."""
    for number, pixels in enumerate(photographs(5)):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def test_a_folder_there_and_back(command, data):
    code, made, err = command("compress", data, "--out", "a.igpt", "--lossless", "--batch-size", 2, "--json")
    assert (code, err, made["pictures"], made["made"], made["lossless"]) == (0, "", 5, 5, True)
    assert made["bytes"] == Path("a.igpt").stat().st_size
    assert made["model_bits_per_picture"] == pytest.approx(made["id_bits_per_picture"], abs=40)
    code, found, err = command("decompress", "a.igpt", "--out", "back", "--json")
    names = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
    assert (code, err, found["files"], found["lossless"]) == (0, "", names, True)
    for name in names:
        np.testing.assert_array_equal(np.asarray(Image.open(f"back/{name}")), np.asarray(Image.open(data / name)))
    assert sorted(path.name for path in Path().iterdir()) == ["a.igpt", "back", "data"]


def test_what_the_model_sees(command, data, tiny_folder):
    paths = sorted(data.rglob("*.png"))[:2]
    shutil.copy(paths[0], "0.jpg")
    code, out, _ = command("compress", *paths, "0.jpg", "--out", "a.igpt", "--precision", "int8", "--device", "cpu")
    assert code == 0 and "bits_per_picture" in out
    assert read_file("a.igpt").header.precision == "int8"
    Path("back").mkdir()
    code, out, _ = command("decompress", "a.igpt", "--out", "back")  # the file knows the precision
    assert code == 0 and "written" in out
    model = ImageGPT(tiny_folder)
    found = {path.name: np.asarray(Image.open(path)) for path in Path("back").iterdir()}
    assert sorted(found) == ["0-2.png", "0.png", f"{paths[1].stem}.png"]
    np.testing.assert_array_equal(found["0.png"], np.asarray(model.decode(model.encode(paths[0]))[0]))


def test_ids_have_numbers_for_names(command, tmp_path, tiny_folder):
    ids = np.random.default_rng(0).integers(0, 16, (3, 64)).astype(np.uint16)
    codec = ImageGPT(tiny_folder).codec
    tokenise(tmp_path / "ids", ids, codec=codec.fingerprint, grid=[8, 8])
    assert command("compress", "ids", "--out", "a.igpt", "--limit", 2)[0] == 0
    assert command("decompress", "a.igpt", "--out", "deep/er/back")[0] == 0
    assert sorted(path.name for path in Path("deep/er/back").iterdir()) == ["000000.png", "000001.png"]
    np.testing.assert_array_equal(
        np.asarray(Image.open("deep/er/back/000001.png")), codec.decode(ids[1]).reshape(8, 8, 3)
    )


def test_bad_input(command, data, tmp_path):
    assert command("compress", data, "--out", "a.igpt")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        (("compress", data, "--out", "a.igpt"), "a.igpt is there already"),
        (("compress", data, "--out", "no/a.igpt"), "can't be written"),
        (("compress", "absent", "--out", "b.igpt"), "no such file"),
        (("compress", data, data, "--out", "b.igpt"), "is a folder: give picture files"),
        (("compress", data, "--out", "b.igpt", "--batch-size", 0), "batch_size must be at least 1"),
        (("compress", data, "--out", "b.igpt", "--limit", 0), "limit must be at least 1"),
        (("decompress", "absent.igpt", "--out", "back"), "absent.igpt can't be read"),
        (("decompress", "data/a/0.png", "--out", "back"), "not made by `imagegpt compress`"),
        (("decompress", "a.igpt", "--out", "data"), "data holds something; name a new or empty folder"),
        (("decompress", "a.igpt", "--out", "a.igpt"), "a.igpt is a file"),
        (("decompress", "a.igpt", "--out", "a.igpt/x"), "can't be made"),
        (("decompress", "a.igpt", "--out", "."), "name a new one"),
        (("decompress", "a.igpt", "--out", "back", "--device", "nowhere"), "nowhere"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and words in err and "Traceback" not in err, (arguments, err)
    code, _, err = command("decompress", "a.igpt", "--out", "back", model=None)
    assert code == 2 and "name the right one with --model" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_file_writes_nothing(command, data):
    assert command("compress", data, "--out", "a.igpt", "--batch-size", 2)[0] == 0
    content = bytearray(Path("a.igpt").read_bytes())
    content[-50] ^= 1
    Path("a.igpt").write_bytes(content)
    code, _, err = command("decompress", "a.igpt", "--out", "back")
    assert code == 2 and "checksum is wrong" in err and not Path("back").exists()


def test_a_picture_that_is_not_kept_exactly_is_named(command, data):
    Image.new("RGBA", (4, 4)).save("clear.png")
    code, _, err = command("compress", data / "a/0.png", "clear.png", "--out", "a.igpt", "--lossless")
    assert code == 2 and "clear.png has transparent parts" in err
    assert not list(Path().glob("a.igpt*"))
    assert command("compress", data / "a/0.png", "clear.png", "--out", "a.igpt")[0] == 0  # as the model sees it


def test_interrupted_and_continued(tmp_path, tiny_folder, data):
    whole, out = str(tmp_path / "whole.igpt"), str(tmp_path / "a.igpt")
    command = ["compress", str(data), "--model", str(tiny_folder), "--batch-size", "1", "--out"]
    assert main([*command, whole]) == 0
    process = start([*command, out], OMP_NUM_THREADS="1")
    wait_for_parts(process, 1, out)
    process.kill()
    process.communicate()
    assert not Path(out).exists() or not parts_of(out)
    if not Path(out).exists():  # it may have been too quick to be stopped
        assert main([*command, out]) == 0
    assert Path(out).read_bytes() == Path(whole).read_bytes()
