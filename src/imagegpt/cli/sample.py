"""imagegpt sample"""

from __future__ import annotations

import time

from imagegpt.cli.output import Output, PaintOptions, Whole, painting, report
from imagegpt.errors import InputError
from imagegpt.sheet import sample_sheet


def sample(*, num: Whole = 16, out: str = "samples.png", options: PaintOptions | None = None) -> None:
    """Paint pictures from nothing.

    Args:
        num: how many.
        out: a sheet (.png, .webp, .jpg), or a folder (with a / at its end) for single pictures.
    """
    options = options or PaintOptions()
    facts = {"command": "sample", "num": num, "model": options.model}
    output = Output(out, facts | options.sampling())
    if num < 1:
        raise InputError(f"--num must be at least 1, not {num}.")
    model = options.open()
    began = time.perf_counter()
    with painting("painting") as progress:
        result = model.sample(num, **options.sampling(), progress=progress)
    seconds = time.perf_counter() - began
    images = result.images[0]
    if output.is_folder:
        digits = len(str(num))
        written = [output.save(f"sample-{number:0{digits}}", image) for number, image in enumerate(images, 1)]
    else:
        written = [output.save(None, sample_sheet(images))]
    record = {"written": written, "seed": result.seed, "seconds": round(seconds, 3)}
    what = written[0] if len(written) == 1 else f"{len(written)} pictures in {output.path}"
    report(options.json, {**facts, **record}, f"{what} ({seconds:.1f} s)")
