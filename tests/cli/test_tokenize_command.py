"""imagegpt tokenize: from a folder of pictures to one of ids, what it prints, what it refuses, and what ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt import tokenization
from imagegpt.cli.main import main
from imagegpt.codec.augment import Augmentation
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Crop, Framing
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.data.records import Source
from imagegpt.data.sources import open_source
from imagegpt.data.tokens import verify
from running import start, wait_for_parts

COUNT = 6
CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with pictures of two classes, and a palette."""
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        path = Path("data", "cat" if number < 4 else "dog", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    CODEC.save("palette.npy")
    return tmp_path


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 8 + number, 3), np.uint8))


def ids_of(codec=CODEC, grid=(4, 6), crop: Crop = "center", numbers: Sequence[int] = range(COUNT)) -> np.ndarray:
    processor = ImageGPTImageProcessor.from_codec(codec, Framing(grid[0], grid[1], crop))
    return np.stack([processor(picture(n))["input_ids"][0] for n in numbers])


def stored(out: str = "tokens") -> np.ndarray:
    return np.load(Path(out) / "ids.npy")


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


SMALL = ["--codec", "palette.npy", "--grid", "4x6", "--out", "tokens"]


def small(arguments: list[str]) -> list[str]:
    """`SMALL` with other options, one of which may be in it."""
    name, *value = arguments[0].split("=") if len(arguments) == 1 else arguments
    given = {**dict(zip(SMALL[::2], SMALL[1::2], strict=True)), name: value[0]}
    return [f"{name}={value}" for name, value in given.items()]


# What it writes and prints.


def test_the_ids_of_a_folder(place, capsys):
    assert main(["tokenize", "data", *SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    record = json.loads(captured.out)
    assert record.pop("seconds") > 0
    assert record.pop("pictures_per_s") > 0
    assert record == {
        **{"written": "tokens", "count": COUNT, "made": COUNT, "grid": [4, 6], "codec": CODEC.fingerprint},
        **{"bytes": sum(path.stat().st_size for path in Path("tokens").iterdir()), "skipped": []},
    }
    np.testing.assert_array_equal(stored(), ids_of())
    source = open_source("tokens")
    assert source.classes == ("cat", "dog")
    assert [record.label for record in source] == [0, 0, 0, 0, 1, 1]
    assert verify("tokens")
    assert sorted(path.name for path in place.iterdir()) == ["data", "palette.npy", "tokens"]


def test_a_table_for_people(place, capsys):
    assert main(["tokenize", "data", *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for word in ("tokens", str(COUNT), "4, 6", CODEC.fingerprint, "bytes", "seconds", "pictures_per_s", "skipped"):
        assert word in captured.out
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(captured.out)


def test_the_embedded_palette_its_grid_and_the_papers_framing_are_the_defaults(place):
    assert main(["tokenize", "data", "--out", "tokens"]) == 0
    from imagegpt.checkpoint import EMBEDDED

    codec, framing = load_preprocessor(EMBEDDED["nano"])
    assert framing.crop == "center"
    np.testing.assert_array_equal(stored(), ids_of(codec, (32, 32)))
    assert main(["features", "tokens", "--device", "cpu", "--layer", "1", "--out", "a.npz"]) == 0  # nano takes them


@pytest.mark.parametrize(
    ("arguments", "how"),
    [
        (["--grid", "6x4"], {"grid": (6, 4)}),
        (["--grid", "48x48"], {"grid": (48, 48)}),
        (["--grid", "1x1"], {"grid": (1, 1)}),
        (["--crop", "none"], {"crop": "none"}),
        (["--limit", "2"], {"numbers": range(2)}),
    ],
    ids=str,
)
def test_options(place, arguments, how):
    assert main(["tokenize", "data", *small(arguments)]) == 0
    np.testing.assert_array_equal(stored(), ids_of(**how))


def test_the_palette_of_a_model_folder(place, tiny_folder):
    assert main(["tokenize", "data", "--codec", str(tiny_folder), "--grid", "4x6", "--out", "tokens"]) == 0
    np.testing.assert_array_equal(stored(), ids_of(load_preprocessor(tiny_folder)[0]))


def test_the_column_of_the_labels(place):
    images = np.stack([np.asarray(picture(0))] * 4)
    np.savez("data.npz", images=images, labels=np.zeros(4, int), fine=np.array([3, 1, 2, 0]))
    assert main(["tokenize", "data.npz", *SMALL, "--label-column", "fine"]) == 0
    assert np.load("tokens/labels.npy").tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("name", ["cifar", "imagenet", "flip"])
def test_augmented_copies(place, capsys, name):
    arguments = ["--augment", name, "--augment-copies", "2", "--seed", "5", "--json"]
    assert main(["tokenize", "data", *SMALL, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2 * COUNT
    augmentation, framing = Augmentation.parse(name), Framing(4, 6, "center")
    wanted = [
        CODEC.encode(augmentation.apply(picture(n), framing, np.random.default_rng([5, copy, n]))).reshape(-1)
        for copy in (0, 1)
        for n in range(COUNT)
    ]
    np.testing.assert_array_equal(stored(), wanted)


# Unreadable pictures.


def test_unreadable_pictures_are_counted_and_listed(place, capsys):
    Path("data/cat/2.png").write_bytes(b"no picture")
    assert main(["tokenize", "data", *SMALL, "--on-error", "skip", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["count"], record["made"], len(record["skipped"])) == (COUNT - 1, COUNT, 1)
    assert "data/cat/2.png" in record["skipped"][0]
    np.testing.assert_array_equal(stored(), ids_of(numbers=[0, 1, 3, 4, 5]))


def test_an_unreadable_picture_ends_the_run_and_is_named(place, capsys):
    Path("data/dog/4.png").write_bytes(b"no picture")
    assert main(["tokenize", "data", *SMALL]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "data/dog/4.png" in captured.err
    assert not Path("tokens").exists()
    assert main(["tokenize", "data", *SMALL, "--on-error", "skip"]) == 0


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "32"], "--grid is HEIGHTxWIDTH, such as 32x32, not '32'"),
        (["--grid", "32X32"], "--grid is HEIGHTxWIDTH"),
        (["--grid", "32x32x3"], "--grid is HEIGHTxWIDTH"),
        (["--grid", "x"], "--grid is HEIGHTxWIDTH"),
        (["--grid", "3.5x4"], "--grid is HEIGHTxWIDTH"),
        (["--grid=-4x4"], "--grid is HEIGHTxWIDTH"),
        (["--grid", "0x4"], "height must be a whole number of at least 1"),
        (["--grid", "100000x100000"], "too many"),
        (["--codec", "gone.npy"], "gone.npy: there is no such file"),
        (["--codec", "old.npy"], "old.npy holds no palette"),
        (["--codec", "nonsuch"], "no model 'nonsuch'"),
        (["--codec", "wide.npy"], "65,536 colours at most, not 65,537"),
        (["--augment", "nonsense"], "no augmentation 'nonsense'"),
        (["--augment", "cifar"], "Say how many copies"),
        (["--augment-copies", "2"], "Copies without augmentation"),
        (["--augment-copies=-1"], "copies must be at least 0"),
        (["--seed=-1"], "seed must be at least 0"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--label-column", "nonsuch"], "nonsuch"),
        (["--out", "gone/tokens"], "gone/tokens can't be written"),
        (["--out", "old.npy"], "old.npy is a file"),
        (["--out", "data"], "data is a folder with other files"),
    ],
    ids=str,
)
def test_what_can_not_be_done_is_one_sentence_and_leaves_nothing(place, capsys, arguments, words):
    Path("old.npy").write_bytes(b"old")
    np.save("wide.npy", np.zeros((65537, 3)))
    before = listing(place)
    assert main(["tokenize", "data", *small(arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err
    assert listing(place) == before


def test_the_folder_is_looked_at_before_a_palette_is_fetched(place, capsys):
    assert main(["tokenize", "data", "--codec", "owner/nonsuch", "--out", "data"]) == 2
    assert "data is a folder with other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("gone", "gone: there is no such file or folder"),
        ("empty", "empty"),
        ("data:nonsuch", "nonsuch"),
        ("done", "done holds ids already"),
    ],
)
def test_data_that_has_no_pictures(place, capsys, data, words):
    Path("empty").mkdir()
    assert main(["tokenize", "data", *SMALL[:-1], "done"]) == 0
    capsys.readouterr()
    before = listing(place)
    assert main(["tokenize", data, *SMALL]) == 2
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert words in captured.err
    assert listing(place) == before


def test_a_data_set_is_not_overwritten(place, capsys):
    assert main(["tokenize", "data", *SMALL]) == 0
    before = listing(place)
    capsys.readouterr()
    assert main(["tokenize", "data", *SMALL]) == 2
    assert "tokens holds a tokenised data set already" in capsys.readouterr().err
    assert listing(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["data"],
        ["--out", "tokens"],
        ["data", "--out", "tokens", "--crop", "random"],
        ["data", "--out", "tokens", "--on-error", "ignore"],
        ["data", "--out", "tokens", "--augment-copies", "2.5"],
        ["data", "--out", "tokens", "--seed", "some"],
        ["data", "--out", "tokens", "--nonsense"],
    ],
    ids=" ".join,
)
def test_commands_that_there_are_not(place, capsys, arguments):
    before = listing(place)
    assert main(["tokenize", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "See: imagegpt --help"
    assert listing(place) == before


def test_a_process_of_no_group(place, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["tokenize", "data", *SMALL]) == 2
    assert "RANK=2 and WORLD_SIZE=2" in capsys.readouterr().err
    assert not Path("tokens").exists()


def test_help_names_every_option(capsys):
    assert main(["tokenize", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--out", "--codec", "--grid", "--crop", "--augment", "--augment-copies", "--seed"):
        assert option in printed
    for option in ("--limit", "--label-column", "--on-error", "--json"):
        assert option in printed
    assert main(["--help"]) == 0
    assert "Turn pictures into the ids of a codec, once." in " ".join(capsys.readouterr().out.split())


def test_tokenising_loads_neither_torch_nor_transformers(place):
    code = f"from imagegpt.cli.main import main; main({['tokenize', 'data', *SMALL]!r})"
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert stored().shape == (COUNT, 24)
    assert not set(done.stdout.split()) & {"torch", "transformers", "onnxruntime", "onnx", "datasets", "sklearn"}


# What ends it.


def test_ctrl_c_says_where_the_parts_are_and_how_to_go_on(place):
    count = 2048 * 10
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    np.savez("data.npz", images=images)
    arguments = ["tokenize", "data.npz", "--codec", "palette.npy", "--grid", "8x8", "--out", "tokens"]
    process = start(arguments, most=5)
    try:
        wait_for_parts(process, 2, "tokens/meta.json")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted; what is done is kept in tokens/meta.json.parts: the same command continues.\n"
    assert 2 <= len(list(Path("tokens/meta.json.parts").glob("part-*"))) < 10
    assert main(arguments) == 0
    np.testing.assert_array_equal(stored(), CODEC.encode(images).reshape(count, 64))


def test_an_interruption_before_anything_is_kept(place, monkeypatch, capsys):
    """While all data are read for their fingerprint."""

    def fingerprint(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Source, "fingerprint", fingerprint)
    before = listing(place)
    assert main(["tokenize", "data", *SMALL]) == 130
    assert capsys.readouterr().err == "Interrupted; nothing was written.\n"
    assert listing(place) == before


def test_an_interruption_while_pictures_are_read(place, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenization, "read_ids", interrupt)
    assert main(["tokenize", "data", *SMALL]) == 130
    told = "Interrupted; what is done is kept in tokens/meta.json.parts: the same command continues.\n"
    assert capsys.readouterr().err == told
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main(["tokenize", "data", *SMALL]) == 0
    np.testing.assert_array_equal(stored(), ids_of())
