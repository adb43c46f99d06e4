"""imagegpt convert"""

from __future__ import annotations

import time
from pathlib import Path

from imagegpt.checkpoint import find_model
from imagegpt.cli.options import Json, Whole
from imagegpt.cli.output import print_record, working
from imagegpt.convert.archive import write_archive
from imagegpt.convert.openai import convert_openai
from imagegpt.errors import InputError


def convert(
    source: str,
    /,
    *,
    to: Path,
    step: Whole | None = None,
    n_head: Whole | None = None,
    palette: Path | None = None,
    json_: Json = False,
) -> None:
    """Make a model folder of OpenAI's TensorFlow checkpoint, or an .npz file in OpenAI's names of a model.

    Args:
        source: a folder with model.ckpt-STEP.index and its shards (see `imagegpt download`), that index, or an .npz
            file that this verb wrote; with --to FILE.npz: a model folder or a Hugging Face Hub id.
        to: the model folder to make; or a file that ends in .npz.
        step: which checkpoint, where the folder has several.
        n_head: attention heads, where neither the tensors nor the known sizes tell.
        palette: the colours, an .npy file; default: kmeans_centers.npy beside the checkpoint.
        json_: print the report as JSON.
    """
    began = time.perf_counter()
    if to.suffix == ".npz":
        if (step, n_head, palette) != (None, None, None):
            raise InputError("--step, --n-head and --palette are for checkpoints of OpenAI's; --to a folder reads one.")
        with working("writing", "tensors") as progress:
            record = write_archive(find_model(source), to, progress)
        sentence = f"{to}: {record['variables']} variables"
    else:
        with working("converting", "MB") as progress:
            record = convert_openai(source, to, step=step, n_head=n_head, palette=palette, progress=progress)
        left_out = sum(map(len, record["left_out"].values()))
        sentence = f"{to}: {record['parameters']:,} parameters, {record['objective']}; left out: {left_out} tensors"
    seconds = round(time.perf_counter() - began, 3)
    print_record({**record, "seconds": seconds}, json_, f"{sentence} ({seconds:.1f} s)")
