"""imagegpt sample"""

from __future__ import annotations

import time

from imagegpt.cli.output import Output, PaintOptions, Whole, check_num, painting, report
from imagegpt.sheet import sample_sheet


def sample(*, num: Whole = 16, out: str = "samples.png", options: PaintOptions | None = None) -> None:
    """Paint pictures from nothing.

    Args:
        num: how many.
        out: a sheet (.png, .webp, .jpg), or a folder (with a / at its end) for single pictures.
    """
    options = options or PaintOptions()
    facts = {"command": "sample", "num": num}
    output = Output(out, facts | {"model": options.model} | options.sampling())
    check_num(num)
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
    report(options, output, facts | record)
