"""torch's exported programs: the same functions, for any batch, length and past, without this package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from decoding import decode
from exporting import save, saved
from faces import LAYERS, SOS, Causal, Classifier, T, assert_equal, make, random_ids
from imagegpt import InputError
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling
from imagegpt.export import export_torch, to_torch

SIZES = [(1, 1), (3, 7), (2, T)]


def program(path):
    return torch.export.load(path).module()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    saved(folder / "model")
    report = export_torch(folder / "model", folder / "out", hidden=[1])
    assert {one.output: one.relative for one in report.differences} == {
        "last_hidden_state": 0,
        "hidden_states.1": 0,
        "logits": 0,
    }
    return folder


@torch.no_grad()
def test_states_are_the_networks_at_any_batch_and_length(causal):
    got, wanted = program(causal / "out" / "model.pt2"), Causal.from_pretrained(causal / "model").transformer
    for size in SIZES:
        ids = random_ids(*size)
        last, first = got(ids)
        expected = wanted(ids, output_hidden_states=True)
        assert_equal((last, first), (expected.last_hidden_state, expected.hidden_states[1]))


@torch.no_grad()
def test_a_decoder_program_continues_any_past(causal):
    got, model = program(causal / "out" / "decoder.pt2"), Causal.from_pretrained(causal / "model")
    spec, ids = model.config.spec, torch.cat([torch.full((3, 1), SOS), random_ids(3, T - 1)], 1)
    shape = (3, spec.n_head, 0, spec.head_width)
    past, logits = [(torch.empty(shape), torch.empty(shape)) for _ in range(LAYERS)], []
    for part in ids.split([1, 1, 6, T - 8], 1):
        new, past = got(part, past)
        logits.append(new)
    wanted = model(ids, use_cache=True)
    assert_equal(torch.cat(logits, 1), wanted.logits)
    assert_equal(past, [(layer.keys, layer.values) for layer in wanted.past_key_values.layers])


@torch.no_grad()
def test_a_decoder_program_draws_the_greedy_ids_of_the_torch_backend(causal):
    got, model = program(causal / "out" / "decoder.pt2"), Causal.from_pretrained(causal / "model")
    spec = model.config.spec
    shape = (2, spec.n_head, 0, spec.head_width)
    past, ids = [(torch.empty(shape), torch.empty(shape)) for _ in range(LAYERS)], torch.full((2, 1), SOS)
    drawn = []
    for _ in range(T):
        logits, past = got(ids, past)
        drawn.append(ids := logits[:, -1:].argmax(-1))
    nothing = np.empty((2, 0), np.int64)
    wanted = decode(TorchBackend(model), nothing, range(2), Sampling(temperature=0), np.zeros((2, T)))
    np.testing.assert_array_equal(torch.cat(drawn, 1).numpy(), wanted)


@pytest.mark.parametrize("start", [False, True], ids=["the ids", "behind SOS"])
@torch.no_grad()
def test_a_classifier_program_gives_the_networks_logits(start, tmp_path):
    folder = saved(tmp_path / "model", Classifier, classifier_start=start)
    report = export_torch(folder, tmp_path / "out", only=["classification"])
    assert set(report.files) == {"model_classification.pt2", "config.json", "preprocessor_config.json"}
    got = program(tmp_path / "out" / "model_classification.pt2")
    for size in SIZES:
        assert_equal(got(random_ids(*size)), make(Classifier, classifier_start=start)(random_ids(*size)).logits)


@torch.no_grad()
def test_a_bert_model_is_exported_without_a_mask(tmp_path):
    folder = saved(tmp_path / "model", is_causal=False)
    assert set(export_torch(folder, tmp_path / "out").files) == {"model.pt2", "config.json", "preprocessor_config.json"}
    wanted = Causal.from_pretrained(folder).transformer(random_ids(3, 7)).last_hidden_state
    assert_equal(program(tmp_path / "out" / "model.pt2")(random_ids(3, 7))[0], wanted)


def test_half_precisions_are_exported(tmp_path):
    report = export_torch(saved(tmp_path / "model"), tmp_path / "out", precision="bf16", only=["decoder"])
    [one] = report.differences
    assert 0 < one.relative <= one.tolerance


def test_a_program_runs_without_this_package_and_says_what_it_is(causal):
    code = """
import json, sys, torch
files = {"imagegpt.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
states, first = program(torch.zeros(3, 5, dtype=torch.long))
print(json.dumps({"shape": list(states.shape), "grid": json.loads(json.loads(files["imagegpt.json"])["imagegpt.grid"]),
                  "loaded": sorted({"imagegpt", "transformers"} & set(sys.modules))}))
"""
    path = str(causal / "out" / "model.pt2")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"shape": [3, 5, 32], "grid": [3, 4], "loaded": []}


def test_a_program_that_is_another_function_is_found_and_not_kept(tmp_path, monkeypatch):
    folder, write = saved(tmp_path / "model"), to_torch._write

    def spoiled(path, source, function, network, precision):
        network.trunk.ln_f.weight.data *= 1.01
        write(path, source, function, network, precision)

    monkeypatch.setattr(to_torch, "_write", spoiled)
    with pytest.raises(InputError, match="another function"):
        export_torch(folder, tmp_path / "out", only=["model"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precisions fp32, bf16, fp16, not 'int8'"),
        ({"only": ["decoder"]}, "has no head that draws"),
        ({"hidden": [LAYERS + 1]}, "There are hidden states"),
    ],
)
def test_what_torch_can_not_export_is_one_sentence(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_torch(saved(tmp_path / "model", Classifier), tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_of_too_few_positions_are_refused(tmp_path):
    folder = save(make(Causal, n_positions=3), tmp_path / "model", (1, 3))
    with pytest.raises(InputError, match="has 3 positions; programs of torch need at least 4"):
        export_torch(folder, tmp_path / "out")
