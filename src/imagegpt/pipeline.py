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
from imagegpt.backbone import Backbone
from imagegpt.codec.codec import dims_of
from imagegpt.codec.masks import read_masks, whole_blocks
from imagegpt.codec.pictures import Picture, read_picture, read_pictures
from imagegpt.engine.attention import Attention, read_place
from imagegpt.engine.backends import (
    Precision,
    choose_backend,
    choose_for_pictures,
    load_network,
    open_onnx,
    open_onnx_scorer,
)
from imagegpt.engine.batches import Task
from imagegpt.engine.cost import blocks_flops
from imagegpt.engine.decode import UNKNOWN, Backend, Process
from imagegpt.engine.score import Scorer, Scores, method_of, read_passes, score_ids
from imagegpt.engine.step_score import StepScorer
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError, check_count
from imagegpt.painting import Job, Options, Progress, Result, last, paint, seeds_for
from imagegpt.sequence import flatten, known_later, prompt_length, unflatten

if TYPE_CHECKING:
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

UNDRAWN = (200, 200, 200)  # the colour of pixels that are not drawn yet


class ImageGPT(Backbone):
    """A generative ImageGPT with its codec.

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
        if compile and backend == "onnx":
            raise InputError('compile needs backend="torch": onnxruntime compiles nothing.')
        super().__init__(path, device, precision, "torch" if compile and backend is None else backend)
        self._compile = compile
        self._scorer: tuple[str, Scorer] | None = None  # the one in use, and its backend

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

    def decode(self, ids_BT: NDArray[np.int64]) -> list[Image.Image]:
        """Ids (B, T) to pictures; where one is -1 its pixels are grey.

        Raises:
            InputError: ids of another shape.
        """
        ids_BT = np.asarray(ids_BT)
        if ids_BT.ndim != 2 or ids_BT.shape[1] != self.spec.n_positions:
            raise InputError(f"The ids must have the shape (pictures, {self.spec.n_positions}), not {ids_BT.shape}.")
        ids_Bhw, factor = unflatten(ids_BT, self.grid), self.codec.factor
        unknown_Bhw = ids_Bhw == UNKNOWN
        pixels_BHWC = self.codec.decode(_continued(ids_Bhw))
        pixels_BHWC[unknown_Bhw.repeat(factor, 1).repeat(factor, 2)] = UNDRAWN
        return [Image.fromarray(pixels) for pixels in pixels_BHWC]

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
                the input's size or of the framed one's; one for all pictures, or one for each. Where an id stands for
                several pixels it is painted if any of them is.
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

    def score(
        self,
        images: Picture | Iterable[Picture],
        *,
        passes: int | None = None,
        steps: bool = False,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """How likely pictures are: the probability that the model gives to each, and to each of its pixels.

        Args:
            images: a picture or several; see `complete`.
            passes: of a bidirectional (BERT) model, which has no likelihood: its pseudo-likelihood is told, every id
                hidden in one of so many passes; default: 7.
            steps: run the very steps that would draw the pictures, id after id, as int8 always does: half precision
                rounds differently over a whole picture, which is many times as fast.
            batch_size: pictures that are run together; default: what is fastest. It does not change the result but
                for rounding.
            progress: called with (pictures done, pictures in all).

        Returns:
            Surprise and entropy of each id, and the sums; see `Scores`.

        Raises:
            InputError: a picture that can't be read, or passes that can't be.

        Example:
            >>> model = ImageGPT.from_pretrained("nano")
            >>> scores = model.score(np.zeros((32, 32, 3), np.uint8))
            >>> scores.surprise.shape, bool(scores.nats_per_token[0] < 1)
            ((1, 1024), True)
        """
        how = {"passes": passes, "steps": steps, "batch_size": batch_size, "progress": progress}
        return self.score_ids(self.encode(images), **how)

    def score_ids(
        self,
        ids_BT: NDArray[np.int64],
        *,
        passes: int | None = None,
        steps: bool = False,
        batch_size: int | None = None,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """How likely pictures are, by their ids; see `score`.

        Args:
            ids_BT: whole pictures, (pictures, T), of 0..K-1.
            passes, steps, batch_size, progress: see `score`.
            backend: "onnx" or "torch", as `score_backend` chose it for several calls; default: chosen for this one, or
                with `steps` what draws.

        Raises:
            InputError: ids that are no pictures of this model's, passes that can't be, or scores that are no numbers.
        """
        ids_BT, causal = self.check_ids(ids_BT), checkpoint.is_causal(self.path)
        count = read_passes(passes, causal, self.spec.n_positions)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if steps and not causal:
            raise InputError(f"{self.path} is a bidirectional (BERT) model: it draws nothing, so it has no steps.")
        scorer = StepScorer(self.backend) if steps else self._scorer_of(backend or self.score_backend(len(ids_BT)))
        surprise, entropy = score_ids(scorer, ids_BT, self.spec.sos, None if causal else count, batch_size, progress)
        if np.isnan(surprise).any() or np.isnan(entropy).any():
            raise InputError(f"{self.path} gives scores that are no numbers in {self.precision}: try fp32.")
        return Scores(surprise, entropy, self.codec.name, dims_of(self.codec), method_of(causal))

    def score_backend(self, pictures: int) -> str:
        """ "onnx" or "torch": what was named, or what is faster for the scores of so many pictures."""
        operations = pictures * blocks_flops(self.spec, self.spec.n_layer)
        return self.named_backend or choose_for_pictures(self.path, self.spec, self.device, self.precision, operations)

    def _scorer_of(self, backend: str) -> Scorer:
        """What tells likelihoods; the last one is kept."""
        if self._scorer is None or self._scorer[0] != backend:
            if backend == "onnx":
                opened = open_onnx_scorer(self.path, self.spec, self.precision)
            else:
                from imagegpt.engine.torch_score import TorchScorer

                opened = TorchScorer(self.model)
            self._scorer = backend, opened
        return self._scorer[1]

    def attention(self, image: Picture, at: tuple[int, int]) -> Attention:
        """Where the network looks when it predicts one id of a picture: the share of each other id, by layer and head.

        The network runs in torch, whatever draws; where the precision is int8 it is onnxruntime's, and this is float32.

        Args:
            image: a picture; see `complete`.
            at: (row, column) of the id, on the grid of ids, from 0.

        Returns:
            The shares, and what the network expects at this place; see `Attention`.

        Raises:
            InputError: a picture that can't be read, no such place, or shares that are no numbers.

        Example:
            >>> model = ImageGPT.from_pretrained("nano")
            >>> seen = model.attention(np.zeros((32, 32, 3), np.uint8), (16, 8))
            >>> seen.weights.shape, seen.start.shape, seen.expected.shape
            ((8, 3, 32, 32), (8, 3), (512,))
        """
        row, column = read_place(at, self.grid)
        from imagegpt.engine.torch_attention import attend

        ids_BT = self._encode([read_picture(image)])
        weights_LNT, start, expected = attend(self.model, ids_BT[0], row * self.grid[1] + column)
        if not all(np.isfinite(each).all() for each in (weights_LNT, start, expected)):
            raise InputError(f"{self.path} gives attention that is no number in {self.precision}: try fp32.")
        weights = weights_LNT.reshape(*start.shape, *self.grid)
        return Attention((row, column), weights, start, expected)

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
            known_RT = ~flatten(whole_blocks(read_masks(mask, pictures, self.framing), self.codec.factor))
        particles = particles if known_later(known_RT).any() else 1  # else there is nothing to weigh them by
        return self._job(self._encode(pictures), known_RT, num_samples, 0, particles, **options)

    def _samples(self, n: int = 1, first: int = 0, **options: Any) -> Job:
        check_count("n", n)
        check_count("first", first, 0)
        nothing = np.zeros((1, self.spec.n_positions), np.int64)
        return self._job(nothing, np.zeros(nothing.shape, bool), n, first, 1, **options)

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


def _continued(ids_Bhw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unknown ids as the known one above them, or 0: a codec that looks around blends them with known ones."""
    rows_Bhw = np.where(ids_Bhw == UNKNOWN, 0, np.arange(ids_Bhw.shape[1])[:, None])
    above_Bhw = np.take_along_axis(ids_Bhw, np.maximum.accumulate(rows_Bhw, 1), 1)
    return np.where(above_Bhw == UNKNOWN, 0, above_Bhw)
