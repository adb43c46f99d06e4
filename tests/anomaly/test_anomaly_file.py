"""The file of a detector: what is damaged or foreign is told in one sentence, never read wrongly."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from anomalies import fitted
from imagegpt.anomaly.fitted import CHECKSUM, KEY, _checksum, load_fitted, save_fitted
from imagegpt.errors import InputError
from imagegpt.tensors import read_metadata, read_tensors, write_tensors


@pytest.fixture(scope="module")
def path(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "made.safetensors"
    save_fitted(path, fitted(tiny_folder).fitted)
    return path


def rewrite(path, to, facts=None, seal=True, **arrays):
    """The file with other facts or arrays, with a checksum that is right unless `seal` is False."""
    tensors = {name: np.array(array) for name, array in read_tensors(path).items()} | arrays
    tensors = {name: array for name, array in tensors.items() if array is not None}
    told = json.loads(read_metadata(path)[KEY]) | (facts or {})
    text = json.dumps({name: value for name, value in told.items() if value is not ...})
    metadata = {KEY: text, CHECKSUM: read_metadata(path)[CHECKSUM]}
    if seal and len(tensors) >= 4:
        metadata[CHECKSUM] = _checksum(text, tensors)
    entries = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    write_tensors(to, entries, lambda name: [tensors[name]], metadata)
    return to


def test_the_same_again(path, tmp_path):
    fitted = load_fitted(rewrite(path, tmp_path / "same.safetensors"))
    assert fitted.facts == load_fitted(path).facts
    save_fitted(tmp_path / "again.safetensors", fitted)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*; `imagegpt anomaly fit` makes one"):
        load_fitted(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        load_fitted(tmp_path)


def test_foreign_files(path, tmp_path, tiny_folder):
    picture = tmp_path / "picture.safetensors"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(InputError, match="damaged or no safetensors file"):
        load_fitted(picture)
    with pytest.raises(InputError, match="is no anomaly detector"):
        load_fitted(tiny_folder / "model.safetensors")
    with pytest.raises(InputError, match="another format"):
        load_fitted(rewrite(path, tmp_path / "other.safetensors", {"format": 2}))


def test_any_byte_that_is_changed_is_noticed(path, tmp_path):
    content, spoiled = path.read_bytes(), tmp_path / "spoiled.safetensors"
    rng = np.random.default_rng(0)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    places = [*range(8), *rng.integers(8, end, 150), *rng.integers(end, len(content), 150)]
    padding = set(range(len(content[:end].rstrip()), end))
    for place in {int(place) for place in places} - padding:
        spoiled.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
        with pytest.raises(InputError):
            load_fitted(spoiled)


def test_a_file_that_was_cut_off(path, tmp_path):
    content, spoiled = path.read_bytes(), tmp_path / "spoiled.safetensors"
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        spoiled.write_bytes(content[:length])
        with pytest.raises(InputError):
            load_fitted(spoiled)
    spoiled.write_bytes(content + b"x")
    with pytest.raises(InputError):
        load_fitted(spoiled)


@pytest.mark.parametrize(
    "facts",
    [
        {"colors": 0},
        {"colors": 1 << 30},
        {"colors": 3},
        {"grid": [8]},
        {"grid": [8, 0]},
        {"grid": "8x8"},
        {"fpr": 0},
        {"fpr": 0.01},
        {"fpr": float("nan")},
        {"fpr": "0.05"},
        {"precision": "fp8"},
        {"precision": []},
        {"compressor": "jpeg"},
        {"model": 3},
        {"seed": -1},
        {"records": True},
        {"fingerprint": ...},
        {"framing": None},
    ],
    ids=str,
)
def test_facts_that_can_not_be(path, tmp_path, facts):
    with pytest.raises(InputError, match="is damaged"):
        load_fitted(rewrite(path, tmp_path / "made.safetensors", facts))


def test_arrays_that_can_not_be(path, tmp_path):
    held = {name: np.array(array) for name, array in read_tensors(path).items()}
    events, counts, reference = held["events"], held["counts"], held["reference"]
    spoiled = reference.copy()
    spoiled[3, 2] = np.nan
    cases = [
        ({"events": None}, "it has the tensors"),
        ({"more": counts}, "it has the tensors"),
        ({"counts": counts.astype(np.int64)}, "it has the tensors"),
        ({"counts": counts[:-1]}, "belong together"),
        ({"events": events[:0], "counts": counts[:0]}, "belong together"),
        ({"events": events[::-1].copy()}, "16 colours"),
        ({"events": events + (1 << 40)}, "16 colours"),
        ({"events": events - (1 << 40)}, "16 colours"),
        ({"counts": -counts}, "16 colours"),
        ({"reference": spoiled}, "finite"),
        ({"reference": reference[:, :4].copy()}, "5 finite"),
        ({"reference": reference[:5].copy()}, "it takes 10"),
        ({"heldout": reference[:2].copy()}, "held-out"),
    ]
    for arrays, words in cases:
        with pytest.raises(InputError, match=words):
            load_fitted(rewrite(path, tmp_path / "made.safetensors", **arrays))


def test_numbers_that_were_changed_by_hand(path, tmp_path):
    reference = np.array(read_tensors(path)["reference"]) + 0.1
    with pytest.raises(InputError, match="checksum"):
        load_fitted(rewrite(path, tmp_path / "made.safetensors", seal=False, reference=reference))
    with pytest.raises(InputError, match="checksum"):
        load_fitted(rewrite(path, tmp_path / "made.safetensors", {"fpr": 0.5}, seal=False))


def test_a_folder_that_is_not_there(path, tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        save_fitted(tmp_path / "nowhere" / "made.safetensors", load_fitted(path))
