"""VQ-VAEs in folders: ours and transformers' ways are one, and what can't be used is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.errors import InputError

WEIGHTS = "model.safetensors"


@pytest.fixture
def codec() -> VQVAE:
    torch.manual_seed(0)
    config = VQVAEConfig(
        factor=4, num_codes=16, code_width=4, width=8, blocks=2, block_width=4, decay=0.9, restart=0.1, commitment=1
    )
    made = VQVAE(config).eval()
    with torch.no_grad():
        made.quantizer.counts.uniform_(0, 9)
    return made


@pytest.fixture
def folder(codec, tmp_path):
    """One that a test may spoil."""
    codec.save(tmp_path)
    return tmp_path


def assert_equal(first: VQVAE, second: VQVAE) -> None:
    expected = first.state_dict()
    found = second.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
        assert found[name].dtype == weight.dtype
    for name in ("factor", "num_codes", "code_width", "width", "blocks", "block_width"):
        assert getattr(first.config, name) == getattr(second.config, name)
    for name in ("commitment", "decay", "restart"):
        assert getattr(first.config, name) == getattr(second.config, name)
    assert first.fingerprint == second.fingerprint


def write_ours(codec, folder):
    codec.save(folder)


def write_theirs(codec, folder):
    codec.save_pretrained(folder)


@pytest.mark.parametrize("write", [write_ours, write_theirs])
@pytest.mark.parametrize("read", [VQVAE.load, VQVAE.from_pretrained])
def test_what_is_written_either_way_is_read_either_way(codec, tmp_path, write, read):
    write(codec, tmp_path)
    again = read(tmp_path)
    assert_equal(codec, again)
    assert not again.training
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again.encode(image), codec.encode(image))
    np.testing.assert_array_equal(again.decode(codec.encode(image)), codec.decode(codec.encode(image)))


@pytest.mark.parametrize("read", [VQVAE.load, VQVAE.from_pretrained])
def test_what_is_read_learns_as_what_was_written(codec, folder, read):
    again = read(folder)
    for (name, weight), other in zip(codec.named_parameters(), again.parameters(), strict=True):
        assert weight.requires_grad == other.requires_grad == (not name.startswith("quantizer.")), name
        assert other.is_leaf
    assert (again.quantizer.decay, again.quantizer.restart) == (0.9, 0.1)


def test_both_ways_write_the_same_tensors(codec, tmp_path):
    (tmp_path / "ours").mkdir()
    codec.save(tmp_path / "ours")
    codec.save_pretrained(tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours" / WEIGHTS), load_file(tmp_path / "theirs" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_half_precision_is_kept_as_the_same_numbers_in_float32(codec, tmp_path):
    (tmp_path / "ours").mkdir()
    codec.bfloat16().save_pretrained(tmp_path / "theirs")
    again = VQVAE.load(tmp_path / "theirs")
    assert again.dtype == torch.float32
    assert again.fingerprint == codec.fingerprint
    with torch.no_grad():
        again.quantizer.codebook.add_(1e-4)  # no number of bfloat16 any more
    again.save(tmp_path / "ours")
    assert_equal(again, VQVAE.from_pretrained(tmp_path / "ours"))


def test_a_tensor_that_transformers_does_not_find_has_first_weights_and_the_others_stay(codec, folder):
    tensors = load_file(folder / WEIGHTS)
    lost = {"encoder.0.weight", "decoder.0.bias", "quantizer.counts"}
    save_file(
        {name: tensor for name, tensor in tensors.items() if name not in lost}, folder / WEIGHTS, {"format": "pt"}
    )
    again = VQVAE.from_pretrained(folder).state_dict()
    for name, weight in codec.state_dict().items():
        assert torch.equal(again[name], weight) == (name not in lost), name
    assert (again["quantizer.counts"] == 1).all()
    edge = 1 / (3 * 4 * 4) ** 0.5  # torch's own: uniform, to one by the square root of the inputs
    assert 0.8 * edge < again["encoder.0.weight"].abs().max() <= edge
    with pytest.raises(InputError, match=r"model\.safetensors: .* must have shape"):
        VQVAE.load(folder)


def test_a_folder_that_is_a_codec_and_nothing_else(codec, folder):
    (folder / "preprocessor_config.json").write_text(json.dumps({"vqvae": ".", "size": {"height": 8, "width": 12}}))
    again, framing = load_preprocessor(folder)
    assert again.fingerprint == codec.fingerprint
    assert (framing.height, framing.width) == (8, 12)


# --- what can't be used


def refused(folder, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        VQVAE.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def rewrite(folder, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"holds no VQ-VAE: it has no {name}")


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "none", r"it has no config\.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "3", "\udcff", '{"model_type": "gpt2"}'])
def test_a_config_of_something_else_is_named(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, r"config\.json")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"factor": 3}, "factor must be one of 2, 4, 8, not 3"),
        ({"num_codes": 1}, "num_codes must be"),
        ({"width": None}, "width must be"),
        ({"decay": 2}, "decay must be"),
        ({"restart": "x"}, "restart must be"),
        ({"num_codes": 17}, r"quantizer\.\w+ must have shape \(17,"),
        ({"num_codes": 10**12}, r"quantizer\.\w+ must have shape \(1000000000000,"),
        ({"num_codes": 10**30}, r"config\.json can't be used"),
        ({"code_width": 10**17}, r"config\.json can't be used|must have shape"),
        ({"blocks": 3}, "must have shape"),
        ({"blocks": 1}, "must have shape"),
        ({"factor": 2}, "must have shape"),
    ],
)
def test_numbers_that_can_not_be_or_do_not_fit_are_named(folder, entries, words):
    rewrite(folder, **entries)
    refused(folder, words)


def test_other_entries_are_other_peoples_business(codec, folder):
    rewrite(folder, comment="mine", dtype="float16", architectures=["VQVAE"])
    assert_equal(codec, VQVAE.load(folder))


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100, "cut"])
def test_a_damaged_file_of_weights_is_named(folder, content):
    if content == "cut":
        content = (folder / WEIGHTS).read_bytes()[:-1]
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, r"model\.safetensors is damaged")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "quantizer.codebook",
            lambda t: t.T.contiguous(),
            r"quantizer\.codebook must have shape \(16, 4\), not \(4, 16\)",
        ),
        ("encoder.0.bias", lambda t: None, r"encoder\.0\.bias must have shape \(4,\), not None"),
        ("decoder.0.bias", lambda t: t.fill_(float("nan")), r"decoder\.0\.bias holds a number that is not finite"),
        ("quantizer.counts", lambda t: t.fill_(float("inf")), r"quantizer\.counts holds a number that is not finite"),
        ("quantizer.counts", lambda t: t.int(), r"quantizer\.counts is of type I32"),
        ("extra", lambda t: torch.zeros(1), r"extra must have shape None, not \(1,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, name, change, words):
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = change(tensors.get(name))
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)
    refused(folder, words)


def test_a_pickle_is_never_read(codec, folder):
    (folder / WEIGHTS).unlink()
    torch.save(codec.state_dict(), folder / "pytorch_model.bin")
    refused(folder, "it has no model.safetensors")
