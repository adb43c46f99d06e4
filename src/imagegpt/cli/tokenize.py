"""imagegpt tokenize"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from imagegpt.cli.options import DataOptions, Json, Whole, parse_grid, place_among_processes
from imagegpt.cli.output import keeping, print_record, working
from imagegpt.codec.augment import Augmentation
from imagegpt.codec.preprocessor_file import find_framed
from imagegpt.data.tokens import META
from imagegpt.parts import folder_of
from imagegpt.tokenization import Tokenization, check_folder


def tokenize(
    data: str,
    /,
    *,
    out: Path,
    codec: str = "nano",
    grid: str | None = None,
    crop: Literal["none", "center"] = "center",
    augment: str = "none",
    augment_copies: Whole = 0,
    seed: Whole = 0,
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Turn pictures into a codec's ids, once: a folder that every command takes as DATA.

    Stopped runs continue with the same command, and several processes share the work after
    `torchrun --nproc-per-node 2 --no-python --`.

    Args:
        data: pictures: a folder, a table, shards, a data set and more, perhaps DATA:split; see docs/data.md.
        out: a new folder.
        codec: a palette's .npy file, the folder of a VQ-VAE, a model folder, "nano" or a Hugging Face Hub id.
        grid: of ids, HEIGHTxWIDTH; default: that of the codec's folder, or 32x32 of an .npy file.
        crop: cut the largest centred part of the grid's shape, as the paper does, or squash the whole picture.
        augment: cifar, imagenet, or some of crop, pad and flip with commas between them; needs --augment-copies.
        augment_copies: augmented views of each picture, in the place of the plain one.
        seed: of the augmentation.
        options: which records count.
        json_: print what was made as JSON.
    """
    options = options or DataOptions()
    rank, processes = place_among_processes()
    check_folder(out, rank)
    augmentation = Augmentation.parse(augment)
    used, framing = find_framed(codec, parse_grid(grid) if grid else None, crop)
    source = options.open(data)
    run = Tokenization(source, used, framing, augmentation, augment_copies, seed, options.on_error)
    began = time.perf_counter()
    with keeping(folder_of(out / META)), working("tokenising", "pictures", before="reading the data") as progress:
        made = run.run(out, rank, processes, progress if rank == 0 else None)
    if rank == 0:
        print_record(_report(out, made, time.perf_counter() - began), json_)


def _report(out: Path, made: int, seconds: float) -> dict[str, object]:
    meta = json.loads((out / META).read_text(encoding="utf-8"))
    return {
        "written": str(out),
        "count": meta["count"],
        "made": made,
        "grid": meta["grid"],
        "codec": meta["codec"],
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "seconds": round(seconds, 3),
        "pictures_per_s": round(made / seconds, 2),
        "skipped": meta["skipped"],
    }
