"""Classifier against the network in torch, transformers' pipeline, and slow loops over views and votes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import classifiers
import imagegpt
from classifiers import CLASSES, MULTI, REGRESSION, SINGLE, change, configure, ids_of, make, pictures
from imagegpt.classifier import Classifier, hidden_ids
from imagegpt.data.ids import read_ids
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.model.heads import ImageGPTForImageClassification
from imagegpt.pipeline import ImageGPT

ONNX_OR_TORCH = pytest.mark.parametrize("backend", ["onnx", "torch"])


def open_cpu(folder, backend=None, **options) -> Classifier:
    return Classifier.from_pretrained(folder, device="cpu", backend=backend, **options)


@torch.no_grad()
def logits_in_torch(folder, ids, **options) -> torch.Tensor:
    return ImageGPTForImageClassification.from_pretrained(folder).eval()(torch.from_numpy(ids), **options).logits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("single") / "model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("bert") / "model", start=False, causal=False, draws=False)


# --- logits and probabilities


@ONNX_OR_TORCH
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_logits_are_those_of_the_network(tmp_path, backend, start, draws):
    folder = make(tmp_path / "model", start=start, draws=draws)
    found = open_cpu(folder, backend).logits_of(ids_of(5))
    np.testing.assert_allclose(found, logits_in_torch(folder, ids_of(5)), atol=1e-4)
    configure(folder, classifier_start=not start)
    assert abs(found - open_cpu(folder, backend).logits_of(ids_of(5))).max() > 0.01  # the test notices SOS


def test_a_bidirectional_network(bert):
    np.testing.assert_allclose(open_cpu(bert).logits_of(ids_of(5)), logits_in_torch(bert, ids_of(5)), atol=1e-4)


@pytest.mark.parametrize(
    ("problem", "classes", "meant", "told"),
    [
        (SINGLE, CLASSES, SINGLE, lambda logits: logits.softmax(1)),
        (None, CLASSES, SINGLE, lambda logits: logits.softmax(1)),
        (MULTI, CLASSES, MULTI, torch.sigmoid),
        (MULTI, ("cat",), MULTI, torch.sigmoid),
        (REGRESSION, CLASSES, REGRESSION, lambda logits: logits),
        (None, ("cat",), REGRESSION, lambda logits: logits),
    ],
)
def test_what_is_told_of_logits(tmp_path, problem, classes, meant, told):
    folder = make(tmp_path / "model", classes, problem)
    opened = open_cpu(folder)
    assert (opened.classes, opened.problem) == (classes, meant)
    np.testing.assert_allclose(opened.predict_ids(ids_of(4)), told(logits_in_torch(folder, ids_of(4))), atol=1e-4)


def serve(folder: str, paths: list[str], count: int, ours: bool) -> list[dict[str, float]]:
    """Runs in a process of its own, for `register` is for all of it."""
    import transformers

    if ours:
        imagegpt.register()
    classify = transformers.pipeline("image-classification", model=folder)
    assert isinstance(classify.model, imagegpt.ImageGPTForImageClassification) == ours
    return [{entry["label"]: entry["score"] for entry in classify(path, top_k=count)} for path in paths]


@pytest.mark.parametrize(("problem", "ours"), [(SINGLE, True), (MULTI, True), (SINGLE, False)])
def test_transformers_pipeline_tells_the_same(tmp_path, problem, ours):
    """Its own class too, where the network reads the ids as they are."""
    folder = make(tmp_path / "model", problem=problem, start=ours)
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for image, path in zip(pictures(3), paths, strict=True):
        Image.fromarray(image).save(path)
    code = f"import json, test_classifier as here; print(json.dumps(here.serve({str(folder)!r}, {paths}, 7, {ours})))"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for theirs, mine in zip(json.loads(done.stdout.splitlines()[-1]), open_cpu(folder).predict(paths), strict=True):
        assert max(theirs, key=theirs.get) == CLASSES[mine.argmax()]
        np.testing.assert_allclose([theirs[name] for name in CLASSES], mine, atol=1e-4)


def test_pictures_may_be_of_any_kind(tiny, tmp_path):
    opened = open_cpu(tiny)
    image = Image.fromarray(pictures(1)[0])
    image.save(tmp_path / "a.png")
    expected = opened.predict_ids(opened.encode(image))
    for given_as in (image, np.asarray(image), str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        np.testing.assert_array_equal(opened.predict(given_as), expected)


def test_features_are_what_the_head_reads(tiny):
    opened = open_cpu(tiny, "onnx")
    found = opened.features(pictures(3), layer=2)
    score = classifiers.load_file(tiny / "model.safetensors")["score.weight"].numpy()
    np.testing.assert_allclose(found @ score.T, opened.logits_of(opened.encode(pictures(3))), atol=1e-5)


@pytest.mark.parametrize(("precision", "near"), [("int8", 0.5), ("bf16", 0.5)])
def test_other_precisions_are_near(tiny, precision, near):
    wide, low = (open_cpu(tiny, precision=chosen).logits_of(ids_of(8)) for chosen in ("fp32", precision))
    assert 0 < abs(wide - low).max() < near


def test_progress_counts_pictures_whatever_the_passes(bert):
    told = []
    open_cpu(bert).predict_ids(ids_of(3), views="flip", votes=2, progress=lambda *at: told.append(at))
    assert told == sorted(told) and told[-1] == (3, 3) and {total for _, total in told} == {3}


# --- folders


def test_names_and_files_of_other_programs(tmp_path):
    """No names: transformers leaves those of two outputs out. Weights in a .bin file, no class problem."""
    folder = make(tmp_path / "model", ("a", "b"), None)
    configure(folder, id2label=None, label2id=None)
    expected = open_cpu(folder)
    assert expected.classes == ("LABEL_0", "LABEL_1")
    torch.save(classifiers.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for backend in ("onnx", "torch"):
        found = open_cpu(folder, backend).predict_ids(ids_of(2))
        np.testing.assert_allclose(found, expected.predict_ids(ids_of(2)), atol=1e-5)


@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "bin"])
def test_a_model_without_a_class_head_says_what_to_do(folder, old):
    if old:
        torch.save(classifiers.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no class head .* `imagegpt finetune`.*--probe"):
        open_cpu(folder)


@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "bin"])
def test_a_head_of_other_outputs_is_refused(tmp_path, old):
    folder = make(tmp_path / "model")
    change(folder, **{"score.weight": torch.zeros(3, 32)})
    if old:
        torch.save(classifiers.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"score.weight has shape \(3, 32\), but config.json asks for \(7, 32\)"):
        open_cpu(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"id2label": {"1": "a", "2": "b"}}, "id2label must name the classes 0, 1, 2"),
        ({"id2label": ["a"]}, "id2label must name"),
        ({"id2label": {"x": "a"}}, "id2label must name"),
        ({"id2label": None, "num_labels": "many"}, "id2label must name"),
        ({"id2label": {"0": "a"}}, "needs at least two classes"),
        ({"problem_type": "ranking"}, "problem_type must be one of .* not 'ranking'"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path, values, words):
    folder = make(tmp_path / "model")
    configure(folder, **values)
    with pytest.raises(InputError, match=words):
        open_cpu(folder)


@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "score.weight"])
def test_weights_that_are_not_finite_are_told_of(tmp_path, name):
    folder = make(tmp_path / "model")
    change(folder, **{name: classifiers.load_file(folder / "model.safetensors")[name] * torch.nan})
    with pytest.raises(InputError, match="not finite in fp32"):
        open_cpu(folder).logits_of(ids_of(1))


def test_a_classifier_that_can_draw_still_draws(tiny, bert):
    model = ImageGPT.from_pretrained(tiny, device="cpu")
    assert model.sample(1, seed=0).ids.shape == (1, 64)
    with pytest.raises(InputError, match=r"lack lm_head.weight"):
        _ = ImageGPT.from_pretrained(bert, device="cpu").model


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((2, 63), int), r"\(pictures, 64\)"),
        (np.zeros((2, 64)), "float64"),
        (np.full((2, 64), 16), "0 to 15, not 16 to 16"),
        (np.full((2, 64), -1), "not -1 to -1"),
    ],
)
def test_ids_that_are_no_pictures(tiny, ids, words):
    with pytest.raises(InputError, match=words):
        open_cpu(tiny).logits_of(ids)


# --- views and votes


@ONNX_OR_TORCH
@pytest.mark.parametrize("views", ["flip", "ten"])
def test_views_are_averaged(tiny, backend, views):
    opened, ids = open_cpu(tiny, backend), ids_of(4)
    grids = ids.reshape(4, 8, 8)
    cuts = [grids]
    if views == "ten":
        padded = np.pad(grids, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        cuts += [padded[:, top : top + 8, left : left + 8] for top in (0, 2) for left in (0, 2)]
    seen = [np.ascontiguousarray(view) for cut in cuts for view in (cut, cut[:, :, ::-1])]
    expected = np.mean([logits_in_torch(tiny, view.reshape(4, 64)).softmax(1).numpy() for view in seen], 0)
    found = opened.predict_ids(ids, views=views)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(found - opened.predict_ids(ids)).max() > 0.001


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
@pytest.mark.parametrize("views", ["none", "flip"])
def test_votes_are_those_of_the_loop(tmp_path, problem, views):
    folder, ids = make(tmp_path / "model", problem=problem, start=False, causal=False), ids_of(6)
    model = ImageGPTForImageClassification.from_pretrained(folder).eval()
    expected = []
    for number, row in enumerate(ids):
        votes, probabilities = np.zeros(7), []
        for copy in range(5):
            mask = torch.from_numpy(np.random.default_rng([3, number, copy]).random(64) < 0.15)
            rows = [row, row.reshape(8, 8)[:, ::-1].ravel()][: 2 if views == "flip" else 1]
            told = []
            for seen in rows:
                embedded = model.transformer.wte(torch.from_numpy(seen.copy()))
                embedded = torch.where(mask[:, None], torch.zeros(()), embedded)
                with torch.no_grad():
                    logits = model(inputs_embeds=embedded[None]).logits[0]
                told.append((logits.softmax(0) if problem == SINGLE else logits.sigmoid()).numpy())
            mean = np.mean(told, 0)
            votes += np.eye(7)[mean.argmax()] if problem == SINGLE else mean >= 0.5
            probabilities.append(mean)
        expected.append((votes + np.mean(probabilities, 0)) / 6)
    found = open_cpu(folder).predict_ids(ids, views=views, votes=5, seed=3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if problem == SINGLE:
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 6))
def test_most_votes_win_and_the_mean_decides_between_equals(seed, votes, classes):
    opened = object.__new__(Classifier)
    opened.problem, opened.classes = SINGLE, tuple("abcdef"[:classes])
    told = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), (votes, 3)).astype(np.float32)
    found = opened._elect(told)
    for row in range(3):
        counts = np.bincount(told[:, row].argmax(1), minlength=classes)
        ranked = sorted(range(classes), key=lambda label: (-counts[label], -told[:, row, label].mean()))
        assert np.argsort(-found[row], kind="stable").tolist() == ranked


def test_masks_depend_on_seed_picture_and_copy_alone(bert):
    opened, ids = open_cpu(bert), ids_of(6)
    whole = opened.predict_ids(ids, votes=3, seed=1)
    part = opened.predict_ids(ids[4:], numbers=np.arange(4, 6), votes=3, seed=1)
    np.testing.assert_allclose(part, whole[4:], atol=1e-6)
    masks = [
        hidden_ids(seed, np.array([number]), copy, 64).tobytes()
        for seed in (0, 1)
        for number in (0, 1)
        for copy in (0, 1)
    ]
    assert len(set(masks)) == 8
    assert hidden_ids(0, np.arange(400), 0, 64).mean() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"votes": 5}, r"no bidirectional \(BERT\) classifier"),
        ({"votes": -1}, "votes and seed must be at least 0"),
        ({"seed": -1}, "votes and seed must be at least 0"),
        ({"views": "twelve"}, "views must be one of none, flip, ten"),
    ],
)
def test_what_can_not_be_asked_of_it(tiny, options, words):
    with pytest.raises(InputError, match=words):
        open_cpu(tiny).predict_ids(ids_of(1), **options)
    with pytest.raises(InputError, match=words):
        list(open_cpu(tiny).predict_source(open_source("examples"), **options))


def test_numbers_have_no_votes(tmp_path):
    folder = make(tmp_path / "model", ("age",), REGRESSION, start=False, causal=False)
    with pytest.raises(InputError, match="votes are for classes"):
        open_cpu(folder).predict_ids(ids_of(1), votes=3)


def test_int8_of_a_bidirectional_network_is_refused(bert):
    with pytest.raises(InputError, match="BERT"):
        open_cpu(bert, precision="int8").predict_ids(ids_of(1))


# --- DATA


@ONNX_OR_TORCH
def test_data_is_told_batch_by_batch_and_bad_pictures_are_left_out(tiny, tmp_path, monkeypatch, backend):
    monkeypatch.setattr("imagegpt.classifier.read_ids", partial(read_ids, batch=3))
    images = pictures(7)
    classifiers.save_pictures(tmp_path / "data", images, ["cat"] * 7)
    (tmp_path / "data/cat/002.png").write_bytes(b"nothing")
    opened, told = open_cpu(tiny, backend), []
    source = open_source(str(tmp_path / "data"))
    found = list(opened.predict_source(source, views="flip", on_error="skip", progress=lambda *at: told.append(at)))
    kept = [image for number, image in enumerate(images) if number != 2]
    np.testing.assert_allclose(
        np.concatenate([told for _, told in found]), opened.predict(kept, views="flip"), atol=1e-5
    )
    assert [Path(name).name for batch, _ in found for name in batch.names] == [f"00{n}.png" for n in (0, 1, 3, 4, 5, 6)]
    assert len(found[0][0].skipped) == 1 and told == sorted(told)
    with pytest.raises(InputError, match=r"002\.png"):
        list(opened.predict_source(source))
