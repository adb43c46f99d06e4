"""imagegpt palette"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App
from numpy.typing import NDArray
from PIL import Image

from imagegpt.cli.options import Json, Whole
from imagegpt.cli.output import print_record, working
from imagegpt.codec.fit import PIXELS, PixelSample, cluster_colors, palette_error
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import OnError
from imagegpt.codec.preprocessor_file import find_codec
from imagegpt.data.records import Source, read_records
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.files import check_writable, write_whole

palette = App(name="palette", help="Fit a palette to pictures of your own, or look at one.")
SEEDS = 1 << 32  # as many as scikit-learn has


@palette.command
def fit(
    data: str,
    *,
    colors: Whole = 512,
    out: Path = Path("palette.npy"),
    pixels: Whole = PIXELS,
    seed: Whole = 0,
    validation: str | None = None,
    on_error: OnError = "raise",
    json_: Json = False,
) -> None:
    """Fit a palette by k-means to a uniform sample of all pixels of all pictures.

    Writes the colours, (K, 3) in [-1, 1] from dark to light, as an .npy file, and a picture of them beside it.

    Args:
        data: pictures: a folder, parquet, .npz, shards, a data set of Hugging Face's, one picture; see docs/data.md.
        colors: K.
        out: the .npy file.
        pixels: size of the sample.
        seed: of the sample and of the start.
        validation: DATA to report the error on; default: the sample itself.
        on_error: stop at a picture that can't be read, or skip it.
        json_: print the report as JSON.
    """
    if out.suffix != ".npy":
        raise InputError(f"--out {out}: give a file that ends in .npy.")
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed must be 0 to {SEEDS - 1}, not {seed}.")
    check_writable(out)
    began = time.perf_counter()
    skipped: list[str] = []
    sample = PixelSample(pixels, seed)
    for picture in _pictures(open_source(data), on_error, skipped, "reading pictures"):
        sample.add(picture)
    with working("clustering", "steps"):
        codec = PaletteCodec(cluster_colors(sample.pixels, colors, seed))
    measured = [sample.pixels]
    if validation:
        measured = _pictures(open_source(validation), on_error, skipped, "measuring the error")
    record: dict[str, Any] = {"written": [str(out), str(out.with_suffix(".png"))], "colors": len(codec)}
    record |= {"fingerprint": codec.fingerprint, **palette_error(codec, measured), "on": validation or "sample"}
    codec.save(out)
    write_whole(out.with_suffix(".png"), codec.picture().save)
    record |= {"data": data, "sampled": len(sample.pixels), "seed": seed, "skipped": skipped}
    print_record(record | {"seconds": round(time.perf_counter() - began, 3)}, json_)


@palette.command
def show(source: str = "nano", *, out: Path | None = None, json_: Json = False) -> None:
    """Show a palette's numbers, and draw it; of another codec, the mean colours of what its ids stand for.

    Args:
        source: an .npy file such as OpenAI's kmeans_centers.npy, a codec's or model's folder, "nano" or a Hub id.
        out: a picture of what all ids stand for (.png).
        json_: print the numbers as JSON.
    """
    codec = find_codec(source)
    levels = np.rint(127.5 * (codec.colors + 1)).clip(0, 255).astype(np.uint8)
    record: dict[str, Any] = {
        "codec": codec.name,
        "colors": len(codec),
        "fingerprint": codec.fingerprint,
        "distinct as uint8": len(np.unique(levels, axis=0)),
        "darkest": levels[levels.sum(1, dtype=int).argmin()].tolist(),
        "lightest": levels[levels.sum(1, dtype=int).argmax()].tolist(),
    }
    if out is not None:
        if out.suffix.lower() != ".png":
            raise InputError(f"--out {out}: give a file that ends in .png.")
        write_whole(out, codec.picture().save)
        record["written"] = [str(out)]
    print_record(record, json_)


def _pictures(source: Source, on_error: OnError, skipped: list[str], words: str) -> Iterator[NDArray[np.uint8]]:
    """The pictures' pixels, with a progress bar; what can't be read is told at the end, or at once if that is all."""
    before = len(skipped)
    with working(words, "pictures") as progress:
        for number, (_, picture) in enumerate(read_records(source, on_error), 1):
            progress(number, len(source))
            if isinstance(picture, Image.Image):
                yield np.asarray(picture)
            else:
                skipped.append(picture)
    if len(skipped) - before == len(source):
        raise InputError(f"{source.path} holds no picture that can be read; the first: {skipped[before]}")
