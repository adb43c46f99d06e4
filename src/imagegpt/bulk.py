"""Thousands of samples into one .npz file, by one process or by several, whatever interrupts them.

Samples are numbered, and each is a function of the seed and its number, so they can be drawn in parts
(`imagegpt.parts`). The result holds `arr_0` (N, height, width, 3) uint8, as the usual FID tools read it, and
`run.json`, which says what made it; `palette` there is its codec's fingerprint.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError, check_count, reason
from imagegpt.files import write_array
from imagegpt.painting import Progress, seeds_for
from imagegpt.parts import Parts, folder_of
from imagegpt.pipeline import ImageGPT
from imagegpt.sequence import unflatten


@dataclass(frozen=True)
class Bulk:
    """A run that samples `num` pictures into `out`.

    Args:
        model: draws them.
        num: how many.
        out: the .npz file; its parts lie in the folder `out`.parts until it is made.
        options: temperature, top_k, top_p, min_p and seed of `ImageGPT.sample`; the seed must be given.
        rank, processes: which of how many processes this is; all run the same.
        batch_size: rows drawn at once; default: the backend's.

    Raises:
        InputError: `out` is there already, or its folder holds parts of another run.
    """

    model: ImageGPT
    num: int
    out: Path
    options: dict[str, Any]
    rank: int = 0
    processes: int = 1
    batch_size: int | None = None

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return folder_of(self.out)

    def run(self, progress: Progress | None = None) -> int:
        """Draw this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            progress: called with (samples there, samples in all), of all processes.

        Returns:
            How many samples this process drew.
        """
        self._check()
        size = self.batch_size or self.model.backend.rows
        return self._parts().run(size, self._draw, self._join, self._joined, progress)

    def _parts(self) -> Parts:
        model = self.model
        facts = {"model": checkpoint.fingerprint(model.path), "palette": model.codec.fingerprint, "num": self.num}
        facts |= {"precision": model.precision, "grid": list(model.grid), **self.options}
        return Parts(self.out, self.num, facts, "samples", "ids", ".npy", self.rank, self.processes)

    def _check(self) -> None:
        """Refuse numbers that can't be sampled with before anything is written."""
        filters = {name: value for name, value in self.options.items() if name != "seed"}
        Sampling(**filters)
        if self.options.get("seed") is None:
            raise InputError("Samples in bulk need a seed: without one each part would draw its own.")
        seeds_for(self.options["seed"], 1)
        check_count("num", self.num)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if len(self.model.codec) > np.iinfo(np.uint16).max:
            raise InputError(
                f"Samples in bulk are kept in 16 bits; {len(self.model.codec)} of the codec's are too many."
            )

    def _draw(self, first: int, count: int, path: Path, tell: Callable[[int], None]) -> None:
        ids = self.model.sample(count, first=first, batch_size=self.batch_size, **self.options).ids
        np.save(path, ids.astype(np.uint16))

    def _join(self, path: Path, parts: list[Path]) -> None:
        shape = (self.num, self.model.framing.height, self.model.framing.width, 3)
        size = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["part"]
        with zipfile.ZipFile(path, "w") as archive:
            pixels = (self._pixels(part, min(size, self.num - number * size)) for number, part in enumerate(parts))
            write_array(archive, "arr_0", np.dtype(np.uint8), shape, pixels)
            archive.writestr(zipfile.ZipInfo("run.json"), (self.folder / "run.json").read_bytes())

    def _joined(self) -> dict[str, Any]:
        with zipfile.ZipFile(self.out) as archive:
            return json.loads(archive.read("run.json"))

    def _pixels(self, path: Path, count: int) -> NDArray[np.uint8]:
        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged ({reason(error)}); remove it and run again.") from None
        if ids.shape != (count, self.model.spec.n_positions):
            raise InputError(f"{path} holds {len(ids)} samples, not {count}; remove it and run again.")
        return self.model.codec.decode(unflatten(ids, self.model.grid))
