"""imagegpt vqvae: from pictures to a codec, ids, a model over them and its pictures; and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagegpt.cli.main import main
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.preprocessor_file import find_framed
from imagegpt.codec.quality import Quality
from imagegpt.data.pixels import read_pixels
from imagegpt.data.sources import open_source
from imagegpt.sheet import comparison_sheet
from making import KINDS

COUNT = 6
NETWORK = ["--factor", "2", "--codes", "16", "--code-width", "4", "--width", "8", "--blocks", "1", "--block-width", "4"]
RUN = ["--grid", "4x6", "--batch", "3", "--steps", "3", "--lr", "0.01", "--device", "cpu"]
TRAIN = ["vqvae", "train", "--train", "pictures", *NETWORK, *RUN]
MODEL = ["--width", "16", "--layers", "1", "--heads", "2", "--steps", "2", "--batch", "3", "--device", "cpu"]
CODEC = "run/model"
DRAWN = ["--model", "gpt/model", "--device", "cpu", "--backend", "torch"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with pictures, a codec that learnt from them, their ids and a model over these. Tests only read it."""
    folder = tmp_path_factory.mktemp("vqvae")
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("pictures").mkdir()
        for number in range(COUNT):
            corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
            corners.resize((15, 11), Image.Resampling.BILINEAR).save(f"pictures/{number}.png")
        assert main([*TRAIN, "--out", "run"]) == 0
        assert main(["vqvae", "encode", "pictures", "--codec", CODEC, "--out", "ids"]) == 0
        assert main(["train", "--train", "ids", "--out", "gpt", *MODEL]) == 0
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with all that is in `home`."""
    monkeypatch.chdir(tmp_path)
    for path in home.iterdir():
        Path(path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def told(capsys):
    """Run a command that works; what it prints as JSON, which has no infinity."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that is refused in one sentence, and that writes nothing; the sentence."""

    def run(*arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        assert main([*arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.count("error: ") == 1
        assert sorted(Path().rglob("*")) == before
        return captured.err

    return run


def framed(codec: str = CODEC) -> np.ndarray:
    """All pictures as the codec sees them."""
    _, framing = find_framed(codec, crop="center")
    return np.concatenate([pixels for _, pixels in read_pixels(open_source("pictures"), framing)])


def files(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def picture(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# From pictures to a model and its pictures.


def test_train_tells_what_it_made(place, told):
    found = told(
        *TRAIN, "--out", "other", "--validation", "pictures", "--validate-every", "3", "--recipe", "vq-32-8-256"
    )
    assert (found["model"], found["step"], found["pictures"], found["published"]) == ("other/model", 3, COUNT, 3)
    assert found["best"].keys() == {"step", "psnr"}
    codec, framing = find_framed("other/model")
    assert (len(codec), codec.factor, framing.height, framing.width) == (16, 2, 8, 12)
    used = json.loads(Path("other/model/training.json").read_text())["recipe"]
    assert (used["augment"], used["precision"], used["codes"]) == ("flip", "bf16", 16)
    assert sorted(path.name for path in Path("other/model").iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json", "training.json")
    ]


def test_a_recipe_of_ones_own_says_it_all(place, told):
    """The names of the verb and of its parts are those of values too."""
    words = [*NETWORK, *RUN, "--train", "pictures"]
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    Path("mine.yaml").write_text("".join(f"{name}: {value}\n" for name, value in zip(names, words[1::2], strict=True)))
    assert told("vqvae", "train", "--recipe", "mine.yaml", "--out", "other")["step"] == 3
    assert Path("other/model/model.safetensors").read_bytes() == Path(CODEC, "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_data_of_every_kind(place, told, kind):
    """To learn from, to validate on and to be judged on."""
    data = KINDS[kind](place / "data", list(range(8)), [number % 2 for number in range(8)])
    chosen = [*NETWORK, "--grid", "2x3", "--batch", "4", "--steps", "2", "--device", "cpu", "--validate-every", "2"]
    found = told("vqvae", "train", "--train", data, "--validation", data, *chosen, "--out", "other")
    assert found["pictures"] == 8
    assert told("vqvae", "evaluate", "other/model", "--data", data)["psnr"] == pytest.approx(found["best"]["psnr"])


def test_help_names_the_verbs(capsys):
    assert main(["vqvae", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("train", "encode", "decode", "evaluate"))


def test_the_help_of_train_says_what_it_takes(capsys):
    assert main(["vqvae", "train", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "DATA: pictures. " in told and "or ids" not in told
    assert "once an epoch. [" not in told
    assert "height x width of codes; default: 48x48." in told


def test_train_tells_people(place, capsys):
    assert main([*TRAIN, "--out", "other", "--validation", "pictures", "--validate-every", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("other/model: 3 updates in ")
    assert "dB PSNR at update 3" in captured.out
    assert "of the codes used" in captured.err


def test_encode_gives_the_codes_of_the_pictures_as_tokenize_does(place, told):
    record = told("vqvae", "encode", "pictures", "--codec", CODEC, "--out", "again")
    codec, _ = find_framed(CODEC)
    assert (record["grid"], record["count"], record["codec"]) == ([4, 6], COUNT, codec.fingerprint)
    np.testing.assert_array_equal(np.load("again/ids.npy"), codec.encode(framed()).reshape(COUNT, 24))
    assert main(["tokenize", "pictures", "--codec", CODEC, "--out", "tokenised"]) == 0
    assert files("again") == files("tokenised") == files("ids")


def test_encode_on_another_grid(place, told):
    record = told("vqvae", "encode", "pictures", "--codec", CODEC, "--out", "again", "--grid", "3x5", "--crop", "none")
    assert record["grid"] == [3, 5]
    told("vqvae", "decode", "again", "--out", "seen")
    assert picture("seen/000000.png").shape == (6, 10, 3)


@pytest.mark.parametrize("named", [[], ["--codec", CODEC], ["--codec", "gpt/model"]], ids=" ".join)
def test_decode_gives_the_pictures_that_codes_stand_for(place, told, named):
    record = told("vqvae", "decode", "ids", "--out", "seen/", *named)
    codec, _ = find_framed(CODEC)
    assert record["written"] == [f"seen/{number:06}.png" for number in range(COUNT)]
    assert record["codec"] == codec.name
    expected = codec.decode(codec.encode(framed()))
    np.testing.assert_array_equal([picture(path) for path in record["written"]], expected)
    with Image.open("seen/000000.png") as image:
        assert json.loads(image.info["imagegpt"])["codec"] == codec.fingerprint  # pyright: ignore[reportArgumentType]


def test_decode_stops_at_a_limit_and_tells_people(place, capsys):
    assert main(["vqvae", "decode", "ids", "--out", "seen", "--limit", "2"]) == 0
    assert capsys.readouterr().out.startswith("2 pictures in seen (")
    assert len(list(Path("seen").iterdir())) == 2


def test_decode_takes_a_palettes_ids_too(place, told):
    assert main(["tokenize", "pictures", "--out", "colours", "--grid", "8x8"]) == 0
    told("vqvae", "decode", "colours", "--out", "seen")
    codec, _ = find_framed("nano")
    expected = codec.decode(np.load("colours/ids.npy").reshape(COUNT, 8, 8))
    np.testing.assert_array_equal([picture(path) for path in sorted(Path("seen").iterdir())], expected)


@pytest.mark.parametrize("codec", [CODEC, "gpt/model", "nano"])
def test_evaluate_tells_what_a_codec_loses(place, told, codec):
    record = told("vqvae", "evaluate", codec, "--data", "pictures")
    used, _ = find_framed(codec)
    quality = Quality(used, again=True)
    quality.add(framed(codec))
    assert record.pop("seconds") >= 0
    assert record == {**quality.result(), "data": "pictures", "skipped": []}


def test_evaluate_draws_pictures_over_what_comes_out(place, told):
    record = told("vqvae", "evaluate", CODEC, "--data", "pictures", "--sheet", "sheet.png", "--shown", "4")
    assert record["written"] == ["sheet.png"]
    codec, _ = find_framed(CODEC)
    pixels = framed()[:4]
    sheet = comparison_sheet({"pictures": pixels, codec.name: codec.decode(codec.encode(pixels))})
    np.testing.assert_array_equal(picture("sheet.png"), np.asarray(sheet))


def test_evaluate_on_another_grid_leaves_out_what_is_damaged(place, told):
    shutil.copytree("pictures", "data")
    Path("data/2.png").write_bytes(b"text")
    arguments = ("vqvae", "evaluate", CODEC, "--data", "data", "--grid", "2x3", "--on-error", "skip")
    record = told(*arguments, "--sheet", "sheet.png")
    assert record["pictures"] == COUNT - 1
    [sentence] = record["skipped"]
    assert sentence.startswith("data/2.png")


def test_evaluate_of_what_loses_nothing_is_json_too(place, told, capsys):
    Path("two").mkdir()
    Image.fromarray(np.indices((4, 4)).sum(0).astype(np.uint8) % 2 * 255).save("two/0.png")
    PaletteCodec([[-1, -1, -1], [1, 1, 1]]).save("two.npy")
    arguments = ("vqvae", "evaluate", "two.npy", "--data", "two", "--grid", "4x4")
    record = told(*arguments)
    assert record["psnr"] is None
    assert record["mean_psnr"] is None
    assert (record["rmse"], record["stable"], record["perplexity"]) == (0, 1, pytest.approx(2))
    assert main([*arguments]) == 0
    printed = capsys.readouterr().out
    assert "inf" in printed
    assert "palette of 2" in printed


def test_a_model_over_codes_needs_no_grid_and_keeps_the_codec(place):
    config = json.loads(Path("gpt/model/config.json").read_text())
    assert (config["vocab_size"], config["n_positions"]) == (17, 24)
    ours, framing = find_framed("gpt/model")
    assert ours.fingerprint == find_framed(CODEC)[0].fingerprint
    assert (framing.height, framing.width) == (8, 12)
    [*_, last] = Path("gpt/log.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(last)["loss"])


def test_a_model_over_codes_is_trained_from_pictures_too(place):
    """`--codec` makes ids of them on its own grid, once: the same as `encode` does."""
    assert main(["train", "--train", "pictures", "--codec", CODEC, "--out", "other", *MODEL]) == 0
    np.testing.assert_array_equal(np.load("other/data/train/ids.npy"), np.load("ids/ids.npy"))
    assert Path("other/model/model.safetensors").read_bytes() == Path("gpt/model/model.safetensors").read_bytes()


def test_its_samples_are_pictures_of_pixels(place, told):
    record = told("sample", *DRAWN, "--num", "3", "--out", "drawn/")
    assert [picture(path).shape for path in record["written"]] == [(8, 12, 3)] * 3
    again = told("sample", *DRAWN, "--num", "3", "--out", "again/")
    pairs = zip(record["written"], again["written"], strict=True)
    assert all((picture(one) == picture(other)).all() for one, other in pairs)


@pytest.mark.parametrize("how", ["keep", "mask"])
def test_it_completes_pictures(place, told, how):
    mask = np.zeros((11, 15), np.uint8)
    mask[6:] = 255
    Image.fromarray(mask).save("mask.png")
    more = ["--keep", "0.5"] if how == "keep" else ["--mask", "mask.png"]
    record = told("complete", "pictures/0.png", *DRAWN, "--num", "2", "--out", "drawn/", *more)
    assert [picture(path).shape for path in record["written"]] == [(8, 12, 3)] * 2
    assert record["given"] == 12  # of 24 codes; a block in which a pixel is painted is painted


def test_scores_and_features_know_the_codec(place, told):
    codec, _ = find_framed(CODEC)
    record = told("score", "pictures", *DRAWN)
    assert record["codec"] == codec.name
    assert told("score", "ids", *DRAWN)["nats_per_token"] == pytest.approx(record["nats_per_token"], rel=1e-6)
    assert record["bits_per_dim"] == pytest.approx(record["nats_per_token"] / math.log(2) / 12, rel=1e-5)
    assert told("features", "pictures", *DRAWN, "--layer", "1", "--out", "features.npz")["pictures"] == COUNT
    with np.load("features.npz", allow_pickle=False) as features:
        assert any(array.shape == (COUNT, 16) for array in features.values())


# What is refused.


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "nothing to train on: give --train"),
        (["--train", "gone"], "gone: there is no such file or folder"),
        (["--train", "ids"], "ids holds ids, and a codec is trained on pictures"),
        (["--train", "pictures", "--validation", "ids"], "ids holds ids, and a codec is trained on pictures"),
        (["--train", "pictures", "--recipe", "vq-32-8-265"], "Did you mean vq-32-8-256?"),
        (["--train", "pictures", "--recipe", "debug"], "It is one of `imagegpt train`."),
        (["--train", "pictures", "--grid", "4by6"], "grid must be HEIGHTxWIDTH"),
        (["--train", "pictures", "--grid", "0x6"], "grid must be HEIGHTxWIDTH"),
        (["--train", "pictures", "--codes", "1"], "codes must be from 2 to 65536, not 1"),
        (["--train", "pictures", "--codes", "70000"], "codes must be from 2 to 65536, not 70000"),
        (["--train", "pictures", "--factor", "3"], "factor must be one of 2, 4, 8, not 3"),
        (["--train", "pictures", "--width", "1"], "width must be at least 2, not 1"),
        (["--train", "pictures", "--width", "8.5"], "no whole number"),
        (["--train", "pictures", "--code-width", "0"], "code_width must be at least 1, not 0"),
        (["--train", "pictures", "--blocks", "-1"], "blocks must be at least 0, not -1"),
        (["--train", "pictures", "--commitment", "-1"], "commitment must be at least 0, not -1"),
        (["--train", "pictures", "--commitment", "nan"], "commitment must be"),
        (["--train", "pictures", "--code-decay", "1"], "code_decay must be at least 0 and below 1, not 1"),
        (["--train", "pictures", "--restart", "1.5"], "restart must be at least 0 and below 1, not 1.5"),
        (["--train", "pictures", "--loss", "l3"], "l3"),
        (["--train", "pictures", "--optimizer", "muon"], "optimizer must be adamw"),
        (["--train", "pictures", "--strategy", "fsdp"], "strategy must be ddp"),
        (["--train", "pictures", "--compile"], "compile is for transformers"),
        (["--train", "pictures", "--checkpointing"], "checkpointing is for transformers"),
        (["--train", "pictures", "--probe-every", "5"], "probe_every is for models that have features"),
        (["--train", "pictures", "--batch", "100"], "100"),
        (["--train", "pictures", "--batch", "5", "--accumulate", "2"], "does not divide"),
        (["--train", "pictures", "--steps", "1", "--epochs", "1"], "steps or epochs, not both"),
        (["--train", "pictures", "--augment", "blur"], "blur"),
        (["--train", "pictures", "--publish", "best"], "--publish best goes by validations: give --validation DATA"),
        (["--train", "pictures", "--patience", "2"], "--patience goes by validations: give --validation DATA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_trained_is_one_sentence(place, capsys, more, words):
    chosen = dict(zip(RUN[::2], RUN[1::2], strict=True))
    given = [
        word for name, value in chosen.items() if name not in more and "--epochs" not in more for word in (name, value)
    ]
    assert main(["vqvae", "train", *given, "--out", "other", *more]) == 2
    captured = capsys.readouterr()
    assert words in captured.err.replace("\n", " ")
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    assert not Path("other/checkpoints").exists()


def test_train_without_an_end_or_into_a_file_is_refused(place, capsys):
    assert main(["vqvae", "train", "--train", "pictures", "--out", "other", "--grid", "4x6", "--batch", "3"]) == 2
    assert "Give --steps or --epochs" in capsys.readouterr().err
    Path("file").write_text("text")
    assert main([*TRAIN, "--out", "file"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "gone", "--codec", CODEC, "--out", "new"], "gone: there is no such file or folder"),
        (["encode", "pictures", "--codec", "pictures", "--out", "new"], "pictures"),
        (["encode", "pictures", "--codec", "gone", "--out", "new"], "gone"),
        (["encode", "ids", "--codec", CODEC, "--out", "new"], "ids"),
        (["encode", "pictures", "--codec", CODEC, "--out", "ids"], "holds a tokenised data set already"),
        (["encode", "pictures", "--codec", CODEC, "--out", "pictures"], "is a folder with other files"),
        (["encode", "pictures", "--codec", CODEC, "--out", "new", "--grid", "4"], "--grid is HEIGHTxWIDTH"),
        (["encode", "pictures", "--out", "new"], "codec"),
        (["decode", "pictures", "--out", "new"], "pictures holds no ids: make some with `imagegpt vqvae encode`"),
        (["decode", "gone", "--out", "new"], "gone: there is no such file or folder"),
        (["decode", "ids", "--codec", "nano", "--out", "new"], "holds ids of the codec"),
        (["decode", "ids", "--codec", "pictures", "--out", "new"], "pictures"),
        (["decode", "ids", "--out", "new.png"], "--out new.png: give a folder"),
        (["decode", "ids", "--out", "pictures/0.png"], "--out pictures/0.png: give a folder"),
        (["decode", "ids", "--out", "gpt/log.jsonl"], "gpt/log.jsonl"),
        (["decode", "ids"], "out"),
        (["evaluate", "pictures", "--data", "pictures"], "pictures"),
        (["evaluate", "gone.npy", "--data", "pictures"], "gone.npy: there is no such file"),
        (["evaluate", CODEC, "--data", "ids"], "holds ids, not pictures; give the pictures that they were made from"),
        (["evaluate", CODEC, "--data", "gone"], "gone: there is no such file or folder"),
        (["evaluate", CODEC], "data"),
        (
            ["evaluate", CODEC, "--data", "pictures", "--grid", "axb"],
            "--grid is HEIGHTxWIDTH, such as 32x32, not 'axb'",
        ),
        (
            ["evaluate", CODEC, "--data", "pictures", "--sheet", "new/"],
            "--sheet new/: give a file that ends in .png, .webp, .jpg, .jpeg.",
        ),
        (["evaluate", CODEC, "--data", "pictures", "--sheet", "run"], "--sheet run: give a file that ends in .png"),
        (
            ["evaluate", CODEC, "--data", "pictures", "--sheet", "a.txt"],
            "--sheet a.txt: give a file that ends in .png, .webp, .jpg, .jpeg.",
        ),
        (["evaluate", CODEC, "--data", "pictures", "--sheet", "no/a.png"], "--sheet no/a.png: there is no folder no"),
        (["evaluate", CODEC, "--data", "pictures", "--shown", "0"], "--shown must be at least 1, not 0"),
        (["evaluate", CODEC, "--data", "pictures", "--limit", "0"], "limit"),
        (["nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_coded_is_one_sentence_and_nothing_is_written(place, refused, arguments, words):
    assert words in refused("vqvae", *arguments)


def test_pictures_that_can_not_be_read_are_refused(place, refused):
    Path("data").mkdir()
    Path("data/0.png").write_bytes(b"text")
    assert "data/0.png" in refused("vqvae", "evaluate", CODEC, "--data", "data")
    told = refused("vqvae", "evaluate", CODEC, "--data", "data", "--on-error", "skip", "--sheet", "sheet.png")
    assert "data holds no picture that can be read; the first: data/0.png" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be used"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: sized(folder, 9), "can't be divided into the codec's blocks of 2 x 2 pixels"),
    ],
    ids=["weights", "config", "preprocessor", "size"],
)
def test_a_damaged_codec_is_refused(place, refused, change, words):
    folder = Path(shutil.copytree(CODEC, "damaged"))
    change(folder)
    for arguments in (["evaluate", "damaged", "--data", "pictures"], ["encode", "pictures", "--codec", "damaged"]):
        out = ["--out", "new"] if arguments[0] == "encode" else []
        assert words in refused("vqvae", *arguments, *out)


def sized(folder: Path, side: int) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"height": side, "width": 8}}))


def test_ids_whose_codec_was_changed_are_refused(place, refused):
    shutil.copytree("ids", "changed")
    codec, _ = find_framed(CODEC)
    meta = json.loads(Path("changed/meta.json").read_text())
    Path("changed/meta.json").write_text(json.dumps({**meta, "codec": "0" * 16}))
    told = refused("vqvae", "decode", "changed", "--out", "new")
    assert "and beside them another" in told
    assert codec.fingerprint in told
