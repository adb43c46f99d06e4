"""ImageGPT: the one object that a user holds. Pictures in, pictures out."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt import checkpoint
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing, Picture, read_pictures
from imagegpt.codec.preprocessor_file import NAME as PREPROCESSOR
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.engine.decode import Backend, decode
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.errors import InputError, reason
from imagegpt.sequence import flatten, prompt_length, unflatten
from imagegpt.spec import ModelSpec

if TYPE_CHECKING:
    from imagegpt.codec.processor import ImageGPTImageProcessor
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """Sampled pictures.

    Args:
        images: one list of PIL images (of the grid's size) for each input picture.
        ids: int64 `(pictures * samples, T)`; a picture's samples are together.
        seed: what to pass to get the same again.
        given: how many first ids of each row were the picture's own.
    """

    images: list[list[Image.Image]]
    ids: NDArray[np.int64]
    seed: int
    given: int


class ImageGPT:
    """A generative ImageGPT with its palette.

    Use `from_pretrained`. Nothing heavy is loaded before it is needed: the network comes with the first sample.

    Args:
        path: a local model folder in HF's layout.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.
        dtype: of the weights: "float32", "bfloat16" or "float16".

    Example:
        >>> model = ImageGPT.from_pretrained("nano")
        >>> result = model.complete(np.zeros((32, 32, 3), np.uint8), keep=0.9, num_samples=2, seed=0)
        >>> len(result.images[0]), result.ids.shape
        (2, (2, 1024))
    """

    def __init__(self, path: str | Path, device: str | None = None, dtype: str = "float32") -> None:
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
        self._device, self._dtype = device, dtype

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "nano",
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> ImageGPT:
        """Open a model.

        Args:
            name: "nano" (comes with the package), a model folder, or a Hugging Face Hub id.
            revision: branch, tag or commit on the Hub.
            device: see `ImageGPT`.
            dtype: see `ImageGPT`.

        Raises:
            InputError: there is no such model, or it can't be used; the message says why.
        """
        return cls(checkpoint.find_model(name, revision), device, dtype)

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
        """The network, in evaluation mode."""
        import torch

        from imagegpt.model.loading import load_generative

        dtype = getattr(torch, self._dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f'dtype must be "float32", "bfloat16" or "float16", not {self._dtype!r}.')
        return load_generative(self.path, dtype, _torch_device(self._device))

    @cached_property
    def _backend(self) -> Backend:
        from imagegpt.engine.torch_backend import TorchBackend

        return TorchBackend(self.model)

    def encode(self, images: Picture | Iterable[Picture]) -> NDArray[np.int64]:
        """Pictures to ids (pictures, T): crop and resize to the grid, then the nearest colour of each pixel."""
        return self._encode(read_pictures(images))

    def decode(self, ids_BT: NDArray[np.int64]) -> list[Image.Image]:
        """Ids (B, T) to pictures of the grid's size."""
        return [Image.fromarray(pixels) for pixels in self.codec.decode(unflatten(np.asarray(ids_BT), self.grid))]

    def complete(
        self,
        images: Picture | Iterable[Picture],
        keep: float = 0.5,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Result:
        """Keep the first part of each picture and sample the rest.

        Args:
            images: a picture or several: paths, bytes, PIL images, arrays, tensors; see `read_picture`.
            keep: part of the ids that is kept, in raster order: 0.5 is the upper half. From 0 to below 1.
            num_samples: completions of each picture.
            temperature, top_k, top_p: see `imagegpt.engine.warp.Sampling`.
            seed: default: a new one, told in the result.
            batch_size: rows sampled at once; more are done in turn. It does not change what is drawn.
            progress: called with (ids drawn, ids in all) after each step.

        Returns:
            The completions. The kept ids are never changed.

        Raises:
            InputError: a picture that can't be read, or a number out of its range.
        """
        given = prompt_length(keep, self.spec.n_positions)
        sampling = Sampling(temperature, top_k, top_p)
        _check_count("num_samples", num_samples)
        ids_BT = self._encode(read_pictures(images))
        return self._sample(ids_BT[:, :given], num_samples, sampling, seed, batch_size, progress)

    def sample(
        self,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> Result:
        """Sample n pictures from nothing; `images` of the result holds one list of n.

        The arguments are those of `complete`.
        """
        _check_count("n", n)
        nothing = np.empty((1, 0), np.int64)
        return self._sample(nothing, n, Sampling(temperature, top_k, top_p), seed, batch_size, progress)

    def _encode(self, pictures: list[Image.Image]) -> NDArray[np.int64]:
        pixels = np.stack([self.framing.apply(picture) for picture in pictures])
        return flatten(self.codec.encode(pixels))

    def _sample(
        self,
        prompt_RP: NDArray[np.int64],
        samples: int,
        sampling: Sampling,
        seed: int | None,
        batch_size: int,
        progress: Progress | None,
    ) -> Result:
        _check_count("batch_size", batch_size)
        seed = secrets.randbelow(2**32) if seed is None else seed
        if seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, not {seed}.")
        length, given = self.spec.n_positions, prompt_RP.shape[1]
        total, done = len(prompt_RP) * samples * (length - given), 0

        def on_step(drawn: int) -> None:
            nonlocal done
            done += drawn
            if progress is not None:
                progress(done, total)

        parts = []
        for start in range(0, len(prompt_RP) * samples, batch_size):
            rows = np.arange(start, min(start + batch_size, len(prompt_RP) * samples))
            prompts, rows_of_prompts = np.unique(rows // samples, return_inverse=True)
            noise_BT = np.stack([uniforms(seed, int(row) % samples, length) for row in rows])
            parts.append(decode(self._backend, prompt_RP[prompts], rows_of_prompts, sampling, noise_BT, on_step))
        ids_BT = np.concatenate(parts)
        images = self.decode(ids_BT)
        grouped = [images[start : start + samples] for start in range(0, len(images), samples)]
        return Result(grouped, ids_BT, seed, given)


def load_palette(folder: Path, spec: ModelSpec) -> tuple[PaletteCodec, Framing]:
    """A model folder's palette and framing; where it has none, the embedded model's, with a warning.

    transformers' `model.save_pretrained` writes no palette, so such folders are common; their pictures keep their
    shapes, but the colours are a guess.

    Raises:
        InputError: the folder's file is damaged, or it has none and the embedded palette does not fit.
    """
    if (folder / PREPROCESSOR).exists():
        return load_preprocessor(folder)
    codec, framing = load_preprocessor(checkpoint.EMBEDDED["nano"])
    if len(codec) != spec.num_colors:
        raise InputError(f"{folder} has no {PREPROCESSOR}, so the palette of its {spec.num_colors} colours is unknown.")
    try:
        height, width = spec.square_grid
    except ValueError as error:
        raise InputError(f"{folder} has no {PREPROCESSOR}: {error}") from None
    warnings.warn(
        f"{folder} has no {PREPROCESSOR}: using the embedded palette of {len(codec)} colours, which this model may "
        "not have been trained with. Save its image processor into the folder.",
        stacklevel=2,
    )
    return codec, replace(framing, height=height, width=width)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}.")


def _torch_device(name: str | None):
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"The device {name!r} can't be used here: {reason(error)}") from None
    return device
