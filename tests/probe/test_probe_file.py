"""Probes on disk: what is written is read, and damage is told."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from imagegpt import __version__
from imagegpt.errors import InputError
from imagegpt.probe.linear import NEVER, LinearProbe
from imagegpt.probe.probe_file import KEY, SavedProbe, load_probe, save_probe


def some(width=5, classes=3) -> SavedProbe:
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(1, 2, size).astype(np.float32) for size in (width, width, (classes, width), classes)]
    arrays[3][0] = NEVER
    names = ("cat", "dög", "猫")[:classes]
    return SavedProbe(LinearProbe(*arrays), names, (4, 5), "mean", "nano", "abc", "lbfgs", 1e-3, 0.5, "photos")


def equal(ours: SavedProbe, theirs: SavedProbe) -> bool:
    same = all(
        np.array_equal(getattr(ours.probe, field.name), getattr(theirs.probe, field.name))
        for field in fields(LinearProbe)
    )
    return same and replace(ours, probe=theirs.probe) == theirs


@pytest.mark.parametrize("changes", [{}, {"accuracy": None, "layers": ()}, {"strength": 1}])
def test_what_is_written_is_read(tmp_path, changes):
    saved = replace(some(), **changes)
    save_probe(tmp_path / "a.safetensors", saved)
    assert equal(load_probe(tmp_path / "a.safetensors"), saved)
    assert saved.version == __version__
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_safetensors_library_reads_it(tmp_path):
    save_probe(tmp_path / "a", some())
    tensors = load_file(tmp_path / "a")
    assert {name: array.shape for name, array in tensors.items()} == {
        "mean": (5,),
        "scale": (5,),
        "weight": (3, 5),
        "bias": (3,),
    }
    with safe_open(tmp_path / "a", "np") as file:
        assert json.loads(file.metadata()[KEY])["classes"] == ["cat", "dög", "猫"]


def test_the_loaded_probe_scores_alike(tmp_path):
    save_probe(tmp_path / "a", some())
    x = np.random.default_rng(1).normal(size=(4, 5))
    np.testing.assert_array_equal(load_probe(tmp_path / "a").probe.scores(x), some().probe.scores(x))


def test_a_file_that_was_there_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    save_probe(tmp_path / "a", some())
    monkeypatch.setattr(
        "imagegpt.probe.probe_file.write_tensors", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(InputError, match="can't be written"):
        save_probe(tmp_path / "a", replace(some(), data="other"))
    assert load_probe(tmp_path / "a").data == "photos"


def test_names_must_fit(tmp_path):
    with pytest.raises(InputError, match="2 names don't fit 3 classes"):
        save_probe(tmp_path / "a", replace(some(), classes=("a", "b")))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="There is no probe"):
        load_probe(tmp_path / "a")


def spoiled(path, tensors=(), told=(), metadata=None):
    """A probe with other tensors or metadata."""
    save_probe(path, some())
    arrays = {**load_file(path), **dict(tensors)}
    with safe_open(path, "np") as file:
        kept = json.loads(file.metadata()[KEY])
    kept = {name: value for name, value in {**kept, **dict(told)}.items() if value is not ...}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_file(arrays, path, {KEY: json.dumps(kept)} if metadata is None else metadata)


DAMAGE = [
    ({"tensors": {"mean": None}}, "has the tensors bias, scale, weight"),
    ({"tensors": {"more": np.zeros(1, np.float32)}}, "has the tensors"),
    ({"tensors": {"bias": np.zeros(4, np.float32)}}, r"bias is of shape \(4,\), not \(3,\)"),
    ({"tensors": {"mean": np.zeros((5, 1), np.float32)}}, r"mean is of shape"),
    ({"tensors": {"weight": np.full((3, 5), np.nan, np.float32)}}, "weight is not finite"),
    ({"tensors": {"scale": np.zeros(5, np.float32)}}, "scale is not positive"),
    ({"tensors": {"bias": np.zeros(3, np.int32)}}, "type I32"),
    ({"told": {"classes": ["a"]}}, "weight is of shape"),
    ({"told": {"classes": "abc"}}, "its classes is 'abc'"),
    ({"told": {"layers": [1.5]}}, "its layers is"),
    ({"told": {"strength": None}}, "its strength is None"),
    ({"told": {"model": ...}}, "its model is None"),
    ({"told": {"format": 2}}, "another format"),
    ({"metadata": {"format": "pt"}}, "does not say that it is one"),
    ({"metadata": {KEY: "{"}}, "does not say that it is one"),
    ({"metadata": {KEY: "3"}}, "does not say that it is one"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_told_with_the_files_name(tmp_path, changes, message):
    spoiled(tmp_path / "a.safetensors", **changes)
    with pytest.raises(InputError, match=message) as error:
        load_probe(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value)


def test_a_file_of_features_is_no_probe(tmp_path):
    path = tmp_path / "features.safetensors"
    save_file({"layer.1": np.zeros((2, 3), np.float32), "labels": np.zeros(2, np.int64)}, path, {"imagegpt": "{}"})
    with pytest.raises(InputError) as refusal:
        load_probe(path)
    assert str(refusal.value) == f"{path} is no probe: its metadata does not say that it is one."


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "a"
    save_probe(path, some())
    return path, path.read_bytes()


@given(st.data())
def test_a_cut_file_is_refused(content, data):
    path, whole = content
    other = path.with_name("cut")
    other.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError):
        load_probe(other)


@given(st.data())
def test_a_changed_header_is_read_or_refused(content, data):
    path, whole = content
    place = data.draw(st.integers(0, 600))
    changed = bytearray(whole)
    changed[place] = data.draw(st.integers(0, 255))
    other = path.with_name("changed")
    other.write_bytes(changed)
    with suppress(InputError):
        load_probe(other)


@pytest.mark.parametrize(
    "module",
    [
        *("linear", "sweep", "low_data", "neighbours", "plane", "ridge", "probe_file", "curve_file", "plot"),
        *("solvers", "selection"),
    ],
)
def test_importing_loads_nothing_heavy(module):
    code = f"import imagegpt.probe.{module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "sklearn", "matplotlib", "transformers", "scipy", "safetensors"}
