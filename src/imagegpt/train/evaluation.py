"""What a network in training has learnt: nats/token of pictures that it has not seen, and a look at what it draws.

Shape suffixes: B pictures, T ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt.codec.codec import Codec, dims_of
from imagegpt.data.records import Source
from imagegpt.engine.score import bits_per_dim
from imagegpt.files import write_whole
from imagegpt.pipeline import ImageGPT
from imagegpt.sheet import sample_sheet
from imagegpt.train.objectives import EVALUATION_MASKS, draw_masks
from imagegpt.train.processes import Processes
from imagegpt.train.training import Training

ROWS = 32  # of a forward


def validate(training: Training, source: Source, codec: Codec) -> dict[str, Any]:
    """The mean loss of all pictures of a source, which the processes share.

    A bidirectional network is asked for masked ids, with five masks of each picture that are the same every time.

    Args:
        training: the network.
        source: ids.
        codec: what they are of.

    Returns:
        `nats_per_token` (of masked ids, if bidirectional), `bits_per_dim` and the codec that it is of. Codecs lose
        something, so bits/dim of ids can't be compared with those of RGB pixels.
    """
    assert source.ids_NT is not None
    masked = training.objective.masked
    total = 0.0
    with training.evaluating():
        for copy in range(EVALUATION_MASKS if masked else 1):
            total += _losses(training, source.ids_NT[: len(source)], copy if masked else None)
    nats = total / len(source) / (EVALUATION_MASKS if masked else 1)
    return {
        "nats_per_token": nats,
        "bits_per_dim": bits_per_dim(nats, dims_of(codec)),
        "codec": codec.name,
        "pictures": len(source),
    }


def _losses(training: Training, ids_NT: np.ndarray, copy: int | None) -> float:
    """The sum of the pictures' losses."""
    total = 0.0
    for start, rows_BT, counted in shares(ids_NT, training.group):
        masks = None if copy is None else fixed_masks(rows_BT, copy, start, training.recipe.mask)
        total += training.loss(rows_BT, masks) * counted
    return training.group.total(total)[0]


def shares(ids_NT: np.ndarray, group: Processes) -> Iterator[tuple[int, np.ndarray, int]]:
    """This process's rows of some pictures, forward by forward.

    All processes run as many forwards, since FSDP needs all at each; of a process that has none left the first picture
    is run in vain.

    Yields:
        Number of the first row, ids (B, T) int64, and how many of the rows count: all or none.
    """
    for first in range(0, len(ids_NT), ROWS * group.count):
        start = first + ROWS * group.rank
        rows_BT = ids_NT[start : start + ROWS].astype(np.int64)
        yield (start, rows_BT, len(rows_BT)) if len(rows_BT) else (start, ids_NT[:1].astype(np.int64), 0)


def fixed_masks(rows_BT: np.ndarray, copy: int, start: int, part: float) -> np.ndarray:
    """Which ids of validation pictures are hidden, the same every time, (B, T) bool."""
    rows, length = rows_BT.shape
    return draw_masks((0, 3, copy, start), rows, length, part)


def draw_samples(folder: Path, path: Path, count: int, device: str) -> None:
    """Draw a sheet of a model folder's samples, always with the same random numbers."""
    model = ImageGPT.from_pretrained(folder, device=device)
    sheet = sample_sheet(model.sample(count, seed=0).images[0])
    write_whole(path, sheet.save)
