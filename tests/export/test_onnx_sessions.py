"""What a user does with exported files: the model card's examples, `imagegpt.onnx`, and drawing by decoder.onnx."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import onnx
import pytest
from PIL import Image

import classifiers
from decoding import decode
from exporting import ids_of
from imagegpt import ImageGPT, ImageGPTFeatureExtractor, ImageGPTImageProcessor, InputError, __version__
from imagegpt.checkpoint import fingerprint
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.export import export_onnx
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.onnx import InferenceSession, OnnxDecoder, generate

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with both heads."""
    return classifiers.make(tmp_path_factory.mktemp("sources") / "both", start=False)


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "out"
    export_onnx(source, folder, hidden=[1])
    return folder


def test_the_examples_of_the_model_card_run_with_only_paths_changed(source, out, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    shutil.copytree(out, "model")
    Image.fromarray(classifiers.pictures(1)[0]).save("cats.png")
    image = Image.open("cats.png")
    warnings.simplefilter("ignore", FutureWarning)

    from onnxruntime import InferenceSession

    # load model
    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("model")
    session = InferenceSession("model/model.onnx")

    # ONNX Runtime expects NumPy arrays as input
    inputs = feature_extractor(image, return_tensors="np")
    outputs = session.run(output_names=["last_hidden_state"], input_feed=dict(inputs))

    ids = torch.from_numpy(inputs["input_ids"])
    with torch.no_grad():
        network = ImageGPTForCausalImageModeling.from_pretrained(source)
        wanted = network.transformer(ids).last_hidden_state
    np.testing.assert_allclose(outputs[0], wanted, atol=1e-4)

    session = InferenceSession("model/model_classification.onnx")

    # ONNX Runtime expects NumPy arrays as input
    inputs = feature_extractor(image, return_tensors="np")
    outputs = session.run(output_names=["logits"], input_feed=dict(inputs))

    with torch.no_grad():
        wanted = ImageGPTForImageClassification.from_pretrained(source)(ids).logits
    np.testing.assert_allclose(outputs[0], wanted, atol=1e-4)


def test_a_session_knows_its_codec_grid_and_model(source, out):
    session = InferenceSession(out)
    assert session.path.name == "model.onnx"
    assert session.grid == classifiers.GRID and len(session.codec) == classifiers.K
    np.testing.assert_array_equal(session.codec.colors, ImageGPT(source).codec.colors)
    assert session.spec == ImageGPT(source).spec
    assert session.fingerprint == fingerprint(source) and session.precision == "fp32"
    assert session.metadata.version == __version__ and session.classes == ()
    assert InferenceSession(out / "model_classification.onnx").classes == classifiers.CLASSES
    pictures = classifiers.pictures(2)
    inputs = session.processor(pictures, return_tensors="np")
    np.testing.assert_array_equal(inputs["input_ids"], ImageGPT(source).encode(pictures))
    states, layer = session.run(None, dict(inputs))
    assert states.shape == layer.shape == (2, classifiers.T, classifiers.WIDTH)


def test_a_session_has_the_shape_of_onnxruntimes(out):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    session = InferenceSession(out / "model.onnx", options, ["CPUExecutionProvider"])
    assert isinstance(session, onnxruntime.InferenceSession)
    [ids] = session.get_inputs()
    assert (ids.name, ids.type, ids.shape) == ("input_ids", "tensor(int64)", ["batch", "length"])
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state", "hidden_states.1"]
    assert session.get_outputs()[0].shape == ["batch", "length", classifiers.WIDTH]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_folder_serves_the_processor(source, out):
    pictures = classifiers.pictures(2)
    processor = ImageGPTImageProcessor.from_pretrained(out)
    got = processor(pictures, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(got, ImageGPT(source).encode(pictures))
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_file_alone_says_everything(out, tmp_path):
    shutil.copy(out / "decoder.onnx", tmp_path / "other.onnx")
    session = InferenceSession(tmp_path)  # the only .onnx file in it
    assert session.grid == classifiers.GRID
    assert generate(session, samples=2).shape == (2, classifiers.T)


@pytest.mark.parametrize("given", [0, 40, classifiers.T])
def test_the_decoder_draws_the_greedy_ids_of_the_torch_backend(given, source, out):
    prompt = classifiers.ids_of(3)[:, :given]
    backend = TorchBackend(ImageGPTForCausalImageModeling.from_pretrained(source))
    numbers = np.zeros((3, classifiers.T))
    np.testing.assert_array_equal(generate(out, prompt), decode(backend, prompt, range(3), GREEDY, numbers))


def test_the_decoder_draws_the_samples_of_the_package_by_seed_and_number(source, out):
    prompt, sampling = classifiers.ids_of(1)[:, :20], Sampling(top_k=5)
    got = generate(out, prompt, samples=3, sampling=sampling, seed=7, batch_size=2)
    backend = TorchBackend(ImageGPTForCausalImageModeling.from_pretrained(source))
    numbers = np.stack([uniforms(7, number, classifiers.T) for number in range(3)])
    np.testing.assert_array_equal(got, decode(backend, prompt, [0, 0, 0], sampling, numbers))
    picture = InferenceSession(out).processor.post_process(got)[0]
    assert picture.size == classifiers.GRID[::-1]


def test_rows_of_a_decoder_take_over_the_states_of_others(out):
    decoder = OnnxDecoder(InferenceSession(out / "decoder.onnx"))
    inputs = np.column_stack([np.full(3, classifiers.K), classifiers.ids_of(3)[:, :5]])
    rows = decoder.prefill(inputs, np.array([2, 0, 1]))
    again = decoder.prefill(inputs, np.array([2, 0, 2]))
    rows.copy(np.array([0]), np.array([2]), np.array([0]))
    for one in (rows, again):
        one.step(np.array([1, 2, 3]))
    np.testing.assert_array_equal(rows.logits_BK, again.logits_BK)
    assert decoder.rows_that_fit(5) > 1
    assert decoder.numpy(decoder.array(inputs)) is inputs


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_draw_too(precision, source, tmp_path):
    export_onnx(source, tmp_path / "out", only=["decoder"], precision=precision, check=False)
    drawn = generate(tmp_path / "out", samples=2)
    assert drawn.shape == (2, classifiers.T) and drawn.min() >= 0 and drawn.max() < classifiers.K
    names = {value.name: value.type for value in InferenceSession(tmp_path / "out").get_inputs()}
    assert names["past_key_values.1.value"] == ("tensor(float16)" if precision == "fp16" else "tensor(float)")


@pytest.mark.slow
def test_nano_draws_the_greedy_ids_of_the_torch_backend(tmp_path):
    export_onnx("nano", tmp_path / "out", only=["decoder"])
    backend = ImageGPT.from_pretrained("nano", backend="torch", device="cpu").backend
    prompt = ids_of(2, 200, 512)
    wanted = decode(backend, prompt, range(2), GREEDY, np.zeros((2, 1024)))
    np.testing.assert_array_equal(generate(tmp_path / "out", prompt), wanted)


def test_nano_draws_the_greedy_ids_of_the_torch_backend_at_the_end_of_pictures(tmp_path):
    export_onnx("nano", tmp_path / "out", only=["decoder"], check=False)
    backend = ImageGPT.from_pretrained("nano", backend="torch", device="cpu").backend
    prompt = ids_of(2, 1008, 512)
    wanted = decode(backend, prompt, range(2), GREEDY, np.zeros((2, 1024)))
    np.testing.assert_array_equal(generate(tmp_path / "out", prompt), wanted)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (np.zeros((1, classifiers.T + 1), int), {}, "A prompt is whole numbers"),
        (np.zeros(3, int), {}, "A prompt is whole numbers"),
        (np.zeros((1, 3)), {}, "A prompt is whole numbers"),
        (np.full((1, 1), classifiers.K), {}, "SOS is put before them"),
        (None, {"samples": 0}, "samples must be at least 1"),
        (None, {"batch_size": 0}, "batch_size must be at least 1"),
        (None, {"seed": -1}, "seed must be"),
    ],
)
def test_bad_prompts_are_refused(prompt, options, message, out):
    with pytest.raises(InputError, match=message):
        generate(out, prompt, **options)


def test_files_that_are_no_exports_are_refused(out, tmp_path):
    with pytest.raises(InputError, match="There is no file or folder"):
        InferenceSession(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no \.onnx file at all"):
        InferenceSession(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"model\.onnx can't be loaded"):
        InferenceSession(tmp_path)
    with pytest.raises(InputError, match="can't draw"):
        generate(InferenceSession(out))
    proto = onnx.load(out / "model.onnx")
    proto.ClearField("metadata_props")
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="`imagegpt export` did not make it"):
        InferenceSession(tmp_path)
    for name in ("model_classification.onnx", "decoder.onnx"):
        shutil.copy(out / name, tmp_path / name)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"it has decoder\.onnx, model_classification\.onnx: name one"):
        InferenceSession(tmp_path)
