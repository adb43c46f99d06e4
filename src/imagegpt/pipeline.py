"""ImageGPT: the one object that a user holds. Pictures in, pictures out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt import checkpoint
from imagegpt.codec.masks import read_masks
from imagegpt.codec.pictures import Picture, read_pictures
from imagegpt.codec.preprocessor_file import load_palette
from imagegpt.engine.backends import (
    Precision,
    check_choice,
    choose_backend,
    choose_for_features,
    load_network,
    open_onnx,
    open_onnx_features,
)
from imagegpt.engine.batches import Task
from imagegpt.engine.cost import blocks_flops
from imagegpt.engine.decode import UNKNOWN, Backend, Process
from imagegpt.engine.features import Extractor, Layer, Pool, check_pool, inputs_of, is_one, layers_of
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError, check_count
from imagegpt.painting import Job, Options, Progress, Result, last, paint, seeds_for
from imagegpt.sequence import flatten, known_later, prompt_length, unflatten

if TYPE_CHECKING:
    from imagegpt.codec.processor import ImageGPTImageProcessor
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

UNDRAWN = (200, 200, 200)  # the colour of pixels that are not drawn yet


class ImageGPT:
    """A generative ImageGPT with its palette.

    Use `from_pretrained`. Nothing heavy is loaded before it is needed: the network comes with the first sample.

    Args:
        path: a local model folder in HF's layout.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.
        precision: "fp32"; "bf16" or "fp16" in torch; "int8" in onnxruntime (see docs/engine.md).
        backend: "onnx" (onnxruntime, on the CPU) or "torch"; default: onnxruntime on a CPU, torch on a GPU.
        compile: compile torch's step; the first picture takes a minute more.

    Example:
        >>> model = ImageGPT.from_pretrained("nano")
        >>> result = model.complete(np.zeros((32, 32, 3), np.uint8), keep=0.9, num_samples=2, seed=0)
        >>> len(result.images[0]), result.ids.shape
        (2, (2, 1024))
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
        compile: bool = False,
    ) -> None:
        check_choice(backend, device, precision)
        self.path = Path(path)
        self.spec = checkpoint.read_spec(self.path)
        checkpoint.weights_file(self.path)  # fail now, not at the first sample
        self.codec, self.framing = load_palette(self.path, self.spec)
        if len(self.codec) != self.spec.num_colors:
            raise InputError(
                f"{self.path}: the palette has {len(self.codec)} colours, the model {self.spec.num_colors}."
            )
        if self.framing.height * self.framing.width != self.spec.n_positions:
            raise InputError(
                f"{self.path}: a grid of {self.framing.height} x {self.framing.width} does not have the model's "
                f"{self.spec.n_positions} positions."
            )
        self.device, self._compile = device, compile
        self.precision: Precision = precision
        self._extractor: tuple[Any, Extractor] | None = None  # the one in use, with what it was asked for
        self.named_backend = "torch" if compile and backend is None else backend

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "nano",
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
        compile: bool = False,
    ) -> ImageGPT:
        """Open a model.

        Args:
            name: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
            revision: branch, tag or commit on the Hub.
            device, precision, backend, compile: see `ImageGPT`.

        Raises:
            InputError: there is no such model, or it can't be used; the message says why.
        """
        return cls(checkpoint.find_model(name, revision), device, precision, backend, compile)

    @property
    def grid(self) -> tuple[int, int]:
        """`(height, width)` of ids."""
        return self.framing.height, self.framing.width

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

    @cached_property
    def model(self) -> ImageGPTForCausalImageModeling:
        """The network in torch, in evaluation mode."""
        return load_network(self.path, self.device, self.precision)

    @cached_property
    def backend(self) -> Backend:
        """What runs the model."""
        name = self.named_backend or choose_backend(self.path, self.spec, self.device, self.precision)
        if name == "onnx":
            return open_onnx(self.path, self.spec, self.precision)
        from imagegpt.engine.torch_backend import TorchBackend

        return TorchBackend(self.model, self._compile)

    def encode(self, images: Picture | Iterable[Picture]) -> NDArray[np.int64]:
        """Pictures to ids (pictures, T): crop and resize to the grid, then the nearest colour of each pixel."""
        return self._encode(read_pictures(images))

    def decode(self, ids_BT: NDArray[np.int64]) -> list[Image.Image]:
        """Ids (B, T) to pictures of the grid's size; -1 becomes grey."""
        ids_BT = np.asarray(ids_BT)
        pixels_BTC = self.codec.decode(np.where(ids_BT == UNKNOWN, 0, ids_BT))
        pixels_BTC[ids_BT == UNKNOWN] = UNDRAWN
        return [Image.fromarray(pixels) for pixels in unflatten(pixels_BTC, self.grid)]

    def complete(
        self,
        images: Picture | Iterable[Picture],
        keep: float = 0.5,
        num_samples: int = 1,
        *,
        mask: Picture | Sequence[Picture] | None = None,
        particles: int = 1,
        **options: Unpack[Options],
    ) -> Result:
        """Keep a part of each picture and sample the rest.

        Args:
            images: a picture or several: paths, bytes, PIL images, arrays, tensors; see `read_picture`.
            keep: part of the ids that is kept, in raster order: 0.5 is the upper half. From 0 to below 1.
            num_samples: completions of each picture.
            mask: in the place of `keep`: what is painted (white, True) and what is kept (black, False), as a picture of
                the input's size or of the grid's; one for all pictures, or one for each.
            particles: histories that are drawn for each sample, where pixels are known after unknown ones, so that the
                painted ones fit those too (docs/engine.md). A sample then takes as many times the work.
            options: see `Options`.

        Returns:
            The completions. The kept ids are never changed.

        Raises:
            InputError: a picture that can't be read, or a number out of its range.
        """
        return last(self._paint(self._completion(images, keep, num_samples, mask, particles, **options)))

    def sample(self, n: int = 1, *, first: int = 0, **options: Unpack[Options]) -> Result:
        """Sample n pictures from nothing; `images` of the result holds one list of n.

        Args:
            n: how many.
            first: number of the first one: with the same seed, five from number 5 are the last five of ten.
            options: see `Options`.
        """
        return last(self._paint(self._samples(n, first, **options)))

    def stream(
        self, images: Picture | Iterable[Picture] | None = None, every: int | None = None, **options: Any
    ) -> Iterator[Result]:
        """Watch pictures being drawn: the same result as `complete` or `sample` gives, again and again as it grows.

        Leaving the loop stops the drawing.

        Args:
            images: pictures to complete; `None` samples from nothing.
            every: so many ids are drawn between two results; default: a row.
            options: of `complete`, or of `sample`.

        Yields:
            Results, the last of which is complete.

        Example:
            >>> model = ImageGPT.from_pretrained("nano")
            >>> for result in model.stream(every=128, seed=0):
            ...     picture = result.images[0][0]  # grey where nothing is drawn yet
            ...     if (result.ids >= 0).sum() >= 256:
            ...         break
        """
        every = self.grid[1] if every is None else every
        check_count("every", every)
        job = self._samples(**options) if images is None else self._completion(images, **options)
        return self._paint(job, every)

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
            >>> model = ImageGPT.from_pretrained("nano")
            >>> model.features(np.zeros((32, 32, 3), np.uint8), layer=2).shape
            (1, 192)
        """
        layers = layers_of(layer, self.spec.n_layer)
        check_pool(pool)
        found = self.features_of(self.encode(images), layers, pool, batch_size=batch_size, progress=progress)
        return found[layers[0]] if is_one(layer) else found

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
        """
        if batch_size is not None:
            check_count("batch_size", batch_size)
        extractor = self.extractor(layers, pool, backend or self.feature_backend(layers, len(ids_BT)))
        inputs_BT = inputs_of(ids_BT, self.spec.sos, checkpoint.is_causal(self.path))
        shape = (self.spec.n_embd,) if pool == "mean" else (self.spec.n_positions, self.spec.n_embd)
        found = {layer: np.empty((len(ids_BT), *shape), np.float32) for layer in layers}
        rows = batch_size or extractor.rows
        for start in range(0, len(ids_BT), rows):
            stop = min(start + rows, len(ids_BT))
            for layer, values in zip(layers, extractor(inputs_BT[start:stop]), strict=True):
                found[layer][start:stop] = values
            if progress is not None:
                progress(stop, len(ids_BT))
        return found

    def feature_backend(self, layers: Sequence[int], pictures: int) -> str:
        """ "onnx" or "torch": what was named, or what is faster for the features of so many pictures."""
        operations = pictures * blocks_flops(self.spec, max(layers))
        return self.named_backend or choose_for_features(self.path, self.spec, self.device, self.precision, operations)

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

    def _paint(self, job: Job, every: int | None = None) -> Iterator[Result]:
        return paint(job, self.backend, self.decode, every)

    def _completion(
        self,
        images: Picture | Iterable[Picture],
        keep: float = 0.5,
        num_samples: int = 1,
        mask: Picture | Sequence[Picture] | None = None,
        particles: int = 1,
        **options: Any,
    ) -> Job:
        given = prompt_length(keep, self.spec.n_positions)
        check_count("num_samples", num_samples)
        check_count("particles", particles)
        pictures = read_pictures(images)
        if mask is None:
            known_RT = np.zeros((len(pictures), self.spec.n_positions), bool)
            known_RT[:, :given] = True
        else:
            known_RT = ~flatten(read_masks(mask, pictures, self.framing))
        particles = particles if known_later(known_RT).any() else 1  # else there is nothing to weigh them by
        return self._job(self._encode(pictures), known_RT, num_samples, 0, particles, **options)

    def _samples(self, n: int = 1, first: int = 0, **options: Any) -> Job:
        check_count("n", n)
        if first < 0:
            raise InputError(f"first must be at least 0, not {first}.")
        nothing = np.zeros((1, self.spec.n_positions), np.int64)
        return self._job(nothing, np.zeros(nothing.shape, bool), n, first, 1, **options)

    def _encode(self, pictures: list[Image.Image]) -> NDArray[np.int64]:
        pixels = np.stack([self.framing.apply(picture) for picture in pictures])
        return flatten(self.codec.encode(pixels))

    def _job(
        self,
        ids_RT: NDArray[np.int64],
        known_RT: NDArray[np.bool_],
        samples: int,
        first: int,
        particles: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        batch_size: int | None = None,
        log_probs: bool = False,
        logits_processor: Any = None,
        progress: Progress | None = None,
    ) -> Job:
        if not checkpoint.is_causal(self.path):
            raise InputError(
                f"{self.path} is a bidirectional (BERT) model: it guesses hidden ids from all others and can't draw "
                "one after another. Its features can be used."
            )
        sampling = Sampling(temperature, top_k, top_p, min_p)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        seeds = seeds_for(seed, len(ids_RT))
        task = Task(ids_RT, known_RT, seeds, samples, first, particles)
        process = None if logits_processor is None else self._process(logits_processor)
        told = seeds if isinstance(seed, Sequence) else seeds[0]
        return Job(task, sampling, told, batch_size, progress, log_probs, process)

    def _process(self, logits_processor: Any) -> Process:
        from imagegpt.engine.torch_backend import TorchBackend, as_process

        if not isinstance(self.backend, TorchBackend):
            raise InputError('logits_processor needs the torch backend: open the model with backend="torch".')
        return as_process(logits_processor, self.spec.sos)
