"""imagegpt download"""

from __future__ import annotations

import time
from pathlib import Path

from imagegpt.cli.options import Json, Whole
from imagegpt.cli.output import print_record, working
from imagegpt.convert.download import BASE, STEPS, Size, download_release


def download(
    size: Size,
    /,
    *,
    to: Path,
    step: Whole = STEPS[-1],
    bert: bool = False,
    base: str = BASE,
    json_: Json = False,
) -> None:
    """Fetch one of OpenAI's TensorFlow checkpoints, with its palette, for `imagegpt convert`.

    A download that was broken off continues where it ended.

    Args:
        size: which model.
        to: the folder for its files; one for each checkpoint.
        step: of training: 131000, 262000, 524000 or 1000000.
        bert: the model that was trained to fill in ids (BERT), not to continue them.
        base: another place that has the same files.
        json_: print the report as JSON.
    """
    began = time.perf_counter()
    with working("fetching", "MB") as progress:
        record = download_release(size, to, step=step, bert=bert, base=base, progress=progress)
    seconds = round(time.perf_counter() - began, 3)
    sentence = (
        f"{record['files']} files, {record['bytes']:,} bytes ({seconds:.1f} s); next: imagegpt convert {to} --to DIR"
    )
    print_record({**record, "seconds": seconds}, json_, sentence)
