"""What an opened model folder is, whatever head its network has: codec, grid, and what the network makes of pictures.

Shape suffixes: B pictures, T ids, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt import checkpoint
from imagegpt.codec.codec import grid_of
from imagegpt.codec.pictures import Picture, read_pictures
from imagegpt.codec.preprocessor_file import load_codec
from imagegpt.engine.backends import Precision, check_choice, choose_for_pictures, open_onnx_features
from imagegpt.engine.cost import blocks_flops
from imagegpt.engine.features import Extractor, Layer, Pool, check_pool, inputs_of, is_one, layers_of
from imagegpt.errors import InputError, check_count
from imagegpt.painting import Progress
from imagegpt.sequence import flatten

if TYPE_CHECKING:
    from imagegpt.codec.processor import ImageGPTImageProcessor
    from imagegpt.config import ImageGPTConfig


class Backbone:
    """A model folder that is opened: what `ImageGPT` and `Classifier` have in common.

    Args:
        path: a local model folder in HF's layout.
        device, precision, backend: see `ImageGPT`.

    Raises:
        InputError: it can't be used; the message says why.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
    ) -> None:
        check_choice(backend, device, precision)
        self.path = Path(path)
        self.spec = checkpoint.read_spec(self.path)
        checkpoint.weights_file(self.path)  # fail now, not at the first sample
        self.codec, self.framing = load_codec(self.path, self.spec)
        self.device = device
        self.precision: Precision = precision
        self._extractor: tuple[Any, Extractor] | None = None  # the one in use, with what it was asked for
        self.named_backend = backend

    @property
    def grid(self) -> tuple[int, int]:
        """`(height, width)` of ids."""
        return grid_of(self.codec, self.framing)

    @cached_property
    def config(self) -> ImageGPTConfig:
        """The model's configuration, as transformers knows it."""
        from imagegpt.config import ImageGPTConfig

        return ImageGPTConfig.from_pretrained(self.path)

    @cached_property
    def processor(self) -> ImageGPTImageProcessor:
        """The model's image processor, as transformers knows it."""
        from imagegpt.codec.processor import ImageGPTImageProcessor

        return ImageGPTImageProcessor.from_codec(self.codec, self.framing)

    @property
    def reads_start(self) -> bool:
        """Whether the network reads SOS and all ids but the last, or the ids as they are."""
        return checkpoint.is_causal(self.path)

    @cached_property
    def model(self) -> Any:
        """The network in torch, in evaluation mode."""
        raise NotImplementedError

    def encode(self, images: Picture | Iterable[Picture]) -> NDArray[np.int64]:
        """Pictures to ids (pictures, T): crop and resize, then what the codec makes of the pixels."""
        return self._encode(read_pictures(images))

    def features(
        self,
        images: Picture | Iterable[Picture],
        layer: Layer = None,
        pool: Pool = "mean",
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32] | dict[int, NDArray[np.float32]]:
        """What the network has made of pictures after some of its blocks: the paper's f^l, for probes and neighbours.

        Args:
            images: a picture or several.
            layer: how many blocks are run, from 0 to L: a number, several, or "all"; default: the middle, L // 2.
                See `imagegpt.engine.features` for the convention, and docs/features.md.
            pool: "mean" over the ids, or "none".
            batch_size: pictures that are run together; default: what is fastest. It does not change the result but
                for rounding.
            progress: called with (pictures done, pictures in all).

        Returns:
            float32 (pictures, D), or (pictures, T, D) without pooling, which is a megabyte or more for each picture and
            layer; for several layers a dictionary of these.

        Raises:
            InputError: a picture that can't be read, or no such layer.

        Example:
            >>> from imagegpt import ImageGPT
            >>> model = ImageGPT.from_pretrained("nano")
            >>> model.features(np.zeros((32, 32, 3), np.uint8), layer=2).shape
            (1, 192)
        """
        layers = layers_of(layer, self.spec.n_layer)
        check_pool(pool)
        found = self.features_of(self.encode(images), layers, pool, batch_size=batch_size, progress=progress)
        return found[layers[0]] if is_one(layer) else found

    def check_ids(self, ids_BT: NDArray[Any]) -> NDArray[np.int64]:
        """Whole pictures' ids, (pictures, T), as int64.

        Raises:
            InputError: these are no pictures of the model's.
        """
        ids_BT, length, colors = np.asarray(ids_BT), self.spec.n_positions, self.spec.num_colors
        if ids_BT.ndim != 2 or ids_BT.shape[1] != length or ids_BT.dtype.kind not in "iu":
            raise InputError(f"ids must be whole numbers (pictures, {length}), not {ids_BT.dtype} {ids_BT.shape}.")
        if ids_BT.size and not (ids_BT.min() >= 0 and ids_BT.max() < colors):
            raise InputError(f"ids must be 0 to {colors - 1}, not {ids_BT.min()} to {ids_BT.max()}.")
        return ids_BT.astype(np.int64, copy=False)

    def features_of(
        self,
        ids_BT: NDArray[np.int64],
        layers: Sequence[int],
        pool: Pool = "mean",
        *,
        batch_size: int | None = None,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> dict[int, NDArray[np.float32]]:
        """The features of ids, for callers that have these already; see `features`.

        Args:
            ids_BT: pictures' ids, (pictures, T).
            layers: layers, each from 0 to L.
            pool, batch_size, progress: see `features`.
            backend: "onnx" or "torch", as `feature_backend` chose it for several calls; default: chosen for this one.

        Raises:
            InputError: features that are no numbers.
        """
        if batch_size is not None:
            check_count("batch_size", batch_size)
        extractor = self.extractor(layers, pool, backend or self.feature_backend(layers, len(ids_BT)))
        inputs_BT = inputs_of(ids_BT, self.spec.sos, self.reads_start)
        shape = (self.spec.n_embd,) if pool == "mean" else (self.spec.n_positions, self.spec.n_embd)
        found = {layer: np.empty((len(ids_BT), *shape), np.float32) for layer in layers}
        rows = batch_size or extractor.rows
        for start in range(0, len(ids_BT), rows):
            stop = min(start + rows, len(ids_BT))
            for layer, values in zip(layers, extractor(inputs_BT[start:stop]), strict=True):
                found[layer][start:stop] = values
                self._check_finite("features", values)
            if progress is not None:
                progress(stop, len(ids_BT))
        return found

    def _check_finite(self, name: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.path} gives {name} that are not finite in {self.precision}: it is damaged, or try fp32."
            )

    def feature_backend(self, layers: Sequence[int], pictures: int) -> str:
        """ "onnx" or "torch": what was named, or what is faster for the features of so many pictures."""
        operations = pictures * blocks_flops(self.spec, max(layers))
        return self.named_backend or choose_for_pictures(self.path, self.spec, self.device, self.precision, operations)

    def extractor(self, layers: Sequence[int], pool: Pool, backend: str) -> Extractor:
        """What makes features; the last one is kept.

        Raises:
            InputError: the backend can't run this model, or the device can't be used.
        """
        key = (backend, tuple(layers), pool)
        if self._extractor is None or self._extractor[0] != key:
            if backend == "onnx":
                opened = open_onnx_features(self.path, self.spec, self.precision, layers, pool)
            else:
                from imagegpt.engine.torch_features import TorchFeatures

                opened = TorchFeatures(self.model, layers, pool)
            self._extractor = key, opened
        return self._extractor[1]

    def _encode(self, pictures: list[Image.Image]) -> NDArray[np.int64]:
        pixels = np.stack([self.framing.apply(picture) for picture in pictures])
        return flatten(self.codec.encode(pixels))
