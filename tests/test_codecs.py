"""Everything after the codec works over either one: each part, over a palette and over codes of 2 x 2 pixels."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import classifiers
from imagegpt import Classifier, ImageGPT, ImageGPTImageProcessor
from imagegpt.anomaly import Detector
from imagegpt.bulk import Bulk
from imagegpt.cli.main import main
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.convert.archive import write_archive
from imagegpt.data.records import source_of
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.export import export_onnx
from imagegpt.onnx import InferenceSession, generate
from imagegpt.probe.probe_file import load_probe
from imagegpt.score_pictures import ScorePictures
from imagegpt.scoring import Scoring
from imagegpt.sheet import CAPTION, CELL, GAP
from making import tokenise


def pictures(count, side=16, seed=0):
    """Smooth pictures that differ."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 3), np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in small]


@pytest.fixture(scope="module")
def coded(tiny_coded_folder):
    return ImageGPT(tiny_coded_folder, device="cpu", backend="onnx")


@pytest.fixture
def either(either_folder):
    return ImageGPT(either_folder, device="cpu", backend="onnx")


@pytest.fixture(scope="module")
def coded_classifier(tiny_vqvae, tmp_path_factory):
    folder = classifiers.make(tmp_path_factory.mktemp("classifiers") / "coded")
    save_preprocessor(folder, tiny_vqvae, Framing(16, 16))
    return Classifier(folder, device="cpu")


def test_pictures_are_drawn_completed_scored_and_read(either):
    factor = either.codec.factor
    assert (either.grid, either.framing.height) == ((8, 8), 8 * factor)
    assert either.sample(2, seed=0).images[0][1].size == (8 * factor, 8 * factor)
    done = either.complete(pictures(1), keep=0.5, seed=0)
    assert np.array_equal(done.ids[0, :32], either.encode(pictures(1))[0, :32])
    scores = either.score(pictures(3))
    assert (scores.codec, scores.dims) == (either.codec.name, 3 * factor**2)
    np.testing.assert_allclose(scores.bits_per_dim, scores.nats_per_token / np.log(2) / 3 / factor**2)
    assert either.features(pictures(3), layer=1).shape == (3, 32)


def test_unknown_ids_are_grey_over_all_their_pixels(coded):
    ids = coded.encode(pictures(1))
    ids[0, 9] = -1  # row 1, column 1
    pixels = np.asarray(coded.decode(ids)[0])
    assert (pixels[2:4, 2:4] == 200).all() and (pixels == 200).all(2).sum() == 4


def test_bulk_samples_have_the_size_of_pictures(either, tmp_path):
    assert Bulk(either, 3, tmp_path / "a.npz", {"seed": 1}, batch_size=2).run() == 3
    found = np.load(tmp_path / "a.npz")["arr_0"]
    one_by_one = [np.asarray(image) for image in either.sample(3, seed=1).images[0]]
    np.testing.assert_array_equal(found, one_by_one)


def test_heat_maps_are_as_large_as_pictures(either, tmp_path):
    """A number lies over all pixels of its id: a map of 24 ids, enlarged by itself, would be larger than 48 pixels."""
    run = Scoring(either, source_of(pictures(2)))
    for batch, scores in run.stream():
        ScorePictures(tmp_path, run).draw(batch, scores)
    drawn = Image.open(sorted(tmp_path.glob("*.png"))[0])
    assert drawn.height == CAPTION + 2 * GAP + CELL
    maps = ScorePictures(tmp_path, run)._over_pixels(np.arange(64, dtype=np.float32)[None])
    assert maps.shape == (1, either.framing.height, either.framing.width)
    np.testing.assert_array_equal(maps[0, :: either.codec.factor, :: either.codec.factor], np.arange(64).reshape(8, 8))


def test_a_detector_is_fitted_saved_and_scores(either, tmp_path):
    detector = Detector.fit(either, source_of(pictures(40)), fpr=0.2, seed=0)
    detector.save(tmp_path / "detector.safetensors")
    again = Detector.load(tmp_path / "detector.safetensors", either)
    noise = [np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)]
    verdicts = again.score([*pictures(2, seed=5), *noise])
    np.testing.assert_array_equal(
        verdicts.scores["density"], detector.score([*pictures(2, seed=5), *noise]).scores["density"]
    )
    assert verdicts.scores["complexity"].shape == (3,)


def test_probes_learn_from_features_and_from_pixels(either_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IMAGEGPT_CACHE", "off")
    for number, picture in enumerate(pictures(12)):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    data = str(tmp_path / "data")
    model = ["--model", str(either_folder), "--device", "cpu"]
    assert main(["features", data, "--out", str(tmp_path / "f.safetensors"), *model]) == 0
    assert main(["probe", "--train", data, "--test", data, "--pixels", "--out", str(tmp_path / "probe"), *model]) == 0
    assert load_probe(next((tmp_path / "probe").rglob("*.safetensors"))).classes == ("a", "b")
    capsys.readouterr()


def test_info_and_show_tell_of_the_codec(either, capsys, tmp_path):
    def told(*arguments):
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    codec = either.codec
    record = told("info", str(either.path))
    wanted = {"name": codec.name, "ids": 16, "factor": codec.factor, "fingerprint": codec.fingerprint}
    assert (record["codec"], record["grid"]) == (wanted, [8, 8])
    shown = told("palette", "show", str(either.path), "--out", str(tmp_path / "drawn.png"))
    assert (shown["codec"], shown["colors"], shown["fingerprint"]) == (codec.name, 16, codec.fingerprint)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")), np.asarray(codec.picture())
    )


def test_openais_layout_has_palettes_only(coded, tmp_path):
    with pytest.raises(InputError, match=r"has a VQ-VAE of 16 codes .*OpenAI's code has palettes alone"):
        write_archive(coded.path, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


# --- files that go elsewhere


@pytest.fixture(scope="module")
def exported(coded, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "out"
    made = export_onnx(coded.path, out)
    assert {"vqvae/config.json", "vqvae/model.safetensors", "model.onnx", "decoder.onnx"} <= made.files.keys()
    return out


def test_an_exported_model_finds_its_codec_beside_it(coded, exported):
    session = InferenceSession(exported / "decoder.onnx")
    assert (session.grid, session.codec.fingerprint) == ((8, 8), coded.codec.fingerprint)
    ids = session.processor(pictures(2), return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, coded.encode(pictures(2)))
    drawn = session.processor.post_process(generate(session, ids[:, :60]))
    assert [image.size for image in drawn] == [(16, 16)] * 2
    again = ImageGPTImageProcessor.from_pretrained(exported)
    np.testing.assert_array_equal(again(pictures(2), return_tensors="np")["input_ids"], ids)


def test_a_session_opens_without_torch(exported):
    code = """
import sys
from imagegpt.onnx import InferenceSession, generate
session = InferenceSession(sys.argv[1])
assert session.grid == (8, 8) and generate(session).shape == (1, 64)
print(*{"torch", "transformers"} & set(sys.modules))
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(exported / "decoder.onnx")], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_a_session_says_what_is_wrong_with_its_codec(exported, tmp_path, tiny_vqvae):
    import shutil

    import torch

    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(exported / "decoder.onnx", moved)
    assert generate(InferenceSession(moved)).shape == (1, 64)
    with pytest.raises(InputError, match="vqvae"):
        _ = InferenceSession(moved).codec
    other = type(tiny_vqvae)(tiny_vqvae.config)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    other.store(moved)
    with pytest.raises(InputError, match="the model beside it was exported with"):
        _ = InferenceSession(moved).codec


# --- the processor


def test_a_processor_over_either_codec(either, tmp_path):
    processor = either.processor
    ids = processor(pictures(2), return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, either.encode(pictures(2)))
    seen = [np.asarray(image) for image in processor.reconstruct(pictures(2))]
    np.testing.assert_array_equal(seen, [np.asarray(image) for image in either.decode(ids)])
    processor.save_pretrained(tmp_path / "made")
    for source in (tmp_path / "made", tmp_path / "made" / "preprocessor_config.json", either.path):
        again = ImageGPTImageProcessor.from_pretrained(source)
        assert again.codec.fingerprint == either.codec.fingerprint
        np.testing.assert_array_equal(again(pictures(2), return_tensors="np")["input_ids"], ids)
    assert "codec" not in json.loads((tmp_path / "made" / "preprocessor_config.json").read_text())


def test_a_processors_codec_is_loaded_when_it_is_needed(coded, tmp_path, monkeypatch):
    from imagegpt.codec import processor as module

    loaded = []
    monkeypatch.setattr(module, "read_codec", lambda *found: loaded.append(found) or coded.codec)
    processor = ImageGPTImageProcessor.from_pretrained(coded.path)
    assert processor.clusters is None and "VQVAE" not in repr(processor) and not loaded
    processor(pictures(1))
    processor.post_process(np.zeros((1, 64), int))
    assert loaded == [({"vqvae": "vqvae"}, coded.path)]


def test_a_processor_checks_sizes_against_the_codec(coded, tiny_vqvae):
    processor = coded.processor
    assert processor.clusters is None
    with pytest.raises(InputError, match="A picture of 16 x 16 has 64 ids, not 256"):
        processor.post_process(np.zeros((1, 256), int))
    with pytest.raises(InputError, match="15 x 15 can't be divided into the codec's blocks of 2 x 2"):
        processor(pictures(1), size=15)
    with pytest.raises(InputError, match="can't be divided"):
        processor(pictures(1, side=17), do_resize=False)
    with pytest.raises(InputError, match="can't be divided"):
        ImageGPTImageProcessor.from_codec(tiny_vqvae, Framing(16, 17))
    with pytest.raises(InputError, match="two codecs"):
        ImageGPTImageProcessor([[0, 0, 0]], codec=tiny_vqvae)
    assert processor(pictures(1, side=18), do_resize=False, return_tensors="np")["input_ids"].shape == (1, 81)


def test_a_damaged_entry_is_one_sentence(coded, tmp_path):
    config = json.loads((coded.path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"vqvae": "../elsewhere"}))
    processor = ImageGPTImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="vqvae must be the name of a folder beside it"):
        processor(pictures(1))


# --- a classifier's views


@pytest.mark.parametrize("views", ["none", "flip", "ten"])
def test_views_of_codes_are_made_of_pixels(coded_classifier, views, tmp_path):
    from imagegpt.codec.augment import fixed_views

    given, classifier = pictures(3), coded_classifier
    pixels = np.stack([np.asarray(picture) for picture in given])
    each = [
        classifier.predict_ids(classifier.codec.encode(np.ascontiguousarray(view)).reshape(3, -1))
        for view in fixed_views(pixels, views)
    ]
    expected = np.mean(each, 0)
    np.testing.assert_allclose(classifier.predict(given, views=views), expected, atol=1e-5)
    [(batch, found)] = classifier.predict_source(source_of(given), views=views)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(batch.ids_BT, classifier.encode(given))


def test_views_of_a_palette_are_the_same_by_pixels_and_by_ids(tmp_path):
    classifier = Classifier(classifiers.make(tmp_path / "made"), device="cpu")
    given = pictures(3)
    for views in ("flip", "ten"):
        expected = classifier.predict_ids(classifier.encode(given), views=views)
        np.testing.assert_allclose(classifier.predict(given, views=views), expected, atol=1e-6)


def test_no_picture_that_can_be_read_has_no_prediction(coded_classifier, tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    for views in ("none", "flip"):
        [(batch, found)] = coded_classifier.predict_source(open_source(tmp_path), views=views, on_error="skip")
        assert found.shape == (0, len(classifiers.CLASSES)) and len(batch.skipped) == 1


def test_views_of_codes_need_pictures(coded_classifier, tmp_path):
    ids = coded_classifier.encode(pictures(2))
    with pytest.raises(InputError, match=r"ids of a VQ-VAE of 16 codes .* can't be mirrored"):
        coded_classifier.predict_ids(ids, views="flip")
    data = open_source(
        tokenise(
            tmp_path / "ids", ids.astype(np.uint16), codec=coded_classifier.codec.fingerprint, grid=[8, 8], classes=[]
        )
    )
    with pytest.raises(InputError, match="holds ids, and views are made of pictures"):
        list(coded_classifier.predict_source(data, views="ten"))
    [(_, found)] = coded_classifier.predict_source(data)
    np.testing.assert_allclose(found, coded_classifier.predict_ids(ids), atol=1e-6)
