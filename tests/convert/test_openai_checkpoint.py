"""Conversion of checkpoints: OpenAI's own code's numbers, what is written, what is refused, and how much memory."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from bundles import (
    FIXTURES,
    SMALL,
    colours,
    less_memory_than,
    optimiser,
    shard_path,
    variable_shapes,
    variables,
    write_bundle,
    write_release,
)
from imagegpt import checkpoint
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.convert.names import SAME, Way, parts_of
from imagegpt.convert.openai import convert_openai
from imagegpt.errors import InputError


def fixture(name: str) -> Path:
    if not (FIXTURES / name).exists():
        pytest.skip("shared/fixtures is not here")
    return FIXTURES / name


@pytest.fixture
def copied(tmp_path):
    """A fixture that may be spoilt."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in fixture(name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return copy


@pytest.fixture
def release(tmp_path):
    """A small made-up checkpoint: its folder and its variables."""
    return tmp_path / "release", write_release(tmp_path / "release")


def differences(folder: Path, name: str) -> tuple[float, float | None]:
    """How far logits and loss are from those of OpenAI's code."""
    import torch

    from imagegpt import ImageGPTForCausalImageModeling

    expected = np.load(fixture(name) / "expected.npz")
    model = ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    ids_BT = torch.from_numpy(expected["input_ids"]).long()
    with torch.no_grad():
        if "gen_loss" not in expected:  # BERT: no start token; nothing was masked
            return float(np.abs(model(ids_BT).logits.numpy() - expected["gen_logits"]).max()), None
        start_B1 = torch.full((len(ids_BT), 1), model.config.vocab_size - 1)
        logits = model(torch.cat([start_B1, ids_BT[:, :-1]], 1)).logits.numpy()
        loss = abs(model.image_loss(ids_BT).item() - float(expected["gen_loss"]))
    return float(np.abs(logits - expected["gen_logits"]).max()), loss


# --- OpenAI's own numbers


@pytest.mark.parametrize("name", ["openai_8px", "openai_bert_8px"])
def test_the_model_computes_what_openais_code_does(tmp_path, name):
    record = convert_openai(fixture(name), tmp_path / "model")
    logits, loss = differences(tmp_path / "model", name)
    assert logits < 2e-5
    assert loss is None or loss < 1e-5
    told = json.loads((fixture(name) / "hparams.json").read_text())
    spec = checkpoint.read_spec(tmp_path / "model")
    assert (spec.n_layer, spec.n_head, spec.n_embd) == (told["n_layer"], told["n_head"], told["n_embd"])
    assert (spec.num_colors, spec.n_positions) == (told["n_vocab"], told["n_px"] ** 2)
    assert checkpoint.is_causal(tmp_path / "model") is not told["bert"]
    assert record["step"] == told["step"]


def test_the_comparison_notices_a_transposed_matrix(tmp_path, monkeypatch):
    wrong = Way(lambda parts, shape: parts[0].reshape(shape).T, SAME.to_openai)

    def parts(spec, causal):
        made = parts_of(spec, causal)
        for part in made:
            if part.name.endswith("attn.c_proj.weight"):
                object.__setattr__(part, "way", wrong)
        return made

    monkeypatch.setattr("imagegpt.convert.openai.parts_of", parts)
    convert_openai(fixture("openai_8px"), tmp_path / "model")
    logits, loss = differences(tmp_path / "model", "openai_8px")
    assert logits > 1e-2
    assert loss is not None
    assert loss > 1e-4


def places(size: int, count: int) -> list[int]:
    return sorted({0, 1, size - 1, *np.random.default_rng(size).integers(0, size, count).tolist()})


@pytest.mark.parametrize(
    "file", ["model.ckpt-1000.index", "model.ckpt-1000.data-00000-of-00002", "model.ckpt-1000.data-00001-of-00002"]
)
def test_a_flipped_byte_anywhere_is_noticed_and_the_file_is_named(copied, tmp_path, file):
    folder = copied("openai_8px")
    content = (folder / file).read_bytes()
    for place in places(len(content), 25):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (folder / file).write_bytes(damaged)
        with pytest.raises(InputError, match=file):
            convert_openai(folder, tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_a_renamed_shard_is_missed_by_its_name(copied, tmp_path):
    folder = copied("openai_8px")
    shard = folder / "model.ckpt-1000.data-00001-of-00002"
    shard.rename(folder / "model.ckpt-1000.data-00001-of-00003")
    with pytest.raises(InputError, match=rf"{shard.name} is missing"):
        convert_openai(folder, tmp_path / "model")


def test_shards_that_changed_places_are_noticed(copied, tmp_path):
    folder = copied("openai_8px")
    shards = [folder / f"model.ckpt-1000.data-0000{number}-of-00002" for number in range(2)]
    shards[0].rename(folder / "other")
    shards[1].rename(shards[0])
    (folder / "other").rename(shards[1])
    with pytest.raises(InputError, match=r"model\.ckpt-1000\.data-0000\d-of-00002 is (damaged|cut off)"):
        convert_openai(folder, tmp_path / "model")


# --- what is written


def test_the_folder(release, tmp_path):
    folder, arrays = release
    record = convert_openai(folder, tmp_path / "model")
    names = ["README.md", "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names
    assert record.pop("written") == [str(tmp_path / "model" / name) for name in names]
    assert record == json.loads((tmp_path / "model" / "conversion.json").read_text())
    tensors = checkpoint.load_tensors(tmp_path / "model")
    np.testing.assert_array_equal(tensors["lm_head.weight"], arrays["model/wtet"])
    codec, framing = load_preprocessor(tmp_path / "model")
    np.testing.assert_array_equal(codec.clusters, colours(5))
    assert (framing.height, framing.width, framing.crop) == (4, 4, "none")
    left_out = {kind: len(names) for kind, names in record["left_out"].items()}
    assert left_out == {"optimiser": 2 * len(arrays) + 2, "counter": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "release"]


def test_the_record_has_sizes_and_digests_of_what_was_read(release, tmp_path):
    import hashlib

    folder, _ = release
    record = convert_openai(folder, tmp_path / "model")
    assert [file["name"] for file in record["files"]] == [
        "model.ckpt-1000.index",
        "model.ckpt-1000.data-00000-of-00002",
        "model.ckpt-1000.data-00001-of-00002",
        "kmeans_centers.npy",
    ]
    card = (tmp_path / "model" / "README.md").read_text()
    for file in record["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert f"| {file['name']} | {len(content):,} | {file['sha256']} |" in card
    assert "modified MIT" in card
    assert f"| parameters | {record['parameters']:,} |" in card
    assert "| training step | 1,000 |" in card


def test_the_same_files_make_the_same_bytes(release, tmp_path):
    for name in ("a", "b"):
        convert_openai(release[0], tmp_path / name / "model")
    for path in (tmp_path / "a" / "model").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "model" / path.name).read_bytes()


def test_transformers_reads_the_configuration(release, tmp_path):
    from imagegpt.config import ImageGPTConfig

    convert_openai(release[0], tmp_path / "model")
    config = ImageGPTConfig.from_pretrained(tmp_path / "model")
    assert config.spec == checkpoint.read_spec(tmp_path / "model")
    assert (config.attn_pdrop, config.resid_pdrop, config.embd_pdrop) == (0.0, 0.0, 0.0)


def test_bert_has_no_start_and_sees_all(tmp_path):
    write_release(tmp_path / "release", bert=True)
    record = convert_openai(tmp_path / "release", tmp_path / "model")
    assert record["objective"] == "BERT"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["is_causal"] is False
    assert not checkpoint.load_tensors(tmp_path / "model")["transformer.wte.weight"][-1].any()
    assert "BERT" in (tmp_path / "model" / "README.md").read_text()


def test_tensors_in_slices(tmp_path):
    arrays = variables(variable_shapes(**SMALL))
    cuts = {"model/h0/mlp/c_fc/w": [[(0, 3), (0, -1)], [(3, 5), (0, -1)]]}
    (tmp_path / "release").mkdir()
    write_bundle(tmp_path / "release" / "model.ckpt-5.index", arrays, 3, cuts)
    np.save(tmp_path / "release" / "kmeans_centers.npy", colours(5))
    convert_openai(tmp_path / "release", tmp_path / "model")
    found = checkpoint.load_tensors(tmp_path / "model")["transformer.h.0.mlp.c_fc.weight"]
    np.testing.assert_array_equal(found, arrays["model/h0/mlp/c_fc/w"])


def test_progress_ends_at_all(release, tmp_path, monkeypatch):
    monkeypatch.setattr("imagegpt.convert.openai.MEGABYTE", 1)
    seen = []
    convert_openai(release[0], tmp_path / "model", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1


def test_one_step_of_several(tmp_path):
    made = {step: write_release(tmp_path / "release", step, seed=step) for step in (1, 2)}
    with pytest.raises(InputError, match="steps: 1, 2; name one"):
        convert_openai(tmp_path / "release", tmp_path / "model")
    record = convert_openai(tmp_path / "release", tmp_path / "model", step=1)
    assert record["step"] == 1
    found = checkpoint.load_tensors(tmp_path / "model")["transformer.wpe.weight"]
    np.testing.assert_array_equal(found, made[1]["model/wpe"])


def test_an_index_with_the_shards_of_another_step(tmp_path):
    for step in (1, 2):
        write_release(tmp_path / "release", step, seed=step)
    for number in range(2):
        other = shard_path(tmp_path / "release" / "model.ckpt-2.index", number, 2)
        other.replace(shard_path(tmp_path / "release" / "model.ckpt-1.index", number, 2))
    with pytest.raises(InputError, match=r"model\.ckpt-1\.data-0000\d-of-00002 is damaged"):
        convert_openai(tmp_path / "release", tmp_path / "model", step=1)


def test_tensors_of_unknown_use_are_told(tmp_path):
    arrays = variables(variable_shapes(**SMALL))
    (tmp_path / "release").mkdir()
    more = {f"model/extra{number}": np.zeros(3, np.float32) for number in range(7)}
    write_bundle(tmp_path / "release" / "m.index", arrays | more | {"model/clf/wclf": np.zeros((2, 8), np.float32)})
    np.save(tmp_path / "release" / "kmeans_centers.npy", colours(5))
    with pytest.warns(UserWarning, match=r"7 tensors of unknown use are left out: model/extra0, .*extra4, \.\.\."):
        record = convert_openai(tmp_path / "release", tmp_path / "model")
    assert record["left_out"] == {"class head": ["model/clf/wclf"], "unknown": list(more)}
    assert record["step"] is None
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`model/extra6`" in card
    assert "not told by the files" in card


def test_damage_in_what_is_left_out_is_noticed_too(release, tmp_path):
    folder, arrays = release
    index = folder / "model.ckpt-1000.index"
    made = arrays | {"global_step": np.asarray(7)}
    write_bundle(index, made)
    shard = shard_path(index, 0, 1)
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")  # the counter lies last
    with pytest.raises(InputError, match=rf"{shard.name} is damaged: the checksum of global_step"):
        convert_openai(folder, tmp_path / "model")


def test_a_type_that_openai_did_not_use(tmp_path):
    arrays = variables(variable_shapes(**SMALL)) | {"model/wpe": np.zeros((16, 8))}
    (tmp_path / "release").mkdir()
    write_bundle(tmp_path / "release" / "m.index", arrays)
    with pytest.raises(InputError, match=r"m\.index: model/wpe is <f8; OpenAI's are float32"):
        convert_openai(tmp_path / "release", tmp_path / "model", palette="none.npy")


def test_a_missing_tensor_is_named_with_its_file(tmp_path):
    arrays = variables(variable_shapes(**SMALL))
    del arrays["model/h1/attn/k_proj"]
    (tmp_path / "release").mkdir()
    write_bundle(tmp_path / "release" / "m.index", arrays)
    with pytest.raises(InputError, match=r"m\.index: model/h1/attn/k_proj is missing"):
        convert_openai(tmp_path / "release", tmp_path / "model")


# --- the palette


def test_a_palette_from_elsewhere(release, tmp_path):
    folder, _ = release
    (folder / "kmeans_centers.npy").rename(tmp_path / "colours.npy")
    with pytest.raises(InputError, match=r"kmeans_centers\.npy: there is no such file, so the palette is unknown"):
        convert_openai(folder, tmp_path / "model")
    record = convert_openai(folder, tmp_path / "model", palette=tmp_path / "colours.npy")
    assert record["files"][-1]["name"] == "colours.npy"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (colours(4), r"has shape \(4, 3\); the model's palette has shape \(5, 3\)"),
        (colours(5).T, "has shape"),
        (colours(5)[0], "holds no palette"),
        (colours(5) * 3, r"holds a colour outside of \[-1, 1\]"),
        (np.full((5, 3), np.nan, np.float32), r"holds a colour outside of \[-1, 1\]"),
        (np.zeros((5, 3), np.uint8), "holds no palette: it should be floats"),
    ],
)
def test_palettes_that_are_another_models(release, tmp_path, made, why):
    np.save(release[0] / "kmeans_centers.npy", made)
    with pytest.raises(InputError, match=r"kmeans_centers\.npy " + why):
        convert_openai(release[0], tmp_path / "model")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x80\x04K\x01.", b"x" * 1000, b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"]
)
def test_palettes_that_are_none(release, tmp_path, content):
    (release[0] / "kmeans_centers.npy").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        convert_openai(release[0], tmp_path / "model")
    path = release[0] / "kmeans_centers.npy"
    assert str(refusal.value) == f"{path} holds no palette: give an .npy file of floats of shape (K, 3)."


def test_a_palette_in_a_folders_place(release, tmp_path):
    with pytest.raises(InputError, match=r"can't be read: Is a directory\.$"):
        convert_openai(release[0], tmp_path / "model", palette=release[0])


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_palette_is_never_unpickled(release, tmp_path):
    np.save(release[0] / "kmeans_centers.npy", np.array([Trap(tmp_path / "trapped")]), allow_pickle=True)
    with pytest.raises(InputError, match="holds no palette"):
        convert_openai(release[0], tmp_path / "model")
    assert not (tmp_path / "trapped").exists()


def test_a_palette_that_claims_to_be_huge(release, tmp_path):
    path = release[0] / "kmeans_centers.npy"
    content = path.read_bytes().replace(b"(5, 3)", b"(999999999999, 3)").replace(b" " * 11, b"", 1)
    path.write_bytes(content)
    with less_memory_than(1 << 24), pytest.raises(InputError, match="holds no palette"):
        convert_openai(release[0], tmp_path / "model")


# --- whole or not at all


def test_a_folder_that_holds_something(release, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(InputError, match="holds something"):
        convert_openai(release[0], tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


def test_no_room_on_the_disk(release, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("imagegpt.convert.space.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="bytes are to be written, and the disk has 1,000 free"):
        convert_openai(release[0], tmp_path / "deep" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interruption_leaves_nothing(release, tmp_path, monkeypatch, error):
    def stop(record, spec, folder):
        raise error

    monkeypatch.setattr("imagegpt.convert.openai.write_card", stop)
    with pytest.raises(type(error)):
        convert_openai(release[0], tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


# --- memory


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """A model of 20 MB, and 40 MB of Adam's, converts in a few times its largest tensor."""
    shapes = variable_shapes(layers=7, width=256, heads=4, colors=64, positions=256)
    arrays = variables(shapes)
    (tmp_path / "release").mkdir()
    write_bundle(tmp_path / "release" / "m-1.index", arrays | optimiser(arrays), 4, size=4096)
    np.save(tmp_path / "release" / "kmeans_centers.npy", colours(64))
    whole, largest = sum(array.nbytes for array in arrays.values()), max(array.nbytes for array in arrays.values())
    del arrays
    assert whole > 19_000_000
    with less_memory_than(5_000_000 + 4 * largest):
        convert_openai(tmp_path / "release", tmp_path / "model")


def test_no_warning_without_a_reason(release, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_openai(release[0], tmp_path / "model")
