"""What an export is, whatever it is to: where it is written, what lies beside, what is told of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt import checkpoint
from imagegpt.codec.codec import grid_of
from imagegpt.codec.preprocessor_file import write_preprocessor
from imagegpt.export.check import Difference
from imagegpt.export.options import Function, check_hidden
from imagegpt.export.source import Source, open_source
from imagegpt.files import check_new_folder, whole_folder
from imagegpt.onnx.metadata import Metadata


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: where.
        precision: of the weights.
        files: name of each file -> its bytes.
        differences: from the network in float32, of each output; none where nothing was checked.
    """

    folder: Path
    precision: str
    files: dict[str, int]
    differences: Sequence[Difference]

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "written": str(self.folder),
            "precision": self.precision,
            "files": self.files,
            "checked": [difference.as_record() for difference in self.differences],
        }


def begin(
    model: str | os.PathLike[str], out: str | os.PathLike[str], only: Sequence[Function] | None, hidden: Sequence[int]
) -> tuple[Path, Source, Sequence[Function]]:
    """Check what is asked for: the folder to make, the opened model, and the functions to export."""
    target = Path(out)
    check_new_folder(target)
    source = open_source(checkpoint.find_model(os.fspath(model)))
    functions = source.choose(only)
    check_hidden(hidden, source.spec.n_layer, functions)
    return target, source, functions


@contextmanager
def export_folder(source: Source, out: Path, precision: str) -> Iterator[tuple[Path, Metadata]]:
    """A folder to write an export into, which becomes `out`, or nothing.

    Yields:
        The folder, with the model's config, processor and codec, and what each exported file must say of the model.
    """
    with whole_folder(out) as folder:
        shutil.copyfile(source.folder / checkpoint.CONFIG, folder / checkpoint.CONFIG)
        entries = source.codec.store(folder)
        write_preprocessor(folder, entries, source.framing)
        yield folder, _about(source, entries, folder, precision)


def _about(source: Source, entries: dict[str, Any], folder: Path, precision: str) -> Metadata:
    codec, framing = source.codec, source.framing
    grid = grid_of(codec, framing)
    return Metadata(source.spec, grid, framing, entries, folder, codec.fingerprint, source.fingerprint, precision)
