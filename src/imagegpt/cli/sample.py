"""imagegpt sample"""

from __future__ import annotations

import time
from pathlib import Path

from imagegpt.bulk import Bulk
from imagegpt.cli.options import PaintOptions, Whole, place_among_processes
from imagegpt.cli.output import Output, check_num, painting, report, working
from imagegpt.errors import Interrupted
from imagegpt.files import check_writable
from imagegpt.sheet import sample_sheet

ARRAYS = ".npz"


def sample(*, num: Whole = 16, out: str = "samples.png", options: PaintOptions | None = None) -> None:
    """Paint pictures from nothing.

    Thousands go into an .npz file (arr_0, as FID tools read it): stopped runs continue with the same command, and
    several processes share the work after `torchrun --nproc-per-node 2 --no-python --`.

    Args:
        num: how many.
        out: a sheet (.png, .webp, .jpg), a folder (with a / at its end) for single pictures, or an .npz file.
    """
    options = options or PaintOptions()
    if out.endswith(ARRAYS):
        check_num(num)
        _sample_many(num, Path(out), options)
        return
    facts = {"command": "sample", "num": num}
    output = Output(out, facts | options.facts(), others=(ARRAYS,))
    check_num(num)
    model = options.open()
    began = time.perf_counter()
    with painting("painting") as progress:
        result = model.sample(num, batch_size=options.batch_size, progress=progress, **options.sampling())
    seconds = time.perf_counter() - began
    images = result.images[0]
    if output.is_folder:
        digits = len(str(num))
        written = [output.save(f"sample-{number:0{digits}}", image) for number, image in enumerate(images, 1)]
    else:
        written = [output.save(None, sample_sheet(images))]
    record = {"written": written, "seed": result.seed, "seconds": round(seconds, 3)}
    report(options, facts | record)


def _sample_many(num: int, out: Path, options: PaintOptions) -> None:
    check_writable(out)
    rank, processes = place_among_processes()
    began = time.perf_counter()
    bulk = Bulk(options.open(), num, out, options.sampling(), rank, processes, options.batch_size)
    try:
        with working("sampling", "samples") as progress:
            drawn = bulk.run(progress if rank == 0 else None)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; the samples drawn so far are kept in {bulk.folder}: the same command continues."
        ) from None
    if rank == 0:
        record = {"written": [str(out)], "num": num, "drawn": drawn, "seed": options.seed}
        report(options, record | {"seconds": round(time.perf_counter() - began, 3)})
