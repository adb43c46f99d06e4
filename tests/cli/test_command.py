"""The command: what it writes, what it prints, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import classifiers
from imagegpt import __version__
from imagegpt.cli.main import main
from imagegpt.cli.output import print_record
from imagegpt.pipeline import ImageGPT


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with one picture."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    return tmp_path


@pytest.fixture
def model(tiny_folder) -> tuple[str, ...]:
    return "--model", str(tiny_folder), "--device", "cpu"


def squares(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, 0).repeat(factor, 1)


def places(sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """(left, top) of every place where the sheet shows exactly these pixels."""
    height, width = part.shape[:2]
    first = (sheet[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1] == part[0, 0]).all(2)
    found = [(int(x), int(y)) for y, x in np.argwhere(first)]
    return [(x, y) for x, y in found if np.array_equal(sheet[y : y + height, x : x + width], part)]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, **options)


COMMAND = "import sys; from imagegpt.cli.main import main; code = main(sys.argv[1:]); "


# --- complete


def test_complete_writes_a_sheet_whose_samples_keep_the_upper_half(place, model, tiny_folder):
    assert main(["complete", "cat.png", *model, "--num", "3", "--out", "sheet.png"]) == 0
    pipeline = ImageGPT.from_pretrained(tiny_folder)
    palette_version = np.asarray(pipeline.decode(pipeline.encode("cat.png"))[0])
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    # what the model saw, and three samples: each square of 16 pixels is one id
    found = places(sheet, squares(palette_version[:4], 16))
    assert len(found) == 4
    samples = [sheet[y : y + 128, x : x + 128] for x, y in found[1:]]
    expected = pipeline.complete("cat.png", 0.5, 3, seed=0).images[0]
    for sample, image in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample, squares(np.asarray(image), 16))


@pytest.mark.parametrize("out", ["sheet.png", "sheet.webp", "sheet.jpg", "SHEET.PNG"])
def test_the_same_command_writes_the_same_bytes(place, model, out):
    written = []
    for _ in range(2):
        assert main(["complete", "cat.png", *model, "--num", "2", "--out", out]) == 0
        written.append(Path(out).read_bytes())
        Path(out).unlink()
    assert written[0] == written[1]


def test_another_seed_writes_other_samples(place, model):
    for seed in ("0", "1"):
        assert main(["complete", "cat.png", *model, "--num", "2", "--seed", seed, "--out", f"{seed}.webp"]) == 0
    assert Path("0.webp").read_bytes() != Path("1.webp").read_bytes()


def test_the_sheet_is_called_completions_by_default(place, model):
    assert main(["complete", "cat.png", *model, "--num", "1"]) == 0
    assert sorted(path.name for path in place.iterdir()) == ["cat.png", "completions.png"]


def test_a_png_tells_what_made_it(place, model):
    assert main(["complete", "cat.png", *model, "--num", "1", "--keep", "0.25", "--seed", "7", "--out", "a.png"]) == 0
    facts = json.loads(Image.open("a.png").text["imagegpt"])
    expected = {"command": "complete", "images": ["cat.png"], "keep": 0.25, "num": 1, "seed": 7, "temperature": 1.0}
    assert facts.items() >= expected.items()
    assert facts["software"] == f"imagegpt {__version__}"


def test_a_folder_gets_single_pictures(place, model, tiny_folder):
    assert main(["complete", "cat.png", *model, "--num", "2", "--keep", "0.75", "--out", "deep/out/"]) == 0
    assert sorted(path.name for path in Path("deep/out").iterdir()) == ["cat-1.png", "cat-2.png"]
    expected = ImageGPT.from_pretrained(tiny_folder).complete("cat.png", 0.75, 2, seed=0).images[0]
    for number, image in enumerate(expected, 1):
        np.testing.assert_array_equal(np.asarray(Image.open(f"deep/out/cat-{number}.png")), np.asarray(image))


def test_a_folder_that_exists_needs_no_slash(place, model):
    Path("out").mkdir()
    assert main(["complete", "cat.png", *model, "--num", "1", "--out", "out"]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["cat-1.png"]


def test_numbers_have_equal_width(place, model):
    assert main(["complete", "cat.png", *model, "--num", "10", "--keep", "0.9", "--out", "out/"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [f"cat-{number:02}.png" for number in range(1, 11)]


def test_pictures_of_one_name_do_not_overwrite_one_another(place, model):
    Path("other").mkdir()
    Image.new("RGB", (8, 8)).save("other/cat.jpg")
    Image.new("RGB", (8, 8)).save("dog.png")
    arguments = ["cat.png", "other/cat.jpg", "dog.png", *model, "--num", "1", "--keep", "0.9", "--out", "out/"]
    assert main(["complete", *arguments]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["cat-1-1.png", "cat-2-1.png", "dog-1.png"]
    first, second = (np.asarray(Image.open(f"out/cat-{number}-1.png")) for number in (1, 2))
    assert len(np.unique(first[:4].reshape(-1, 3), axis=0)) > 1
    assert len(np.unique(second[:4].reshape(-1, 3), axis=0)) == 1  # the black one


def test_a_numbered_name_does_not_meet_another_picture(place, model):
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Image.new("RGB", (8, 8)).save(f"{folder}/cat.png")
    Image.new("RGB", (8, 8)).save("cat-1.png")
    arguments = ["one/cat.png", "two/cat.png", "cat-1.png", *model, "--num", "1", "--keep", "0.9", "--out", "out/"]
    assert main(["complete", *arguments]) == 0
    assert len(list(Path("out").iterdir())) == 3


def test_json_tells_what_was_written(place, model, capsys):
    assert main(["complete", "cat.png", *model, "--num", "2", "--seed", "4", "--out", "out/", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["written"] == ["out/cat-1.png", "out/cat-2.png"]
    assert all(Path(path).is_file() for path in record["written"])
    assert (record["command"], record["seed"], record["given"], record["num"]) == ("complete", 4, 32, 2)


def test_people_get_a_sentence_with_the_files_name(place, model, capsys):
    assert main(["complete", "cat.png", *model, "--num", "1", "--out", "sheet.png"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sheet.png (")
    assert len(out.splitlines()) == 1


def test_nothing_stands_on_standard_error_when_all_went_well(place, model, capsys):
    assert main(["complete", "cat.png", *model, "--num", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_a_model_without_a_palette_is_one_line_of_warning(place, tmp_path, capsys):
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    torch.manual_seed(0)
    config = ImageGPTConfig(n_positions=64, n_embd=16, n_layer=1, n_head=1)
    ImageGPTForCausalImageModeling(config).save_pretrained("bare")
    capsys.readouterr()
    assert main(["complete", "cat.png", "--model", "bare", "--num", "1", "--device", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("warning: bare has no preprocessor_config.json")


# --- sample


def test_sample_writes_a_sheet(place, model, tiny_folder):
    assert main(["sample", *model, "--num", "4", "--out", "sheet.png"]) == 0
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    for image in ImageGPT.from_pretrained(tiny_folder).sample(4, seed=0).images[0]:
        assert len(places(sheet, squares(np.asarray(image), 16))) == 1


def test_sample_writes_single_pictures(place, model, capsys):
    assert main(["sample", *model, "--num", "3", "--out", "out/", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["written"] == [f"out/sample-{number}.png" for number in (1, 2, 3)]
    assert {Image.open(path).size for path in record["written"]} == {(8, 8)}


def test_options_of_sampling_reach_the_model(place, model, tiny_folder):
    options = ["--temperature", "0.7", "--top-k", "3", "--top-p", "0.9", "--seed", "5"]
    assert main(["sample", *model, "--num", "2", *options, "--out", "out/"]) == 0
    expected = ImageGPT.from_pretrained(tiny_folder).sample(2, temperature=0.7, top_k=3, top_p=0.9, seed=5).images[0]
    for number, image in enumerate(expected, 1):
        np.testing.assert_array_equal(np.asarray(Image.open(f"out/sample-{number}.png")), np.asarray(image))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--min-p", "0.2"], {"min_p": 0.2}),
        (["--top-k", "2"], {"top_k": 2}),
        (["--top-p", "0.5"], {"top_p": 0.5}),
        (["--temperature", "0"], {"temperature": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["sample", "complete"])
def test_each_option_of_sampling_reaches_the_model(place, model, tiny_folder, verb, words, options):
    source = ["cat.png"] if verb == "complete" else []
    assert main([verb, *source, *model, "--num", "3", *words, "--out", "out/"]) == 0
    pipeline = ImageGPT.from_pretrained(tiny_folder)

    def draw(**given):
        one = pipeline.complete("cat.png", 0.5, 3, seed=0, **given) if source else pipeline.sample(3, seed=0, **given)
        return np.stack([np.asarray(image) for image in one.images[0]])

    found = np.stack([np.asarray(Image.open(path)) for path in sorted(Path("out").iterdir())])
    np.testing.assert_array_equal(found, draw(**options))
    assert not np.array_equal(found, draw())


@pytest.fixture
def opened(monkeypatch) -> list[dict]:
    """With which options models were opened, and what was asked of them."""
    calls = []
    for name in ("__init__", "complete", "sample"):
        original = getattr(ImageGPT, name)

        def note(self, *arguments, original=original, **options):
            calls.append(dict(zip(("path", "device", "precision", "backend"), arguments, strict=False)) | options)
            return original(self, *arguments, **options)

        monkeypatch.setattr(ImageGPT, name, note)
    return calls


@pytest.mark.parametrize("verb", ["sample", "complete"])
@pytest.mark.parametrize(
    ("words", "opens", "backend", "weights"),
    [
        ([], {"precision": "fp32", "backend": None}, "OnnxBackend", None),
        (["--backend", "torch"], {"precision": "fp32", "backend": "torch"}, "TorchBackend", "float32"),
        (["--backend", "onnx"], {"precision": "fp32", "backend": "onnx"}, "OnnxBackend", None),
        (["--precision", "int8"], {"precision": "int8", "backend": None}, "OnnxBackend", None),
        (["--precision", "bf16"], {"precision": "bf16", "backend": None}, "TorchBackend", "bfloat16"),
        (["--device", "cpu"], {"device": "cpu", "precision": "fp32"}, "OnnxBackend", None),
    ],
    ids=str,
)
def test_what_runs_the_model(place, tiny_folder, opened, monkeypatch, verb, words, opens, backend, weights):
    backends = []
    monkeypatch.setattr(ImageGPT, "_paint", paint_and_note(backends))
    source = ["cat.png"] if verb == "complete" else []
    assert main([verb, *source, "--model", str(tiny_folder), "--num", "1", *words]) == 0
    assert opened[0].items() >= opens.items()
    assert type(backends[0]).__name__ == backend
    if weights is not None:
        assert str(backends[0].model.dtype) == f"torch.{weights}"
    elif "int8" in words:
        assert backends[0].cache_dtype == np.int8


def paint_and_note(backends: list):
    paint = ImageGPT._paint

    def note(self, *arguments):
        backends.append(self.backend)
        return paint(self, *arguments)

    return note


@pytest.mark.parametrize("verb", ["sample", "complete"])
def test_the_batch_size_reaches_the_model_and_changes_no_picture(place, model, opened, verb):
    source = ["cat.png"] if verb == "complete" else []
    for size in ("1", "3"):
        assert main([verb, *source, *model, "--num", "4", "--batch-size", size, "--out", f"{size}.webp"]) == 0
        assert opened[-1]["batch_size"] == int(size)
    assert Path("1.webp").read_bytes() == Path("3.webp").read_bytes()


# --- masks

HOLE = np.zeros((8, 8), bool)
HOLE[3:5, 2:6] = True


@pytest.fixture
def mask(place) -> str:
    """A mask of the picture's size whose hole covers cells as `HOLE` does."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save("cat.png")
    Image.fromarray(HOLE.repeat(3, 0).repeat(4, 1)).save("mask.png")
    return "mask.png"


def test_the_sheet_greys_just_the_painted_cells(place, model, mask, tiny_folder):
    assert main(["complete", "cat.png", *model, "--num", "2", "--mask", mask, "--out", "sheet.png"]) == 0
    pipeline = ImageGPT.from_pretrained(tiny_folder)
    seen = np.array(pipeline.decode(pipeline.encode("cat.png"))[0])
    seen[HOLE] = 200
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    assert len(places(sheet, squares(seen, 16))) == 1
    for image in pipeline.complete("cat.png", num_samples=2, mask=HOLE, seed=0).images[0]:
        assert len(places(sheet, squares(np.asarray(image), 16))) == 1


def test_each_picture_of_a_sheet_is_greyed(place, model, mask, tiny_folder):
    Image.open("cat.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("dog.png")
    assert main(["complete", "cat.png", "dog.png", *model, "--num", "1", "--mask", mask, "--out", "sheet.png"]) == 0
    pipeline = ImageGPT.from_pretrained(tiny_folder)
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    for ids in pipeline.encode(["cat.png", "dog.png"]):
        seen = np.array(pipeline.decode(ids[None])[0])
        seen[HOLE] = 200
        assert len(places(sheet, squares(seen, 16))) == 1


def test_particles_reach_the_model_and_are_told_of(place, model, mask, tiny_folder, capsys):
    arguments = ["complete", "cat.png", *model, "--num", "3", "--mask", mask, "--particles", "8", "--out", "out/"]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = ImageGPT.from_pretrained(tiny_folder).complete("cat.png", num_samples=3, mask=HOLE, particles=8, seed=0)
    assert record["effective_particles"] == [round(float(n), 2) for n in expected.effective_particles]
    assert (record["mask"], record["particles"], record["given"]) == ("mask.png", 8, 56)
    assert "keep" not in record
    for path, image in zip(record["written"], expected.images[0], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image))
    facts = json.loads(Image.open(record["written"][0]).text["imagegpt"])
    assert (facts["mask"], facts["particles"]) == ("mask.png", 8)
    assert main(arguments) == 0
    least = expected.effective_particles.min()
    assert capsys.readouterr().out.endswith(f"; of 8 particles at least {least:.1f} counted\n")


def test_without_particles_nothing_is_told_of_them(place, model, mask, capsys):
    for arguments in (["--mask", mask], ["--mask", mask, "--particles", "1"]):
        assert main(["complete", "cat.png", *model, "--num", "1", *arguments, "--json"]) == 0
        assert "effective_particles" not in json.loads(capsys.readouterr().out)
        assert main(["complete", "cat.png", *model, "--num", "1", *arguments]) == 0
        assert "particles" not in capsys.readouterr().out


# --- info and help


def test_info_as_json(tiny_folder, capsys):
    assert main(["info", str(tiny_folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n_positions"], record["vocab_size"], record["n_layer"], record["n_embd"]) == (64, 17, 2, 32)
    assert record["bytes"] == (tiny_folder / "model.safetensors").stat().st_size
    assert record["grid"] == [8, 8]
    assert record["codec"]["ids"] == 16


def test_info_counts_the_parameters_of_the_network(tiny_folder, tiny_model, capsys):
    assert main(["info", str(tiny_folder), "--json"]) == 0
    expected = sum(parameter.numel() for parameter in tiny_model.parameters())
    assert json.loads(capsys.readouterr().out)["parameters"] == expected


def test_info_of_a_codec_that_does_not_fit(folder, capsys):
    path = folder / "preprocessor_config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "clusters": entries["clusters"][:5]}))
    assert main(["info", str(folder)]) == 2
    assert "its codec is a palette of 5, and the model has 16 colours" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["a:dog:.png", "x:train"])
def test_names_are_told_as_they_are(name, capsys):
    """And not with a picture of a dog in them."""
    assert main(["complete", name]) == 2
    assert name in capsys.readouterr().err
    print_record({"written": name}, False)
    assert name in capsys.readouterr().out


def test_info_as_a_table_names_each_number(tiny_folder, capsys):
    assert main(["info", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    for name in ("parameters", "n_positions", "n_layer", "codec", "model.safetensors", "F32"):
        assert name in out


@pytest.mark.parametrize("draws", [True, False])
def test_info_of_a_classifier_names_its_classes(tmp_path, capsys, draws):
    folder = classifiers.make(tmp_path / "model", draws=draws)
    assert main(["info", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["classes"] == list(classifiers.CLASSES)
    stored = load_file(folder / "model.safetensors")
    assert record["parameters"] == sum(tensor.size for tensor in stored.values())


def test_info_of_the_embedded_model_is_the_default(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_embd"] == 192


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"imagegpt {__version__}"


@pytest.mark.parametrize("verb", [[], ["complete"], ["sample"], ["info"]])
def test_help(verb, capsys):
    assert main([*verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["Usage: imagegpt", *verb]))
    if verb in (["complete"], ["sample"]):
        for option in ("--num", "--out", "--model", "--temperature", "--top-k", "--top-p", "--seed", "--json"):
            assert option in out
        for option in ("--min-p", "--batch-size", "--precision", "--backend"):
            assert option in out
    if verb == ["complete"]:
        assert "--mask" in out
        assert "--particles" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compleet", "cat.png"], 'Did you mean "complete"?'),
        (["complete", "cat.png", "--kep", "0.5"], "Did you mean --keep?"),
        (["sample", "--top_kk", "3"], "Did you mean --top-k?"),
        (["complete"], "IMAGES"),
        (["info", "nano", "more"], "more"),
    ],
)
def test_misspelt_words_exit_with_2_and_a_suggestion(place, arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert [path.name for path in place.iterdir()] == ["cat.png"]


# --- real processes


@pytest.mark.parametrize("arguments", [["--help"], ["complete", "--help"], ["--version"]])
def test_help_imports_neither_torch_nor_transformers(arguments):
    tail = "print('heavy:', [name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    done = run("-c", COMMAND + tail, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_bad_pictures_are_refused_before_torch_is_imported(place):
    done = run("-c", COMMAND + "print(code, 'torch' in sys.modules)", "complete", "gone.png", cwd=place)
    assert done.stdout.split() == ["2", "False"]


def test_the_console_script_completes_a_picture(place, model):
    script = Path(sys.executable).parent / "imagegpt"
    done = subprocess.run(
        [script, "complete", "cat.png", *model, "--num", "1", "--out", "a.png"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    with Image.open("a.png") as image:
        image.load()


def test_the_console_script_exits_with_2(place):
    script = Path(sys.executable).parent / "imagegpt"
    done = subprocess.run([script, "complete", "gone.png"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: gone.png: there is no such file.\n"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "imagegpt", "--version"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, f"imagegpt {__version__}")


def test_particles_without_a_mask_are_refused(place, model, capsys):
    assert main(["complete", "cat.png", *model, "--particles", "4"]) == 2
    assert "--mask" in capsys.readouterr().err
    assert not (place / "completions.png").exists()
