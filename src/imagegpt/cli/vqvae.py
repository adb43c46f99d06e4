"""imagegpt vqvae"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from PIL import Image

from imagegpt.cli.options import DataOptions, Json, Whole, parse_grid
from imagegpt.cli.output import SHEET_FORMATS, Output, print_record, working
from imagegpt.cli.tokenize import tokenize
from imagegpt.cli.train import carry_out, from_recipe
from imagegpt.codec.codec import framing_for
from imagegpt.codec.preprocessor_file import find_framed
from imagegpt.codec.quality import Quality
from imagegpt.data.ids import codec_of, read_ids
from imagegpt.data.pixels import read_pixels
from imagegpt.errors import InputError, check_count
from imagegpt.sequence import unflatten
from imagegpt.sheet import comparison_sheet
from imagegpt.train.codec_recipe import CodecRecipe

vqvae = App(name="vqvae", help="Learn codes for blocks of pixels, so that larger pictures take fewer ids.")
trainer = App(name="train", help="Train a VQ-VAE on pictures.", config=from_recipe(CodecRecipe))
vqvae.command(trainer)
SHOWN = 16  # pictures on a sheet


@trainer.default
def train(
    *,
    out: Path,
    recipe: Annotated[str | None, Parameter(name="--recipe")] = None,
    find_lr: Annotated[bool, Parameter(negative="")] = False,
    values: Annotated[CodecRecipe | None, Parameter(name="*")] = None,
    json_: Json = False,
) -> None:
    """Train a VQ-VAE on pictures: a codec that other commands take as --codec.

    Stopped runs continue with the same command, from their newest checkpoint. Several processes share a run after
    `torchrun --nproc-per-node 8 --no-python --`.

    Args:
        out: folder of the run: its log, checkpoints, sheets, and at the end the codec in `model`.
        recipe: a YAML file, or the name of a recipe that comes with the package; what else is given goes over it.
        find_lr: train a hundred updates at rising step sizes, suggest one, and stop.
        values: of the recipe.
        json_: print the summary as JSON.
    """
    carry_out(values or CodecRecipe(), out, find_lr, json_, "loss")


@vqvae.command
def encode(
    data: str,
    /,
    *,
    codec: str,
    out: Path,
    grid: str | None = None,
    crop: Literal["none", "center"] = "center",
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Turn pictures into codes: `imagegpt tokenize` with this codec.

    Args:
        data: pictures; see docs/data.md.
        codec: the folder of a VQ-VAE, or of a model that has one.
        out: a new folder, which other commands take as DATA.
        grid: of codes, HEIGHTxWIDTH; default: the codec's own.
        crop: cut the largest centred part of the grid's shape, or squash the whole picture.
        options: which records count.
        json_: print what was made as JSON.
    """
    tokenize(data, out=out, codec=codec, grid=grid, crop=crop, options=options, json_=json_)


@vqvae.command
def decode(
    data: str, /, *, out: str, codec: str | None = None, options: DataOptions | None = None, json_: Json = False
) -> None:
    """Turn codes into pictures.

    Args:
        data: ids, as `imagegpt vqvae encode` or `imagegpt tokenize` made them.
        out: a folder for single pictures.
        codec: the folder of a VQ-VAE, or of a model that has one; default: the data's own.
        options: which records count.
        json_: print what was written as JSON.
    """
    options, began = options or DataOptions(), time.perf_counter()
    if Path(out).suffix.lower() in SHEET_FORMATS:
        raise InputError(f"--out {out}: give a folder; each picture becomes a file in it.")
    source = options.open(data)
    if source.tokens is None:
        raise InputError(f"{data} holds no ids: make some with `imagegpt vqvae encode`.")
    used, grid, written = codec_of(source, codec), source.tokens.grid, []
    target = Output(out if out.endswith(("/", "\\")) else f"{out}/", {"codec": used.fingerprint, "data": data})
    with working("decoding", "pictures") as progress:
        for batch in read_ids(source, used, framing_for(used, grid)):
            for number, pixels in zip(batch.numbers, used.decode(unflatten(batch.ids_BT, grid)), strict=True):
                written.append(target.save(f"{number:06}", Image.fromarray(pixels)))
                progress(len(written), len(source))
    record = {"written": written, "codec": used.name, "seconds": round(time.perf_counter() - began, 3)}
    print_record(record, json_, f"{len(written)} pictures in {target.path} ({record['seconds']:.1f} s)")


@vqvae.command
def evaluate(
    codec: str,
    /,
    *,
    data: str,
    grid: str | None = None,
    crop: Literal["none", "center"] = "center",
    sheet: str | None = None,
    shown: Whole = SHOWN,
    options: DataOptions | None = None,
    json_: Json = False,
) -> None:
    """Find out what a codec loses of pictures, and how many of its codes are used.

    A palette can be judged in the same way.

    Args:
        codec: the folder of a VQ-VAE, of a model, "nano", or a palette's .npy file.
        data: pictures that it has not been trained on.
        grid: of codes, HEIGHTxWIDTH; default: the codec's own.
        crop: cut the largest centred part of the grid's shape, or squash the whole picture.
        sheet: a picture of some originals over what came out (.png, .webp, .jpg).
        shown: how many on the sheet.
        options: which records count.
        json_: print the numbers as JSON.
    """
    options, began = options or DataOptions(), time.perf_counter()
    check_count("--shown", shown)
    used, framing = find_framed(codec, parse_grid(grid) if grid else None, crop)
    source, quality = options.open(data), Quality(used, again=True)
    facts = {"codec": used.fingerprint, "data": data}
    target = None if sheet is None else Output(sheet, facts, "--sheet", folders=False)
    rows: dict[str, list[Any]] = {"pictures": [], used.name: []}
    skipped: list[str] = []
    with working("evaluating", "pictures") as progress:
        for batch, seen_BHWC in read_pixels(source, framing, options.on_error):
            skipped += batch.skipped
            for words, pixels_BHWC in (("pictures", seen_BHWC), (used.name, quality.add(seen_BHWC))):
                rows[words] += list(pixels_BHWC[: max(0, shown - len(rows[words]))])
            progress(len(skipped) + quality.pictures, len(source))
    if not quality.pictures:
        raise InputError(f"{source.path} holds no picture that can be read; the first: {skipped[0]}")
    record = {**quality.result(), "data": source.path, "skipped": skipped}
    if target is not None:
        record["written"] = [target.save(None, comparison_sheet({name: np.stack(row) for name, row in rows.items()}))]
    print_record(record | {"seconds": round(time.perf_counter() - began, 3)}, json_)
