"""imagegpt complete"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from imagegpt.cli.options import PaintOptions, Whole
from imagegpt.cli.output import Output, check_num, painting, report
from imagegpt.codec.pictures import read_pictures
from imagegpt.engine.decode import UNKNOWN
from imagegpt.errors import InputError
from imagegpt.sheet import completion_sheet

KEEP = 0.5


def complete(
    images: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    /,
    *,
    keep: float | None = None,
    num: Whole = 8,
    mask: Path | None = None,
    particles: Whole = 1,
    out: str = "completions.png",
    options: PaintOptions | None = None,
) -> None:
    """Keep a part of pictures, the first or what a mask says, and let the model paint the rest.

    Writes a sheet with the input, what the model saw of it, and the samples; or single pictures into a folder.

    Args:
        images: picture files.
        keep: part that is kept, from the top: 0.5, the default, is the upper half. From 0 to below 1.
        num: samples of each picture.
        mask: in the place of --keep: a picture of the input's size, or of the grid's; white is painted, black is kept.
        particles: histories drawn for each sample, so that what is painted fits known pixels below it too: 32 are good.
        out: a sheet (.png, .webp, .jpg), or a folder (with a / at its end) for single pictures.
    """
    options = options or PaintOptions()
    if mask is not None and keep is not None:
        raise InputError("--mask says what is painted, and so does --keep: give one of them.")
    keep = KEEP if keep is None else keep
    facts = {"command": "complete", "images": [Path(path).name for path in images], "num": num}
    facts |= {"keep": keep} if mask is None else {"mask": mask.name, "particles": particles}
    output = Output(out, facts | options.facts())
    check_num(num)
    if particles > 1 and mask is None:
        raise InputError("--particles weighs what is painted by known pixels below it; without --mask there are none.")
    pictures = read_pictures(images)
    model = options.open()
    began = time.perf_counter()
    with painting("painting") as progress:
        result = model.complete(
            pictures,
            keep,
            num,
            mask=mask,
            particles=particles,
            batch_size=options.batch_size,
            progress=progress,
            **options.sampling(),
        )
    seconds = time.perf_counter() - began
    if output.is_folder:
        names = _distinct([Path(path).stem for path in images])
        digits = len(str(num))
        written = [
            output.save(f"{name}-{number:0{digits}}", image)
            for name, samples in zip(names, result.images, strict=True)
            for number, image in enumerate(samples, 1)
        ]
    else:
        seen = model.decode(np.where(result.known, result.ids[::num], UNKNOWN))
        inputs = [model.framing.cut(picture) for picture in pictures]
        written = [output.save(None, completion_sheet(inputs, seen, result.images))]
    record = {"written": written, "seed": result.seed, "given": int(result.known[0].sum())}
    note = ""
    if result.effective_particles is not None:
        record["effective_particles"] = [round(float(number), 2) for number in result.effective_particles]
        note = f"of {particles} particles at least {result.effective_particles.min():.1f} counted"
    report(options, facts | record | {"seconds": round(seconds, 3)}, note)


def _distinct(names: list[str]) -> list[str]:
    """Number the names that come more than once."""
    result: list[str] = []
    for name in names:
        candidates = (f"{name}-{number}" for number in itertools.count(1))
        free = (other for other in candidates if other not in names and other not in result)
        result.append(name if names.count(name) == 1 else next(free))
    return result
