"""The files themselves: weights inside and beside, whatever form the checkpoint has, little memory, all or nothing."""

from __future__ import annotations

import errno
import json
import tracemalloc

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import classifiers
from exporting import assert_near, exported, ids_of, run, save, saved, session_of
from faces import CLASSES, LAYERS, Causal, Classifier, T, Trunk, make
from imagegpt import ImageGPTConfig, InputError
from imagegpt.checkpoint import expected_shapes
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.export import blocks, export_onnx, onnx_file, to_onnx
from imagegpt.export.check import TOLERANCES
from imagegpt.onnx import InferenceSession
from imagegpt.tensors import write_tensors

FILES = {"config.json", "preprocessor_config.json"}
MIB = 2**20


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return classifiers.make(tmp_path_factory.mktemp("files") / "both")


def outputs_of(folder):
    ids = classifiers.ids_of(2)
    return [
        *session_of(folder / "model.onnx").run(None, {"input_ids": ids}),
        *session_of(folder / "model_classification.onnx").run(None, {"input_ids": ids}),
    ]


def test_a_model_is_exported_with_every_head_it_has(both, tmp_path):
    report = export_onnx(both, tmp_path / "out")
    graphs = {"model.onnx", "model_classification.onnx", "decoder.onnx"}
    assert names(tmp_path / "out") == FILES | graphs == set(report.files)
    assert report.files["model.onnx"] == (tmp_path / "out" / "model.onnx").stat().st_size
    checked = [(one.function, one.output) for one in report.differences]
    assert checked == [("model", "last_hidden_state"), ("classification", "logits"), ("decoder", "logits")]
    assert all(one.relative <= one.tolerance == TOLERANCES["fp32"] for one in report.differences)
    assert json.dumps(report.as_record())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_beside_the_graphs_are_the_same_and_there_once(precision, both, tmp_path):
    export_onnx(both, tmp_path / "inside", precision=precision, check=False)
    export_onnx(both, tmp_path / "beside", precision=precision, external_data=True)
    beside = tmp_path / "beside"
    for one, other in zip(outputs_of(tmp_path / "inside"), outputs_of(beside), strict=True):
        np.testing.assert_array_equal(one, other)
    stored = {}
    for name in ("model.onnx", "model_classification.onnx", "decoder.onnx"):
        onnx.checker.check_model(str(beside / name), full_check=True)
        for tensor in onnx.load(beside / name, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                assert entries["location"] == "model.onnx_data"
                assert stored.setdefault(tensor.name, entries) == entries
                assert int(entries["offset"]) % 4096 == 0
    last = max(stored.values(), key=lambda entries: int(entries["offset"]))
    assert (beside / "model.onnx_data").stat().st_size == int(last["offset"]) + int(last["length"])


def test_more_than_two_gibibytes_go_beside_the_graph_by_themselves(both, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "LIMIT", 10_000)
    export_onnx(both, tmp_path / "out")
    assert "model.onnx_data" in names(tmp_path / "out")


def test_what_onnx_reads_is_what_was_written(tmp_path):
    """The message is put together by hand; `onnx` must find the weights, and nothing else, in it."""
    folder = saved(tmp_path / "model")
    exported(folder, tmp_path / "out", "decoder")
    proto = onnx.load(tmp_path / "out" / "decoder.onnx")
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    model = make(Causal)
    for name, value in model.state_dict().items():
        value = value.numpy()
        np.testing.assert_array_equal(found.pop(name), value.T if name == "lm_head.weight" else value)
    assert all(value.size <= 4 for value in found.values())  # constants
    assert (tmp_path / "out" / "decoder.onnx").read_bytes() == _sorted_again(proto, model)


def _sorted_again(proto, model):
    """The message as protobuf writes it, with the constants before the weights, as we do."""
    parts = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants = [tensor for name, tensor in parts.items() if name not in model.state_dict()]
    weights = [tensor for name, tensor in parts.items() if name in model.state_dict()]
    outer, graph, tail = onnx.ModelProto(), onnx.GraphProto(), onnx.GraphProto()
    outer.CopyFrom(proto)
    outer.ClearField("graph")
    graph.CopyFrom(proto.graph)
    del graph.initializer[:]
    graph.initializer.extend(constants)
    tail.initializer.extend(weights)
    inner = graph.SerializeToString() + tail.SerializeToString()
    head = onnx_file._prefix(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(inner))
    return outer.SerializeToString() + head + inner


@pytest.mark.parametrize("number", [0, 127, 128, 300, 2**31, 2**40])
def test_lengths_are_protobufs(number):
    from google.protobuf.internal.encoder import _VarintBytes

    assert onnx_file._varint(number) == _VarintBytes(number)


@pytest.mark.parametrize("form", ["shards", "half", "bfloat16", "bin"])
def test_every_form_of_a_checkpoint_is_read(form, tmp_path):
    model = make(Causal)
    if form in ("half", "bfloat16"):
        model = model.to(torch.float16 if form == "half" else torch.bfloat16)
    folder = save(model, tmp_path / "model")
    if form == "shards":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        assert (folder / "model.safetensors.index.json").exists()
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    report = export_onnx(folder, tmp_path / "out")
    assert {"model.onnx", "decoder.onnx"} <= set(report.files)


def test_a_classifier_alone_a_bert_model_and_a_trunk_alone_are_exported(tmp_path):
    cases = {
        "classifier": (saved(tmp_path / "classifier", Classifier), {"model.onnx", "model_classification.onnx"}),
        "bert": (saved(tmp_path / "bert", is_causal=False), {"model.onnx"}),
    }
    trunk = saved(tmp_path / "trunk", Classifier)
    classifiers.change(trunk, **{"score.weight": None})
    cases["trunk"] = trunk, {"model.onnx"}
    for name, (folder, graphs) in cases.items():
        assert set(export_onnx(folder, tmp_path / f"{name} out").files) == FILES | graphs


@pytest.mark.parametrize(
    ("precision", "external", "dtype"),
    [
        ("fp32", False, np.float32),
        ("fp32", True, np.float16),
        ("fp16", True, np.float32),
        ("int8", False, np.float32),
    ],
)
def test_an_export_takes_the_memory_of_one_weight(precision, external, dtype, tmp_path):
    config = ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=512, n_layer=4, n_head=8)
    (tmp_path / "model").mkdir()
    config.save_pretrained(tmp_path / "model")
    shapes = expected_shapes(config.spec)
    entries = {name: (np.dtype(dtype), shape) for name, shape in shapes.items()}
    numbers = np.random.default_rng(0).normal(size=MIB).astype(dtype)

    def chunks(name):
        return [np.resize(numbers, shapes[name])]

    write_tensors(tmp_path / "model" / "model.safetensors", entries, chunks, {"format": "pt"})
    save_preprocessor(tmp_path / "model", PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3))), Framing(4, 4))
    tracemalloc.start()
    try:
        export_onnx(
            tmp_path / "model",
            tmp_path / "out",
            precision=precision,
            external_data=external,
            check=False,
            only=["model"],
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(int(np.prod(shape)) for shape in shapes.values()) * 4
    assert size > 48 * MIB  # in float32
    assert peak < 20 * MIB  # the largest weight has 4 MiB; int8 holds it in a few forms


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(both, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InputError, match="out holds something"):
        export_onnx(both, tmp_path / "out")
    assert names(tmp_path / "out") == {"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file"):
        export_onnx(both, tmp_path / "file")
    with pytest.raises(InputError, match="file is a file"):
        export_onnx(both, tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    export_onnx(both, tmp_path / "empty", only=["model"], check=False)
    assert "model.onnx" in names(tmp_path / "empty")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "check"])
def test_what_is_stopped_leaves_nothing(error, where, both, tmp_path, monkeypatch):
    written = []

    def stop(*arguments):
        written.append(arguments)
        if where == "check" or len(written) == 5:
            raise error

    if where == "check":
        monkeypatch.setattr(to_onnx, "_check", stop)
    else:
        monkeypatch.setattr(onnx_file, "_write", stop)
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(kind) as raised:
        export_onnx(both, tmp_path / "new" / "out")
    assert names(tmp_path) == set()
    if kind is InputError:
        assert str(raised.value) == f"{tmp_path / 'new' / 'out'} can't be written: No space left on device."


def test_a_graph_that_is_another_function_is_found_and_not_kept(both, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks.GraphBuilder, "constant", _smaller(blocks.GraphBuilder.constant))
    with pytest.raises(
        InputError, match="exported model is another function than the model: last_hidden_state differs"
    ):
        export_onnx(both, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(to_onnx, "find_weight", _turned(to_onnx.find_weight))
    with pytest.raises(InputError, match="another function"):
        export_onnx(both, tmp_path / "out")
    assert names(tmp_path) == set()


def _smaller(constant):
    """Attention's scale is a tenth smaller."""

    def changed(self, value, *args):
        return constant(self, 0.9 * value if value == self.spec.attention_scale(0) else value, *args)

    return changed


def _turned(find):
    """One square weight of all is transposed."""

    def found(name, parameters, precision):
        weight = find(name, parameters, precision)
        if name != "transformer.h.1.attn.c_proj.weight":
            return weight
        return type(weight)(weight.dtype, weight.shape, lambda: weight.read().T)

    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["decoder"]}, "has no head that draws"),
        ({"only": ["nothing"]}, "There is no function 'nothing'"),
        ({"hidden": [LAYERS + 1]}, f"There are hidden states 0 to {LAYERS}, not {LAYERS + 1}"),
        ({"hidden": [-1]}, "There are hidden states 0 to"),
        ({"hidden": [1, 1]}, "named once each"),
        ({"hidden": [1], "only": ["classification"]}, "outputs of the function model"),
        ({"precision": "bf16"}, "precisions fp32, fp16, int8"),
    ],
)
def test_what_is_not_there_is_one_sentence(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_onnx(saved(tmp_path / "model", Classifier), tmp_path / "out", **options)
    assert names(tmp_path) == {"model"}


def test_heads_that_are_missing_and_models_of_other_kinds_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="has no class head"):
        export_onnx(saved(tmp_path / "causal"), tmp_path / "out", only=["classification"])
    with pytest.raises(InputError, match="bidirectional"):
        export_onnx(saved(tmp_path / "bert", is_causal=False), tmp_path / "out", only=["decoder"])
    with pytest.raises(InputError, match="cross-attention"):
        export_onnx(saved(tmp_path / "cross", add_cross_attention=True), tmp_path / "out")
    other = saved(tmp_path / "xielu")
    classifiers.configure(other, activation_function="xielu")
    with pytest.raises(InputError, match='no activation "xielu"; it has gelu, '):
        export_onnx(other, tmp_path / "out")
    classifiers.configure(other, activation_function="relu", quantization_config={"quant_method": "torchao"})
    with pytest.raises(InputError, match="quantised weights"):
        export_onnx(other, tmp_path / "out")
    (tmp_path / "causal" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        export_onnx(tmp_path / "causal", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_half_precision_are_refused(tmp_path):
    folder = saved(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="numbers beyond fp16's 65504"):
        export_onnx(folder, tmp_path / "out", precision="fp16")
    assert names(tmp_path) == {"model"}


def test_heads_have_the_outputs_that_the_config_says(tmp_path):
    folder = saved(tmp_path / "model", Classifier)
    export_onnx(folder, tmp_path / "out", check=False)
    session = InferenceSession(tmp_path / "out" / "model_classification.onnx")
    assert session.get_outputs()[0].shape == ["batch", CLASSES]
    assert session.classes == tuple(f"LABEL_{number}" for number in range(CLASSES))
    got = run(exported(folder, tmp_path / "again"), input_ids=ids_of(1, T))["last_hidden_state"]
    assert_near(got, make(Trunk)(torch.from_numpy(ids_of(1, T))).last_hidden_state.detach().numpy())
