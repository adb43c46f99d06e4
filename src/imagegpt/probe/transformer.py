"""ImageGPT's features as a step of scikit-learn's pipelines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.engine.features import layers_of
from imagegpt.errors import InputError, MissingExtra
from imagegpt.pipeline import ImageGPT

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as error:
    raise MissingExtra("ImageGPTFeatures", "scikit-learn", "probe") from error


class ImageGPTFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A transformer from pictures to the features of one layer, for classifiers and pipelines of scikit-learn.

    Nothing is learnt: `fit` looks at the model only. An estimator that is pickled or cloned opens its model again.

    Args:
        model: "nano", a model folder, or a Hugging Face Hub id.
        layer: how many blocks are run, from 0 to L; default: the middle, where features are best.
        pool: how a layer's states become one row: "mean".
        batch_size: pictures that are run together; default: what is fastest.
        device, precision, backend: see `imagegpt.pipeline.ImageGPT`.

    Attributes:
        layer_: the layer.
        n_features_out_: D.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> pictures = np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in (0, 20, 230, 250)])
        >>> steps = make_pipeline(ImageGPTFeatures(layer=2), LogisticRegression())
        >>> steps.fit(pictures, ["dark", "dark", "light", "light"]).predict(pictures[1:3]).tolist()
        ['dark', 'light']
    """

    def __init__(
        self,
        model: str | Path = "nano",
        layer: int | None = None,
        pool: str = "mean",
        batch_size: int | None = None,
        device: str | None = None,
        precision: str = "fp32",
        backend: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.backend = backend

    def fit(self, X: Any = None, y: Any = None) -> ImageGPTFeatures:
        """Look up the model's width and layers; neither pictures nor labels are read.

        Raises:
            InputError: there is no such model or layer, or another pool than the mean.
        """
        if self.pool != "mean":
            raise InputError(f'ImageGPTFeatures makes one row of each picture, so pool is "mean", not {self.pool!r}.')
        if not (self.layer is None or isinstance(self.layer, (int, np.integer))):
            raise InputError(f"layer must be one number or None, not {self.layer!r}.")
        self._opened = self._open()
        [self.layer_] = layers_of(None if self.layer is None else int(self.layer), self._opened.spec.n_layer)
        self.n_features_out_ = self._opened.spec.n_embd
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The features of pictures, (N, D).

        Args:
            X: a list or array of pictures: paths, PIL images, arrays (H, W, 3) or (H, W) of uint8, bytes of files.

        Raises:
            InputError: one picture instead of several, none, or one that can't be read.
        """
        check_is_fitted(self)
        features = self._network().features(_listed(X), layer=self.layer_, batch_size=self.batch_size)
        assert isinstance(features, np.ndarray)  # one layer was asked for
        return features

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def _open(self) -> ImageGPT:
        return ImageGPT.from_pretrained(
            self.model,
            device=self.device,
            precision=self.precision,  # pyright: ignore[reportArgumentType] - checked there
            backend=self.backend,
        )

    def _network(self) -> ImageGPT:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {**state, "_opened": None} if "_opened" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # a row of numbers is no picture
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True  # pictures are checked as they are read
        tags.transformer_tags.preserves_dtype = []
        return tags


def _listed(pictures: Iterable[Any]) -> list[Any]:
    """One sample after the other, whatever holds them (a list, an array, a column of a table)."""
    if isinstance(pictures, (str, bytes, Path, Image.Image)) or not np.iterable(pictures):
        raise InputError("ImageGPTFeatures takes several pictures, in a list or an array; put a single one in a list.")
    values: Any = pictures
    if getattr(values, "ndim", 0) == 3 and values.shape[2] in (1, 3, 4):
        raise InputError(f"An array of shape {tuple(values.shape)} is one picture; put a single one in a list.")
    listed = list(pictures)
    if not listed:
        raise InputError("There are no pictures.")
    return listed
