"""ImageGPTFeatures as an estimator of scikit-learn: its own checks, and the same numbers as the pipeline's."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import imagegpt
from imagegpt import ImageGPT, ImageGPTFeatures, InputError

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


class RowFeatures(ImageGPTFeatures):
    """Makes a picture of each row of numbers: the checks of scikit-learn know no other data."""

    def fit(self, X, y=None):
        validate_data(self, X)
        return super().fit(X, y)

    def transform(self, X):
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        levels = (127.5 * (1 + np.sin(rows))).astype(np.uint8)
        return super().transform([np.resize(row, (8, 8, 3)) for row in levels])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = True, False
        return tags


def test_the_checks_of_scikit_learn(tiny_folder):
    results = check_estimator(RowFeatures(tiny_folder), on_skip=None, on_fail=None)
    assert {told["check_name"]: told["exception"] for told in results if told["status"] == "failed"} == {}
    passed = {told["check_name"] for told in results if told["status"] == "passed"}
    assert passed >= {"check_fit_idempotent", "check_methods_subset_invariance", "check_estimators_pickle"}
    assert passed >= {"check_transformer_general", "check_transformers_unfitted", "check_n_features_in"}
    assert len(passed) > 40


@pytest.fixture
def features(tiny_folder) -> ImageGPTFeatures:
    return ImageGPTFeatures(str(tiny_folder))


def test_features_are_those_of_the_pipeline(features, tiny_folder):
    found = features.fit_transform(PICTURES)
    np.testing.assert_array_equal(found, ImageGPT.from_pretrained(tiny_folder).features(PICTURES))
    assert (found.shape, found.dtype) == ((6, 32), np.float32)
    assert (features.layer_, features.n_features_out_) == (1, 32)


@pytest.mark.parametrize("layer", [0, 2, np.int64(2)])
def test_the_layer_asked_for(tiny_folder, layer):
    found = ImageGPTFeatures(tiny_folder, layer=layer).fit_transform(PICTURES)
    np.testing.assert_array_equal(found, ImageGPT.from_pretrained(tiny_folder).features(PICTURES, layer=int(layer)))


def test_pictures_of_every_kind(features, tmp_path):
    expected = features.fit(PICTURES).transform(PICTURES)
    pil = [Image.fromarray(picture) for picture in PICTURES]
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path, picture in zip(paths, pil, strict=True):
        picture.save(path)
    names = np.array([str(path) for path in paths])
    for pictures in (pil, paths, names, names.astype(object), list(PICTURES), (path.read_bytes() for path in paths)):
        np.testing.assert_array_equal(features.transform(pictures), expected)
    grey = features.transform(PICTURES[..., 0])  # (N, H, W)
    np.testing.assert_array_equal(grey, features.transform(np.repeat(PICTURES[..., :1], 3, 3)))


def test_in_a_pipeline_and_a_search(features):
    y = ["a", "b"] * 3
    steps = make_pipeline(features, LogisticRegression())
    assert steps.fit(PICTURES, y).predict(PICTURES).shape == (6,)
    search = GridSearchCV(steps, {"imagegptfeatures__layer": [0, 2]}, cv=3).fit(PICTURES, y)
    assert search.best_params_["imagegptfeatures__layer"] in (0, 2)


def test_names_and_frames(features):
    import pandas

    names = features.fit(PICTURES).get_feature_names_out()
    assert names[[0, -1]].tolist() == ["imagegptfeatures0", "imagegptfeatures31"]
    frame = features.set_output(transform="pandas").transform(PICTURES)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == names.tolist()


def test_a_clone_knows_what_was_asked_for_only(features):
    features.set_params(layer=2, batch_size=3).fit(PICTURES)
    again = clone(features)
    assert again.get_params() == features.get_params()
    with pytest.raises(NotFittedError):
        again.transform(PICTURES)


def test_the_model_is_not_pickled_but_opened_again(features):
    expected = features.fit_transform(PICTURES)
    content = pickle.dumps(features)
    assert len(content) < 2000
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.transform(PICTURES), expected)
    np.testing.assert_array_equal(features.transform(PICTURES), expected)  # and this one is as it was
    assert pickle.loads(pickle.dumps(ImageGPTFeatures("x"))).model == "x"


def test_batches_make_no_difference(features):
    expected = features.fit_transform(PICTURES)
    np.testing.assert_allclose(features.set_params(batch_size=4).fit_transform(PICTURES), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere"}, "nowhere"),
        ({"layer": 3}, "3"),
        ({"layer": "all"}, "one number or None, not 'all'"),
        ({"pool": "none"}, "pool is"),
        ({"backend": "jax"}, "jax"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_what_can_not_be_opened_is_refused(features, options, message):
    with pytest.raises(InputError, match=message):
        features.set_params(**options).fit(PICTURES)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("a.png", "several pictures"),
        (Image.new("RGB", (8, 8)), "several pictures"),
        (3, "several pictures"),
        ([], "no pictures"),
        (np.zeros((4, 192)), "Picture 0"),
        (np.zeros((8, 8, 3), np.uint8), "is one picture; put a single one in a list"),
    ],
)
def test_what_is_no_pictures_is_refused(features, pictures, message):
    with pytest.raises(InputError, match=message):
        features.fit(PICTURES).transform(pictures)


def test_it_is_loaded_when_it_is_used():
    assert imagegpt.ImageGPTFeatures is ImageGPTFeatures
    code = "import sys; sys.modules['sklearn.base'] = None; import imagegpt; imagegpt.ImageGPTFeatures"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ImageGPTFeatures needs scikit-learn: pip install "imagegpt[probe]"' in done.stderr
