"""What a checkpoint holds, which of them stay, and what is done about damaged and hostile ones."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from imagegpt import ImageGPT, ImageGPTForCausalImageModeling
from imagegpt.cli.main import main
from imagegpt.errors import InputError
from imagegpt.train.checkpoints import read_checkpoint
from training_runs import CODEC, checkpoints, column, command, log, tokens

FILES = ("model.safetensors", "config.json", "preprocessor_config.json", "state/.metadata", "state/__0_0.distcp")
MANIFEST = "checkpoint.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return tokens(tmp_path_factory.mktemp("data") / "tokens", labelled=True)


def arguments(data: str, out: Path, *more: str | int) -> list[str]:
    return command(data, out, "--steps", 12, "--save-every", 4, "--keep", 3, "--ema", "0.9", "--lr", "0.01", *more)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    """A run of 12 updates with the checkpoints of 4, 8 and 12."""
    out = tmp_path_factory.mktemp("made") / "run"
    assert main(arguments(data, out)) == 0
    return out


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy that a test may spoil, without what the last update made."""
    out = shutil.copytree(made, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    shutil.rmtree(out / "model")
    return out


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# What it holds.


@pytest.mark.parametrize("place", ["model", "checkpoints/step-00000012", "checkpoints/step-00000012/ema"])
def test_transformers_opens_it(made, place):
    ours = ImageGPTForCausalImageModeling.from_pretrained(made / place).eval()
    theirs, told = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        made / place, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"]
    assert {name.rpartition(".")[2] for name in told["unexpected_keys"]} <= {"bias", "masked_bias"}
    ids = torch.randint(0, 16, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    assert ours.config.architectures == ["ImageGPTForCausalImageModeling"]


@pytest.mark.parametrize("place", ["model", "checkpoints/step-00000008", "checkpoints/step-00000008/ema"])
def test_it_draws_pictures(made, place):
    model = ImageGPT.from_pretrained(made / place, device="cpu")
    assert model.codec.fingerprint == CODEC.fingerprint
    image = np.asarray(model.sample(1, seed=0).images[0][0])
    assert image.shape == (8, 8, 3)


def test_a_bidirectional_one_says_so(data, tmp_path):
    assert main(arguments(data, tmp_path / "run", "--objective", "bert")) == 0
    found = ImageGPTForCausalImageModeling.from_pretrained(folder_of(tmp_path / "run", 12))
    assert found.config.is_causal is False


def test_the_model_is_the_average_where_there_is_one(made, data, tmp_path):
    last = folder_of(made, 12)
    assert same(weights(made), load_file(last / "ema" / "model.safetensors"))
    assert not same(weights(made), load_file(last / "model.safetensors"))
    assert main(arguments(data, tmp_path / "run", "--ema", 0)) == 0
    assert not (folder_of(tmp_path / "run", 12) / "ema").exists()
    assert same(weights(tmp_path / "run"), load_file(last / "model.safetensors"))


def test_what_it_tells(made):
    found = json.loads((folder_of(made, 8) / MANIFEST).read_text())
    assert {name: found[name] for name in ("step", "position", "steps", "processes", "seed", "skipped")} == {
        **{"step": 8, "position": 8, "steps": 12, "processes": 1, "seed": 0, "skipped": 0}
    }
    assert (found["codec"], found["torch"], found["recipe"]["lr"]) == (CODEC.fingerprint, torch.__version__, 0.01)
    assert found["epoch"] == 8 / 12
    assert set(found["files"]) == {*FILES, *(f"ema/{name}" for name in FILES[:3])}
    for name, (size, digest) in found["files"].items():
        content = (folder_of(made, 8) / name).read_bytes()
        assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    published = json.loads((made / "model" / "training.json").read_text())
    assert (published["step"], published["recipe"]["steps"]) == (12, 12)


# Which of them stay.


@pytest.mark.parametrize(("keep", "expected"), [(1, [12]), (2, [9, 12]), (3, [6, 9, 12]), (9, [3, 6, 9, 12])])
def test_the_last_ones_stay(data, tmp_path, keep, expected):
    assert main(arguments(data, tmp_path / "run", "--keep", keep, "--save-every", 3)) == 0
    assert checkpoints(tmp_path / "run") == [f"step-{step:08d}" for step in expected]


def test_the_best_stays(data, tmp_path, capsys):
    """The data of validation are not those of training, so that it gets worse at last."""
    other = tokens(tmp_path / "other", 32, seed=1)
    few = tokens(tmp_path / "few", 4)
    more = ["--validation", other, "--validate-every", 10, "--steps", 200, "--save-every", 50, "--keep", 1]
    assert main(command(few, tmp_path / "run", *more, "--lr", "0.01", "--schedule", "constant", "--json")) == 0
    found = {record["step"]: record["nats_per_token"] for record in log(tmp_path / "run", "validation")}
    best = min(found, key=found.__getitem__)
    assert 10 <= best < 200
    assert checkpoints(tmp_path / "run") == [f"step-{best:08d}", "step-00000200"]
    assert json.loads(capsys.readouterr().out)["best"] == {"step": best, "nats_per_token": found[best]}
    assert read_checkpoint(folder_of(tmp_path / "run", 200))["best"]["step"] == best


def test_the_best_is_remembered_by_a_run_that_goes_on(data, tmp_path):
    few = tokens(tmp_path / "few", 4)
    other = tokens(tmp_path / "other", 32, seed=1)
    more = ["--validation", other, "--validate-every", 10, "--keep", 1, "--lr", "0.01", "--schedule", "constant"]
    assert main(command(few, tmp_path / "run", *more, "--steps", 200)) == 0
    [best, last] = checkpoints(tmp_path / "run")
    assert main(command(few, tmp_path / "run", *more, "--steps", 220)) == 0
    assert checkpoints(tmp_path / "run") == [best, "step-00000220"] != [best, last]


# Damaged ones.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, cut_to_nothing, flip, remove], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "ema/model.safetensors", "ema/config.json"])
def test_a_damaged_file_is_told_of_and_the_checkpoint_before_is_used(data, made, run, capsys, name, damage):
    damage(folder_of(run, 8) / name)
    assert main(arguments(data, run)) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("warning: ")
    assert [line for line in told if name in line] == told[:1]
    assert "step-00000008" in told[0]
    assert "The checkpoint before it is used." in told[0]
    assert told[1].startswith("update 4 of 12")
    assert same(weights(run), weights(made))
    assert column(run, "step") == list(range(1, 13))
    assert checkpoints(run) == checkpoints(made)
    read_checkpoint(folder_of(run, 8))  # it was written again


def every_byte(run: Path) -> list[int]:
    return list(range(0, (folder_of(run, 8) / MANIFEST).stat().st_size, 37))


def test_a_flipped_bit_of_the_manifest(run):
    """A manifest with another number in it would be as good JSON as before."""
    path = folder_of(run, 8) / MANIFEST
    content = path.read_bytes()
    before = read_checkpoint(path.parent)
    for place in every_byte(run):
        for bit in (1, 16):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                assert read_checkpoint(path.parent) == before  # white space was changed
            except InputError as error:
                assert MANIFEST in str(error)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"step": 8}', '{"step": 8, "files": 3}', '{"files": {"a": 1}}', "\0", "\ud800"],
)
def test_a_broken_manifest(data, made, run, capsys, text):
    (folder_of(run, 8) / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert main(arguments(data, run)) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("warning: ")
    assert MANIFEST in told[0]
    assert same(weights(run), weights(made))


def test_a_checkpoint_without_a_manifest_is_none(data, made, run, capsys):
    (folder_of(run, 8) / MANIFEST).unlink()
    assert main(arguments(data, run)) == 0
    assert "warning" not in capsys.readouterr().err
    assert same(weights(run), weights(made))


def test_all_are_damaged(data, run, capsys):
    """To start anew would throw the log of the run away, and nobody would notice."""
    before = (run / "log.jsonl").read_bytes()
    flip(folder_of(run, 8) / "model.safetensors")
    cut(folder_of(run, 4) / "config.json")
    assert main(arguments(data, run)) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("warning: ")
    assert "model.safetensors" in told[0]
    assert told[1].startswith("error: ")
    assert "config.json" in told[1]
    assert f"remove {run / 'checkpoints'} to start anew" in told[1]
    assert (run / "log.jsonl").read_bytes() == before
    assert len(checkpoints(run)) == 2


def test_a_damaged_one_does_not_push_out_those_that_are_written_after_it(data, run, capsys):
    """It has the highest number of all, and counts for nothing."""
    flip(folder_of(run, 8) / "model.safetensors")
    with pytest.raises(StopError):
        stop_after(6, data, run, "--keep", "1", "--save-every", "1")
    assert checkpoints(run) == ["step-00000006"]
    read_checkpoint(folder_of(run, 6))


class StopError(Exception):
    pass


def stop_after(step: int, data: str, out: Path, *more: str) -> None:
    """Have the run fail after the checkpoint of an update."""
    from imagegpt.train.checkpoints import Checkpoints

    save = Checkpoints.save

    def fail(self, *given):
        path = save(self, *given)
        if path == self.path(step):
            raise StopError
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", fail)
        main(arguments(data, out, *more))


def test_what_was_half_written_is_ignored_and_cleaned(data, made, run, capsys):
    half = run / "checkpoints" / ".step-00000011.part"
    shutil.copytree(folder_of(run, 8), half)
    (run / "checkpoints" / "step-00000002" / "state").mkdir(parents=True)  # half removed
    (run / ".export").mkdir()
    (run / ".model.part").mkdir()
    assert main(arguments(data, run)) == 0
    assert "update 8 of 12" in capsys.readouterr().err
    assert checkpoints(run) == checkpoints(made)
    assert not (run / ".model.part").exists()
    assert same(weights(run), weights(made))


def test_other_things_in_the_folder_are_left_alone(data, made, run):
    shutil.copytree(folder_of(run, 8), run / "checkpoints" / "step-00000008-copy")
    shutil.copytree(folder_of(run, 8), run / "checkpoints" / "step-best")
    (run / "checkpoints" / "notes.txt").write_text("mine")
    assert main(arguments(data, run)) == 0
    assert set(checkpoints(run)) == {*checkpoints(made), "step-00000008-copy", "step-best", "notes.txt"}
    assert same(weights(run), weights(made))


# Hostile ones.


def rewrite(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Change a manifest as someone would who knows how it is made."""
    path = checkpoint / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("digest")
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "digest": digest}))


def entry(path: Path) -> list:
    content = path.read_bytes()
    return [len(content), hashlib.sha256(content).hexdigest()]


def test_a_manifest_that_was_written_again_is_good(run):
    """Else the tests below would say nothing."""
    rewrite(folder_of(run, 8), lambda manifest: manifest.update(seconds=1.0))
    assert read_checkpoint(folder_of(run, 8))["seconds"] == 1.0


@pytest.mark.parametrize("name", ["../step-00000004/model.safetensors", "{run}/outside", "state/../../../outside"])
def test_names_that_lead_outside(run, name):
    (run / "outside").write_bytes(b"secret")
    name = name.format(run=run)
    target = folder_of(run, 8) / name
    assert target.is_file()
    rewrite(folder_of(run, 8), lambda manifest: manifest["files"].update({name: entry(target)}))
    with pytest.raises(InputError, match="lacks"):
        read_checkpoint(folder_of(run, 8))


def test_a_link_that_leads_outside(run):
    (folder_of(run, 8) / "config.json").rename(run / "outside.json")
    (folder_of(run, 8) / "config.json").symlink_to(run / "outside.json")
    with pytest.raises(InputError, match=r"lacks config\.json"):
        read_checkpoint(folder_of(run, 8))


@pytest.mark.parametrize("name", ["model.safetensors", "state/.metadata", "config.json"])
def test_a_manifest_that_does_not_list_what_is_needed(data, made, run, capsys, name):
    rewrite(folder_of(run, 8), lambda manifest: manifest["files"].pop(name))
    assert main(arguments(data, run)) == 0
    assert name in capsys.readouterr().err.splitlines()[0]
    assert same(weights(run), weights(made))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile(path: Path, kind: str) -> bytes:
    if kind == "code":
        return pickle.dumps(Evil(path))
    if kind == "code in a table":
        from torch.distributed.checkpoint.metadata import Metadata

        return pickle.dumps(Metadata({"a": Evil(path)}))  # pyright: ignore[reportArgumentType]
    if kind == "a function of torch":
        return b"ctorch\nload\n(S'x'\ntR."
    return b"no pickle"


@pytest.mark.parametrize("kind", ["code", "code in a table", "a function of torch", "nonsense"])
def test_a_table_of_contents_that_would_run_code(data, run, capsys, tmp_path, kind):
    """With a manifest that vouches for it."""
    path = folder_of(run, 8) / "state" / ".metadata"
    path.write_bytes(hostile(tmp_path / "pwned", kind))
    rewrite(folder_of(run, 8), lambda manifest: manifest["files"].update({"state/.metadata": entry(path)}))
    assert main(arguments(data, run)) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"error: {path} can't be used")
    assert not (tmp_path / "pwned").exists()
    if kind.startswith("code"):
        assert "posix.mkdir" in told[0]


def test_weights_of_another_shape(data, run, capsys):
    for folder in (folder_of(run, 8), folder_of(run, 8) / "ema"):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    rewrite(
        folder_of(run, 8),
        lambda manifest: [
            manifest["files"].update({name: entry(folder_of(run, 8) / name)})
            for name in ("model.safetensors", "ema/model.safetensors")
        ],
    )
    assert main(arguments(data, run)) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "missing or has another shape" in told[0]


def test_no_warning_of_torch_comes_through(data, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(arguments(data, tmp_path / "run")) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
