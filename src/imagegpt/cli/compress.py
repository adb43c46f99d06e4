"""imagegpt compress, imagegpt decompress"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from PIL import Image

from imagegpt.cli.options import Json, ModelOptions, Whole, open_images, place_among_processes
from imagegpt.cli.output import keeping, print_record, working
from imagegpt.files import check_new_folder, check_writable, make_folder, whole_folder
from imagegpt.parts import folder_of

if TYPE_CHECKING:
    from imagegpt.compression import Compressed, Report
    from imagegpt.pipeline import ImageGPT


def compress(
    images: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    /,
    *,
    out: Path,
    lossless: Annotated[bool, Parameter(negative="")] = False,
    batch_size: Whole | None = None,
    limit: Whole | None = None,
    model: ModelOptions | None = None,
    json_: Json = False,
) -> None:
    """Put pictures into one small file: their ids, by the model's own probabilities; on request their own pixels too.

    Only the same model decodes it, and only where its probabilities come out the same to the last bit: on the same kind
    of machine, with the same backend. Stopped runs continue with the same command, and several processes share the work
    after `torchrun --nproc-per-node 2 --no-python --`.

    Args:
        images: picture files, or one DATA: a folder, a table, shards and more; see docs/data.md.
        out: a new file.
        lossless: keep the pictures' own pixels, whatever their size, and not only what the model sees of them.
        batch_size: pictures that are coded together; default: what is fast and fits into memory.
        limit: the first so many pictures only.
        model: which model, and how it runs.
        json_: print what was made as JSON.
    """
    from imagegpt.compression import Compression

    model = model or ModelOptions()
    check_writable(out)
    rank, processes = place_among_processes()
    source, began = open_images(images, limit), time.perf_counter()
    with keeping(folder_of(out)), working("compressing", "pictures", before="loading the model") as progress:
        run = Compression(model.open(), source, lossless, batch_size)
        report = run.run(out, rank, processes, progress if rank == 0 else None)
    if rank == 0:
        print_record(_facts(out, report, lossless, time.perf_counter() - began), json_)


def decompress(
    file: Path,
    /,
    *,
    out: Path,
    model: str = "nano",
    device: str | None = None,
    json_: Json = False,
) -> None:
    """Take pictures out of a compressed file, as PNG files.

    The model runs as it did when the file was made: with that backend and precision. A picture that does not come out
    as it went in is never written.

    Args:
        file: made by `imagegpt compress`.
        out: a new or empty folder.
        model: the one that the file was made with.
        device: cpu, cuda or mps; default: the file's.
        json_: print what was written as JSON.
    """
    from imagegpt.compression import open_compressed

    check_new_folder(out)
    found, began = open_compressed(file), time.perf_counter()
    with whole_folder(out) as folder:
        written = _write(found, found.open_model(model, device), folder)
    seconds = time.perf_counter() - began
    record = {"written": str(out), "pictures": len(written), "lossless": found.header.lossless}
    record |= {"seconds": round(seconds, 3), "pictures_per_s": round(len(written) / seconds, 2)}
    print_record({**record, "files": written} if json_ else record, json_)


def _facts(out: Path, report: Report, lossless: bool, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {"written": str(out), "pictures": report.pictures, "made": report.made}
    facts |= {"lossless": lossless, "bytes": report.bytes}
    facts["bits_per_picture"] = round(8 * report.bytes / report.pictures, 1)
    if report.made == report.pictures:  # else this process doesn't know the others'
        facts["model_bits_per_picture"] = round(report.nats / math.log(2) / report.pictures, 1)
        facts["id_bits_per_picture"] = round(8 * report.id_bytes / report.pictures, 1)
        facts["pixel_bits_per_picture"] = round(8 * report.pixel_bytes / report.pictures, 1)
    return facts | {"seconds": round(seconds, 3), "pictures_per_s": round(report.made / seconds, 2)}


def _write(found: Compressed, model: ImageGPT, folder: Path) -> list[str]:
    """Write all pictures; their paths in the folder."""
    from imagegpt.compression import pictures
    from imagegpt.compression.names import Names

    names, written = Names(), []
    with working("decompressing", "pictures", before="loading the model") as progress:
        for batch in found.decode(model, progress):
            for name, pixels in zip(batch.names, pictures(batch, model), strict=True):
                written.append(names.of(len(written), name))
                path = folder / written[-1]
                make_folder(path.parent)
                Image.fromarray(pixels).save(path)
    return written
