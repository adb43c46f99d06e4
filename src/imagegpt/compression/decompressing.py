"""A compressed file back to ids and pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.compression.batches import Batch, Coding, OtherIds, decode_batch
from imagegpt.compression.compressing import backend_of, check_model, device_of, tell_pictures, versions
from imagegpt.compression.container import DamagedFile, Header, Layout, read_file
from imagegpt.compression.ids import Tell
from imagegpt.engine.backends import Precision
from imagegpt.errors import InputError
from imagegpt.painting import Progress
from imagegpt.pipeline import ImageGPT
from imagegpt.sequence import unflatten


@dataclass(frozen=True)
class Compressed:
    """A compressed file that was checked from end to end; nothing of it is decoded yet. Make it by `open_compressed`.

    Args:
        layout: what is where in it.
    """

    layout: Layout

    @property
    def header(self) -> Header:
        """What made the file."""
        return self.layout.header

    def __len__(self) -> int:
        """How many pictures."""
        return self.header.count

    def open_model(self, name: str | Path = "nano", device: str | None = None) -> ImageGPT:
        """Open a model as the file's was: with its backend and precision, and its kind of device if that is here.

        Args:
            name: of the model; see `ImageGPT.from_pretrained`.
            device: in the place of the encoder's.

        Raises:
            InputError: there is no such model, it is another one, or the file names a backend that is none.
        """
        path = checkpoint.find_model(name)
        self._check_fingerprint(path)
        header = self.header
        if header.backend not in ("onnx", "torch") or header.precision not in get_args(Precision):
            raise InputError(
                f"{self.layout.path} is damaged: it names the backend {header.backend!r} with {header.precision!r}."
            )
        how: dict[str, Any] = {"backend": header.backend, "precision": header.precision}
        return ImageGPT.from_pretrained(path, device=device or _usable(header.device), **how)

    def decode(self, model: ImageGPT, progress: Progress | None = None) -> Iterator[Batch]:
        """Decode batch after batch.

        Args:
            model: as `open_model` opens it; one that is opened in another way is tried, and told where it fails.
            progress: called with (pictures done, pictures in all).

        Raises:
            InputError: another model, codec or grid; too little memory; or a batch that does not come out as the
                encoder had it, so that no wrong picture is ever given.
            MissingExtra: constriction is missing (extra "compress").
        """
        self._check(model)
        coding, done = Coding(model.backend, model.codec, model.framing, self.header.lossless), 0
        fit = model.backend.rows_that_fit(1)
        for number, (_, _, rows) in enumerate(self.layout.batches):
            if rows > fit:
                raise InputError(
                    f"{self.layout.path}: {rows} pictures are decoded together, and the memory has room for {fit}."
                )
            tell = None
            if progress is not None:
                so_far = partial(_swapped, progress, len(self))
                tell = partial(tell_pictures, so_far, done, rows, model.spec.n_positions)
            yield self._batch(coding, model, number, done, tell)
            done += rows
            if progress is not None:
                progress(done, len(self))

    def _batch(self, coding: Coding, model: ImageGPT, number: int, first: int, tell: Tell | None) -> Batch:
        path, last = self.layout.path, first + self.layout.batches[number][2] - 1
        try:
            return decode_batch(coding, self.layout.read(number), tell)
        except DamagedFile as error:
            raise InputError(f"{path} is damaged: {error}.") from None
        except OtherIds:
            raise InputError(
                f"{path}: pictures {first} to {last} don't come out as they went in: probabilities differ in some bit. "
                f"They were coded by {_told(self.header)}; here are {_told_here(model)}. Decode where it was coded."
            ) from None

    def _check(self, model: ImageGPT) -> None:
        self._check_fingerprint(model.path)
        check_model(model)
        header = self.header
        for what, theirs, ours in (
            ("codec", header.palette, model.codec.fingerprint),
            ("grid", header.grid, model.grid),
            ("crop", header.crop, model.framing.crop),
        ):
            if theirs != ours:
                raise InputError(
                    f"{self.layout.path} was made with the {what} {theirs}, and {model.path} has {ours}: its "
                    "preprocessor_config.json was changed, so take the model's own."
                )

    def _check_fingerprint(self, path: Path) -> None:
        found = checkpoint.fingerprint(path)
        if found != self.header.model:
            raise InputError(
                f"{self.layout.path} was made with the model {self.header.model} ({self.header.name}), and {path} is "
                f"{found}: name the right one with --model."
            )


def open_compressed(path: str | Path) -> Compressed:
    """Open a compressed file, which checks it from end to end.

    Raises:
        InputError: it can't be read, is of another kind or of a newer format, is truncated, or damaged.
    """
    return Compressed(read_file(path))


def decompress(
    path: str | Path, model: ImageGPT | str | Path = "nano", progress: Progress | None = None
) -> Iterator[Batch]:
    """Decode a compressed file, batch by batch.

    Args:
        path: of the file.
        model: that coded it: opened, or its name.
        progress: called with (pictures done, pictures in all).

    Yields:
        Batches, in the order of the pictures; `pictures` makes arrays of them.

    Raises:
        InputError: see `open_compressed` and `Compressed.decode`.
    """
    found = open_compressed(path)
    opened = model if isinstance(model, ImageGPT) else found.open_model(model)
    yield from found.decode(opened, progress)


def pictures(batch: Batch, model: ImageGPT) -> list[NDArray[np.uint8]]:
    """A batch's pictures: their own pixels where these were kept, else those that the codec makes of their ids.

    Args:
        batch: decoded.
        model: that decoded it.

    Returns:
        uint8 (height, width, 3), or (height, width) for grey, of each.
    """
    if batch.pixels is None:
        return list(model.codec.decode(unflatten(batch.ids_BT, model.grid)))
    return [pixels[..., 0] if pixels.shape[2] == 1 else pixels for pixels in batch.pixels]


def _swapped(progress: Progress, total: int, done: int) -> None:
    progress(done, total)


def _usable(device: str) -> str | None:
    """The encoder's kind of device, or `None`, the best there is, where that is not here."""
    if device == "cpu":
        return device
    from imagegpt.engine.backends import torch_device

    try:
        torch_device(device)
    except InputError:
        return None
    return device


def _told(header: Header) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in header.versions.items())
    return f"{header.backend} {header.precision} on {header.device} ({packages})"


def _told_here(model: ImageGPT) -> str:
    backend = backend_of(model)
    packages = ", ".join(f"{name} {number}" for name, number in versions(backend).items())
    return f"{backend} {model.precision} on {device_of(model)} ({packages})"
