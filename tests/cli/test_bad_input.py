"""Whatever is given, the command answers in one sentence, exits with 2 and writes nothing; odd pictures just work."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.cli.main import main
from imagegpt.pipeline import ImageGPT

USAGE_HINT = "See: imagegpt --help"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with one good picture."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    noise(20, 30).save("good.png")
    return folder


@pytest.fixture
def model(tiny_folder) -> tuple[str, ...]:
    return "--model", str(tiny_folder), "--device", "cpu", "--num", "1"


@pytest.fixture
def spoiled(tiny_folder, place) -> Path:
    """A copy of the model that the test spoils."""
    return Path(shutil.copytree(tiny_folder, "model"))


@pytest.fixture
def refused(place, capsys):
    """Run a command that must fail properly; gives its sentence."""

    def check(*arguments: str, usage: bool = False) -> str:
        before = listing(place)
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        lines = err.strip().splitlines()
        if usage:  # a misspelt command is told where to read more
            assert lines.pop() == USAGE_HINT
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert "Traceback" not in err
        assert listing(place) == before
        return lines[0].removeprefix("error: ")

    return check


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# --- pictures


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture"),
        (b"This is text.\n", "not a picture"),
        (half(encoded(noise(60, 50), "PNG")), "truncated"),
        (half(encoded(noise(60, 50), "JPEG")), "truncated"),
        (png_header(30000, 30000), "too many pixels"),
        (png_header(40, 40), "damaged"),
    ],
    ids=["empty", "text", "half png", "half jpeg", "bomb", "no data"],
)
def test_files_that_are_no_whole_picture(place, refused, model, content, words):
    (place / "bad.png").write_bytes(content)
    sentence = refused("complete", "bad.png", *model)
    assert sentence.startswith("bad.png")
    assert words in sentence


def test_one_bad_picture_among_good_ones_is_named(place, refused, model):
    (place / "bad.png").write_bytes(b"x")
    assert "bad.png" in refused("complete", "good.png", "bad.png", *model)


def test_a_missing_file_and_a_folder(place, refused, model):
    assert "gone.png: there is no such file" in refused("complete", "gone.png", *model)
    (place / "folder").mkdir()
    assert "folder is a folder" in refused("complete", "folder", *model)


def test_words_in_brackets_are_not_taken_for_markup(refused, model):
    assert "[red]gone.png: there is no such file" in refused("complete", "[red]gone.png", *model)


def test_a_picture_whose_name_is_too_long(refused, model):
    refused("complete", "a" * 300 + ".png", *model)


def animated() -> bytes:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD = {
    "animated": animated(),
    "pixel": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "line": encoded(Image.new("RGB", (1, 999), "red"), "PNG"),
    "16 bit": encoded(Image.fromarray(np.arange(0, 60000, 600, dtype=np.uint16).reshape(10, 10)), "PNG"),
    "cmyk": encoded(noise(9, 9).convert("CMYK"), "JPEG"),
    "alpha": encoded(noise(9, 9).convert("RGBA"), "PNG"),
    "grey and alpha": encoded(noise(9, 9).convert("LA"), "PNG"),
    "palette": encoded(noise(9, 9).convert("P"), "PNG", transparency=3),
    "grey": encoded(noise(9, 9).convert("L"), "PNG"),
    "black and white": encoded(noise(9, 9).convert("1"), "PNG"),
    "float": encoded(Image.fromarray(np.linspace(0, 1, 81, dtype=np.float32).reshape(9, 9)), "TIFF"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_work(place, model, name):
    (place / "odd").write_bytes(ODD[name])
    assert main(["complete", "odd", *model, "--keep", "0.9", "--out", "sheet.png"]) == 0
    with Image.open("sheet.png") as image:
        image.load()
    assert sorted(path.name for path in place.iterdir()) == ["good.png", "odd", "sheet.png"]


# --- numbers


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--keep", "1.5", "keep must be at least 0 and below 1"),
        ("--keep", "1", "keep must be at least 0 and below 1"),
        ("--keep", "-1", "keep must be at least 0 and below 1"),
        ("--keep", "nan", "keep must be at least 0 and below 1"),
        ("--num", "0", "--num must be at least 1"),
        ("--num", "-3", "--num must be at least 1"),
        ("--num", "9223372036854775807", "--num must be at most 1,000,000,000,000, not 9,223,372,036,854,775,807"),
        ("--temperature", "-1", "temperature must be"),
        ("--temperature", "nan", "temperature must be"),
        ("--top-k", "0", "top_k must be"),
        ("--top-p", "0", "top_p must be"),
        ("--top-p", "1.5", "top_p must be"),
        ("--seed", "-1", "seed must be"),
        ("--device", "nonsense", "device 'nonsense' can't be used"),
    ],
)
def test_numbers_out_of_range(refused, tiny_folder, option, value, words):
    assert words in refused("complete", "good.png", "--model", str(tiny_folder), option, value)


@pytest.mark.parametrize(("option", "value"), [("--keep", "abc"), ("--num", "many"), ("--top-k", "x"), ("--seed", "")])
def test_words_where_numbers_belong(refused, tiny_folder, option, value):
    sentence = refused("complete", "good.png", "--model", str(tiny_folder), option, value, usage=True)
    assert option in sentence


@pytest.mark.parametrize("verb", [["sample"], ["complete", "good.png"]])
def test_more_pictures_than_fit_into_memory(refused, model, monkeypatch, verb):
    def allocate(*_, **__):
        raise MemoryError("Unable to allocate 93.1 TiB for an array with shape (99999999999, 1024)")

    monkeypatch.setattr(ImageGPT, verb[0], allocate)
    told = refused(*verb, *model)
    assert told == "There is not enough memory for this: ask for fewer pictures at once."


def test_a_part_of_a_sample_is_refused(refused, tiny_folder):
    refused("sample", "--model", str(tiny_folder), "--num", "1.6", usage=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-p", "1.5"], "min_p must be from 0 to 1, not 1.5"),
        (["--min-p", "-1"], "min_p must be"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--precision", "int8", "--backend", "torch"], 'precision "int8" is onnxruntime\'s'),
        (["--precision", "int8", "--device", "cuda"], 'precision "int8" is onnxruntime\'s'),
        (["--precision", "bf16", "--backend", "onnx"], "precision 'bf16' needs backend=\"torch\""),
        (["--device", "cuda", "--backend", "onnx"], "device 'cuda' needs backend=\"torch\""),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [["complete", "good.png"], ["sample"]])
def test_options_that_do_not_fit(refused, tiny_folder, verb, options, words):
    assert words in refused(*verb, "--model", str(tiny_folder), *options)


@pytest.mark.parametrize(
    "options", [["--precision", "float16"], ["--backend", "jax"], ["--batch-size", "2.5"], ["--min-p", "some"]], ids=str
)
def test_choices_that_there_are_not(refused, tiny_folder, options):
    assert options[0] in refused("sample", "--model", str(tiny_folder), *options, usage=True)


# --- masks


def save_masks() -> None:
    Image.new("L", (30, 20)).save("black.png")
    Image.new("L", (20, 30), 255).save("turned.png")
    Image.new("L", (8, 8), 255).save("white.png")
    Path("text.png").write_bytes(b"text")
    noise(9, 9).save("small.png")
    Image.new("L", (30, 20), 255).save("large.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.png", "--mask", "gone.png"], "gone.png: there is no such file"),
        (["good.png", "--mask", "text.png"], "text.png is not a picture"),
        (["good.png", "--mask", "."], "is a folder, not a picture"),
        (["good.png", "--mask", "black.png"], "The mask paints nothing"),
        (["good.png", "--mask", "turned.png"], "The mask is 20 x 30; it must be of its picture's size, 30 x 20"),
        (["good.png", "small.png", "--mask", "large.png"], "9 x 9"),
        (["good.png", "--mask", "white.png", "--particles", "0"], "particles must be at least 1, not 0"),
        (["good.png", "--particles", "-4"], "particles must be at least 1, not -4"),
        (["good.png", "--mask", "white.png", "--keep", "0.5"], "--mask says what is painted, and so does --keep"),
    ],
    ids=str,
)
def test_masks_that_can_not_be_used(place, refused, model, arguments, words):
    save_masks()
    assert words in refused("complete", *arguments, *model)


# --- models


@pytest.mark.parametrize("verb", [["complete", "good.png", "--model"], ["sample", "--model"], ["info"]])
class TestModels:
    def test_unknown(self, refused, verb):
        assert "There is no model 'nonsuch'" in refused(*verb, "nonsuch")

    def test_a_file(self, refused, verb):
        assert "good.png is a file" in refused(*verb, "good.png")

    def test_an_empty_folder(self, place, refused, verb):
        (place / "empty").mkdir()
        assert "has no config.json" in refused(*verb, "empty")

    def test_without_weights(self, spoiled, refused, verb):
        (spoiled / "model.safetensors").unlink()
        assert "model has no weights" in refused(*verb, "model")

    def test_with_wrong_shapes(self, spoiled, refused, verb):
        change_config(spoiled, n_embd=64)
        assert "transformer.wte.weight has shape (17, 32), but config.json asks for (17, 64)" in refused(*verb, "model")

    def test_with_a_missing_layer(self, spoiled, refused, verb):
        change_config(spoiled, n_layer=3)
        assert "asks for n_layer 3, and the weights have 2 blocks" in refused(*verb, "model")

    def test_with_cut_weights(self, spoiled, refused, verb):
        path = spoiled / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "model.safetensors is damaged" in refused(*verb, "model")

    def test_with_weights_that_are_text(self, spoiled, refused, verb):
        (spoiled / "model.safetensors").write_text("hello, I am not a tensor")
        assert "model.safetensors is damaged" in refused(*verb, "model")

    def test_with_a_text_models_config(self, spoiled, refused, verb):
        change_config(spoiled, model_type="gpt2")
        assert "'gpt2', not \"imagegpt\"" in refused(*verb, "model")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "hello"])
    def test_with_a_config_that_is_none(self, spoiled, refused, verb, text):
        (spoiled / "config.json").write_text(text)
        assert "config.json" in refused(*verb, "model")

    @pytest.mark.parametrize("change", [{"n_head": 5}, {"n_layer": 0}, {"vocab_size": "many"}, {"n_embd": 1.5}])
    def test_with_numbers_that_no_model_has(self, spoiled, refused, verb, change):
        change_config(spoiled, **change)
        assert next(iter(change)) in refused(*verb, "model")

    def test_with_a_damaged_palette(self, spoiled, refused, verb):
        (spoiled / "preprocessor_config.json").write_text("{}")
        assert "preprocessor_config.json" in refused(*verb, "model")


def change_config(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_model_without_a_palette(spoiled, refused):
    (spoiled / "preprocessor_config.json").unlink()
    assert "palette of its 16 colours is unknown" in refused("sample", "--model", "model")


def test_old_weights_that_are_damaged(spoiled, refused):
    (spoiled / "model.safetensors").unlink()
    (spoiled / "pytorch_model.bin").write_bytes(b"no pickle")
    assert "pytorch_model.bin" in refused("sample", "--model", "model", "--num", "1", "--device", "cpu")


def test_a_hub_model_that_can_not_be_fetched(refused, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network here\nmuch more text")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    sentence = refused("sample", "--model", "somebody/something")
    assert "'somebody/something'" in sentence
    assert sentence.endswith("no network here")


# --- where the pictures go


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("good.png/sheet.png", "there is no folder good.png"),
        ("good.png/", "good.png can't be made"),
        ("good.png/deep/", "good.png/deep can't be made"),
        ("missing/sheet.png", "there is no folder missing"),
        ("sheet.bmp", "give a file that ends in .png"),
        ("sheet", "give a file that ends in .png"),
        ("/proc/x.png", "/proc"),
        ("/proc/x/", "/proc/x can't be made"),
    ],
)
@pytest.mark.parametrize("verb", [["complete", "good.png"], ["sample"]])
def test_output_that_can_not_be_written(refused, model, verb, out, words):
    if out.startswith("/proc") and not Path("/proc/version").exists():
        pytest.skip("no /proc here")
    assert words in refused(*verb, *model, "--out", out)


def test_the_endings_that_are_offered_are_those_that_are_taken(refused, model):
    told = "--out s.txt: give a file that ends in .png, .webp, .jpg, .jpeg{}, or a folder with a / at its end."
    assert refused("sample", *model, "--out", "s.txt") == told.format(", .npz")
    assert refused("complete", "good.png", *model, "--out", "s.txt") == told.format("")


def test_the_sentence_names_the_file_that_was_asked_for(refused, model):
    if not Path("/proc/version").exists():
        pytest.skip("no /proc here")
    assert "/proc/x.png" in refused("sample", *model, "--out", "/proc/x.png")


def test_an_output_whose_name_is_too_long(refused, model):
    refused("sample", *model, "--out", "a" * 300 + ".png")


@pytest.mark.parametrize("wrong", ["picture", "keep", "num", "model"])
def test_no_empty_folder_is_left_behind(refused, tiny_folder, wrong):
    picture = "gone.png" if wrong == "picture" else "good.png"
    keep, num = "2" if wrong == "keep" else "0.5", "0" if wrong == "num" else "1"
    model = "nonsuch" if wrong == "model" else str(tiny_folder)
    refused("complete", picture, "--keep", keep, "--num", num, "--model", model, "--out", "new/deep/")


def test_an_old_sheet_stays_when_something_is_wrong(place, refused, model):
    (place / "sheet.png").write_bytes(b"old")
    refused("complete", "good.png", "gone.png", *model, "--out", "sheet.png")
    refused("complete", "good.png", *model, "--keep", "2", "--out", "sheet.png")


def test_a_disk_that_fills_up_while_writing(place, refused, model, monkeypatch):
    (place / "sheet.png").write_bytes(b"old")

    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "sheet.png can't be written: No space left" in refused("sample", *model, "--out", "sheet.png")


def test_the_sentence_is_all_that_stands_on_standard_error(place, model, capsys):
    assert main(["complete", "good.png", *model, "--keep", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- interruption


@pytest.fixture
def interrupted(monkeypatch):
    """Painting is interrupted after its third step, as by Ctrl-C; holds the positions that were drawn."""
    from imagegpt.painting import Decoding

    drawn, iterate = [], Decoding.__iter__

    def interrupt(self):
        for position in iterate(self):
            drawn.append(position)
            if len(drawn) == 3:
                raise KeyboardInterrupt
            yield position

    monkeypatch.setattr(Decoding, "__iter__", interrupt)
    return drawn


@pytest.mark.parametrize("out", ["sheet.png", "old.png", "folder/"])
@pytest.mark.parametrize("verb", [["complete", "good.png"], ["sample"]])
def test_an_interruption_while_painting_writes_nothing(place, model, interrupted, capsys, verb, out):
    (place / "old.png").write_bytes(b"old")
    (place / "folder").mkdir()
    before = listing(place)
    assert main([*verb, *model, "--out", out]) == 130
    assert len(interrupted) == 3
    assert listing(place) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_interruption_is_told_in_words(place, model, interrupted, capsys):
    assert main(["sample", *model, "--out", "sheet.png"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted; nothing was written."


# --- a real process, for the code and the streams


@pytest.mark.parametrize("arguments", [["complete", "good.png", "--model", "nonsuch"], ["info", "good.png"]])
def test_the_processes_exit_code_and_streams(place, arguments):
    script = Path(sys.executable).parent / "imagegpt"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
