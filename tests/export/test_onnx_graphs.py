"""Exported graphs against torch: the package's own models and transformers', whatever the configuration says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers.models.imagegpt import modeling_imagegpt as peer

from exporting import (
    assert_near,
    empty_past,
    exported,
    feed_of,
    ids_of,
    present_of,
    run,
    save,
    saved,
    session_of,
    states_of,
)
from faces import CLASSES, LAYERS, SOS, Causal, Classifier, T, Trunk, make
from imagegpt.checkpoint import EMBEDDED
from imagegpt.export import export_onnx
from imagegpt.export.activations import ACTIVATIONS
from imagegpt.export.weights import PEAK

OPTIONS = {
    "plain": {},
    "tied head": {"tie_word_embeddings": True},
    "divided by the layer": {"scale_attn_by_inverse_layer_idx": True},
    "not divided by the width": {"scale_attn_weights": False},
    "reordered and upcast": {"reorder_and_upcast_attn": True},
    "narrow MLP": {"n_inner": 24},
    "heads of width 6": {"n_embd": 36, "n_head": 6},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "BERT": {"is_causal": False},
    "pruned": {"pruned": {0: [1]}},
}
FUNCTIONS = ("model", "classification", "decoder")


def model_of(folder, face=Causal):
    return face.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_configuration_gives_the_states_that_torch_gives(option, tmp_path):
    folder = saved(tmp_path / "model", **OPTIONS[option])
    session, model = exported(folder, tmp_path / "out"), model_of(folder)
    for rows, length in [(1, 1), (3, 7), (2, T)]:
        ids = ids_of(rows, length)
        assert_near(run(session, input_ids=ids)["last_hidden_state"], states_of(model, ids))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_one_that_transformers_has(activation, tmp_path):
    folder = saved(tmp_path / "model", activation_function=activation)
    got = run(exported(folder, tmp_path / "out"), input_ids=ids_of(2, 5))["last_hidden_state"]
    assert_near(got, states_of(model_of(folder), ids_of(2, 5)))
    half = run(exported(folder, tmp_path / "half", precision="fp16"), input_ids=ids_of(2, 5))["last_hidden_state"]
    assert_near(half, got, 2e-2)


@pytest.mark.parametrize("option", ["plain", "divided by the layer", "large epsilon"])
def test_hidden_states_are_those_that_transformers_numbers_so(option, tmp_path):
    folder = saved(tmp_path / "model", **OPTIONS[option])
    session = exported(folder, tmp_path / "out", hidden=range(LAYERS + 1))
    model = peer.ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    ids = ids_of(2, 9)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    got = run(session, input_ids=ids)
    assert [*got] == ["last_hidden_state", *(f"hidden_states.{layer}" for layer in range(LAYERS + 1))]
    for layer, state in enumerate(wanted):
        assert_near(got[f"hidden_states.{layer}"], state.numpy())


@pytest.mark.parametrize("start", [False, True], ids=["the ids", "behind SOS"])
@pytest.mark.parametrize("option", ["plain", "pruned", "BERT"])
def test_a_classifier_gives_the_logits_that_torch_gives(option, start, tmp_path):
    folder = saved(tmp_path / "model", Classifier, classifier_start=start, **OPTIONS[option])
    session, model = exported(folder, tmp_path / "out", "classification"), model_of(folder, Classifier)
    for rows, length in [(1, 1), (3, 7), (2, T)]:
        ids = ids_of(rows, length)
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).logits.numpy()
        [logits] = run(session, input_ids=ids).values()
        assert logits.shape == (rows, CLASSES)
        assert_near(logits, wanted)


def test_a_classifier_is_transformers_one(tmp_path):
    folder = saved(tmp_path / "model", Classifier)
    ids = ids_of(3, T)
    with torch.no_grad():
        wanted = peer.ImageGPTForImageClassification.from_pretrained(folder).eval()(torch.from_numpy(ids)).logits
    assert_near(run(exported(folder, tmp_path / "out", "classification"), input_ids=ids)["logits"], wanted.numpy())


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "BERT"])
def test_a_decoder_continues_any_past(option, tmp_path):
    folder = saved(tmp_path / "model", **OPTIONS[option])
    session, model = exported(folder, tmp_path / "out", "decoder"), model_of(folder)
    ids = ids_of(3, T)
    ids[:, 0] = SOS
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids), use_cache=True)
    past, logits = empty_past(model.config.spec, 3), []
    for part in np.split(ids, [1, 2, 7], axis=1):  # from nothing, one id, several, several behind a past
        outputs = run(session, **feed_of(part, past))
        past = present_of(outputs, LAYERS)
        logits.append(outputs["logits"])
    assert_near(np.concatenate(logits, 1), wanted.logits.numpy())
    for (keys, values), layer in zip(past, wanted.past_key_values.layers, strict=True):
        assert_near(keys, layer.keys.numpy())
        assert_near(values, layer.values.numpy())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_checker_and_the_reference_of_onnx_agree(function, precision, tmp_path):
    """Nothing rests on onnxruntime alone, nor on operators of its own."""
    folder = saved(tmp_path / "model", Classifier if function == "classification" else Causal)
    session = exported(folder, tmp_path / "out", function, precision=precision)
    [path] = (tmp_path / "out").glob("*.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    feed = {"input_ids": ids_of(2, 5)}
    if function == "decoder":
        spec, dtype = make(Causal).config.spec, np.float16 if precision == "fp16" else np.float32
        feed = feed_of(ids_of(2, 5), empty_past(spec, 2, dtype))
    names = [value.name for value in session.get_outputs()]
    reference = ReferenceEvaluator(proto).run(names, feed)
    for got, wanted in zip(session.run(names, feed), reference, strict=True):
        assert got.dtype == wanted.dtype
        # A number that is halfway between two levels may go either way.
        assert_near(
            got.astype(np.float32), wanted.astype(np.float32), {"fp32": 1e-5, "fp16": 2e-2, "int8": 2e-2}[precision]
        )


def test_more_ids_than_positions_are_an_error_and_not_a_wrong_answer(tmp_path):
    folder = saved(tmp_path / "model")
    for function in ("model", "decoder"):
        session = exported(folder, tmp_path / f"out {function}", function)
        feed = {"input_ids": ids_of(1, T + 1)}
        if function == "decoder":
            spec = make(Causal).config.spec
            past = present_of(run(session, **feed_of(ids_of(1, T), empty_past(spec, 1))), LAYERS)
            feed = feed_of(ids_of(1, 1), past)
        with pytest.raises(Exception, match=r"out of data bounds|out of bounds"):
            run(session, **feed)


def test_norms_survive_numbers_whose_squares_overflow_in_half_precision(tmp_path):
    model = make(Causal)
    with torch.no_grad():
        model.transformer.wte.weight[:, 3] = 900.0
    folder, ids = save(model, tmp_path / "model"), ids_of(2, T)
    half = run(exported(folder, tmp_path / "fp16", precision="fp16"), input_ids=ids)["last_hidden_state"]
    assert_near(half, states_of(model, ids), 2e-2)


def test_scores_survive_products_that_overflow_in_half_precision(tmp_path):
    model = make(Causal)
    attention = model.transformer.h[0].attn
    ids = ids_of(2, T)
    with torch.no_grad():
        attention.c_attn.weight.mul_(150)
        attention.c_proj.weight.div_(150)
        x = model.transformer.wte(torch.from_numpy(ids)) + model.transformer.wpe.weight[:T]
        q, k, _ = (attention._heads(part) for part in attention.c_attn(model.transformer.h[0].ln_1(x)).chunk(3, -1))
    assert (q @ k.mT).abs().max() * attention.scaling > 65504
    session = exported(save(model, tmp_path / "model"), tmp_path / "fp16", precision="fp16")
    half = run(session, input_ids=ids)["last_hidden_state"]
    assert np.isfinite(half).all()
    assert np.median(np.abs(half - states_of(model, ids))) < 2e-2  # keys that nearly tie go either way


def test_int8_rows_do_not_depend_on_what_else_is_in_the_batch(tmp_path):
    folder = saved(tmp_path / "model")
    session, ids = exported(folder, tmp_path / "out", precision="int8"), ids_of(3, T)
    together = run(session, input_ids=ids)["last_hidden_state"]
    for row in range(3):
        np.testing.assert_array_equal(run(session, input_ids=ids[row : row + 1])["last_hidden_state"][0], together[row])
    away = together - states_of(model_of(folder), ids)
    assert 0 < np.sqrt(np.mean(away**2)) < 0.1


def test_int8_weights_are_small_levels_with_a_scale_for_each_output(tmp_path):
    folder = saved(tmp_path / "model")
    exported(folder, tmp_path / "out", precision="int8")
    found = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    }
    levels, scales = (found[f"transformer.h.0.mlp.c_fc.{part}"] for part in ("levels", "scales"))
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() == PEAK
    weight = make(Trunk).h[0].mlp.c_fc.weight.detach().numpy()
    assert np.abs(levels * scales - weight).max() <= scales.max() / 2 * 1.001


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano") / "out"
    export_onnx("nano", out, only=["model"], check=False)
    return session_of(out / "model.onnx")


@pytest.fixture(scope="module")
def nano_in_torch():
    return Causal.from_pretrained(EMBEDDED["nano"], attn_implementation="sdpa").eval()


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (1, 1024), (3, 1), (3, 7), (3, 1024)])
def test_nano_is_within_1e_4_of_torch_at_any_batch_and_length(rows, length, nano, nano_in_torch):
    ids = ids_of(rows, length, 512)
    got = run(nano, input_ids=ids)["last_hidden_state"]
    np.testing.assert_allclose(got, states_of(nano_in_torch, ids), atol=1e-4, rtol=0)
