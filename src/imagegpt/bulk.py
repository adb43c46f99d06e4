"""Thousands of samples into one .npz file, by one process or by several, whatever interrupts them.

Samples are numbered, and a sample is a function of the seed and its number. They are drawn in parts, each a file in a
folder beside the result, so that a run continues where the last one was stopped, and processes share the parts among
them. The result is put together when all are there: `arr_0` (N, height, width, 3) uint8, as the usual FID tools read
it, and `run.json`, which says what made it.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__, checkpoint
from imagegpt.engine.warp import Sampling
from imagegpt.errors import InputError, reason
from imagegpt.files import write_text, write_whole
from imagegpt.pipeline import ImageGPT, Progress, check_count, seeds_for

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Bulk:
    """A run that samples `num` pictures into `out`.

    Args:
        model: draws them.
        num: how many.
        out: the .npz file; its parts lie in the folder `out`.parts until it is made.
        options: temperature, top_k, top_p, min_p and seed of `ImageGPT.sample`.
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
        return self.out.with_name(f"{self.out.name}.parts")

    def run(self, progress: Progress | None = None) -> int:
        """Draw this process's parts that are missing; the first process then waits for the others' and joins all.

        Args:
            progress: called with (samples there, samples in all), of all processes.

        Returns:
            How many samples this process drew.
        """
        size = self._begin()
        if size is None:
            return 0
        parts = range(0, self.num, size)

        def tell() -> int:
            there = self.there(size)
            if progress is not None:
                progress(there, self.num)
            return there

        drawn = 0
        for first in parts[self.rank :: self.processes]:
            tell()
            path = self._path(first)
            if not path.exists():
                count = min(size, self.num - first)
                ids = self.model.sample(count, first=first, batch_size=self.batch_size, **self.options).ids
                write_whole(path, lambda temporary, ids=ids: np.save(temporary, ids.astype(np.uint16)))
                drawn += count
        if self.rank == 0:
            while tell() < self.num:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            write_whole(self.out, lambda temporary: self._join(temporary, parts))
            shutil.rmtree(self.folder, ignore_errors=True)
        return drawn

    def there(self, size: int) -> int:
        """How many samples lie in the parts' folder, in parts of `size`."""
        firsts = [int(path.stem.removeprefix("ids-")) for path in self.folder.glob("ids-*.npy")]
        return sum(min(size, self.num - first) for first in firsts)

    def _facts(self) -> dict[str, Any]:
        model = self.model
        facts = {"model": checkpoint.fingerprint(model.path), "palette": model.codec.fingerprint, "num": self.num}
        return {**facts, "precision": model.precision, "grid": list(model.grid), **self.options}

    def _begin(self) -> int | None:
        """Make the folder of a new run, or check that of an interrupted one.

        Returns:
            The number of samples of a part; `None` where another process has joined them all by now.
        """
        self._check()
        facts, path = self._facts(), self.folder / "run.json"
        if self.out.exists():
            if self.rank and self._joined(facts):
                return None
            raise InputError(f"{self.out} is there already; remove it, or choose another --out.")
        size = self.batch_size or self.model.backend.rows
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {self.folder} can't be made: {error.strerror}.") from None
        if not path.exists():
            write_text(path, json.dumps({**facts, "part": size, "imagegpt": __version__}, indent=2) + "\n")
        found = self._found(path)
        for name, value in facts.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self.folder} holds samples with {name} {found.get(name)}, not {value}: give the same command to "
                    "continue them, or remove the folder."
                )
        return found["part"]

    def _check(self) -> None:
        """Refuse numbers that can't be sampled with before anything is written."""
        filters = {name: value for name, value in self.options.items() if name != "seed"}
        Sampling(**filters)
        seeds_for(self.options.get("seed"), 1)
        check_count("num", self.num)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    def _joined(self, facts: dict[str, Any]) -> bool:
        """Whether `out` is the result of this very run."""
        try:
            with zipfile.ZipFile(self.out) as archive:
                found = json.loads(archive.read("run.json"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False
        return all(found.get(name) == value for name, value in facts.items())

    def _found(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["part"] >= 1:
                return found
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise InputError(f"{path} is damaged; remove the folder {self.folder}.")

    def _path(self, first: int) -> Path:
        return self.folder / f"ids-{first:09}.npy"

    def _join(self, path: Path, parts: range) -> None:
        shape = (self.num, *self.model.grid, 3)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                _write_header(file, shape)
                for first in parts:
                    file.write(self._pixels(first, min(parts.step, self.num - first)).tobytes())
            archive.writestr("run.json", (self.folder / "run.json").read_bytes())

    def _pixels(self, first: int, count: int) -> NDArray[np.uint8]:
        path = self._path(first)
        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged ({reason(error)}); remove it and run again.") from None
        if ids.shape != (count, self.model.spec.n_positions):
            raise InputError(f"{path} holds {len(ids)} samples, not {count}; remove it and run again.")
        return self.model.codec.decode(ids)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
