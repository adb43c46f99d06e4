"""Compression: ours against PNG, lossless WebP and zstd, on the pictures of DATA.

    python benchmarks/compress.py --data shared/data/cifar10:validation --pictures 1000

Two comparisons. Of the ids, that is of the palette's picture on the grid: the model's own nats, our file (its words
alone, and whole, with header, digests and checksum), zstd of the ids, PNG and lossless WebP of the palette's pictures.
Of the pictures themselves: our file with --lossless, PNG and lossless WebP. PNG and WebP have the best of Pillow's
settings for each picture, and are measured once more as one sheet of all pictures, so that headers weigh nothing; zstd
has level 19, picture by picture and over all ids together.

One file is made, with --lossless, then decompressed and compared. The file without pixels is the same one with these
taken out. Bits don't depend on the load of the machine; seconds do. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cyclopts
import numpy as np
import pyarrow
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from imagegpt import ImageGPT
from imagegpt.compression import Report, compress, decompress, pictures
from imagegpt.compression.coder import WORD, Encoder
from imagegpt.compression.container import (
    CHECKSUM,
    DIGEST,
    MOST_BATCH,
    MOST_ROWS,
    START,
    Fields,
    pack_short,
    pack_text,
    read_file,
    unpack_text,
)
from imagegpt.compression.pixels import Form, code_pixels
from imagegpt.compression.reading import EXACT
from imagegpt.data.records import Source, read_record
from imagegpt.data.sources import open_source
from imagegpt.engine.backends import Precision
from imagegpt.errors import InputError

COLUMNS = 32  # of a sheet
Pixels = NDArray[np.uint8]


def benchmark(
    *,
    data: str,
    pictures: int = 1000,
    model: str = "nano",
    precision: Precision = "fp32",
    backend: Literal["onnx", "torch"] | None = None,
    batch_size: int | None = None,
) -> None:
    """Compress, decompress, compare.

    Args:
        data: pictures of one size; see docs/data.md.
        pictures: the first so many.
        model, precision, backend: see `imagegpt compress`.
        batch_size: pictures that are coded together.
    """
    opened = ImageGPT.from_pretrained(model, precision=precision, backend=backend)
    source = open_source(data, limit=pictures)
    originals = [_original(record) for record in source]
    ids_NT = opened.encode(originals)
    small = list(np.stack([np.asarray(image) for image in opened.decode(ids_NT)]))
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pictures.igpt"
        report, seconds = _ours(opened, source, out, batch_size, originals)
        rows |= _our_rows(report, _without_pixels(out), ids_NT.size, sum(each.size for each in originals))
    rows["the model's own nats"] |= {"nats_per_token": round(report.nats / ids_NT.size, 5)}
    rows |= _peers("palette's pictures", small) | _zstd(ids_NT, small) | _peers("pixels", originals)
    files = [record.picture for record in source if isinstance(record.picture, bytes)]
    if len(files) == len(source):
        rows["files as they were"] = _row(sum(map(len, files)) * 8, len(source), sum(each.size for each in originals))
    _print(rows, seconds)
    facts = {"model": str(opened.path.name), "precision": precision, "pictures": len(source), "data": data}
    print(json.dumps({"benchmark": "compress", **facts, "bits": rows, "seconds": seconds}))


def _original(record: Any) -> Pixels:
    image = read_record(record, how=EXACT)
    assert isinstance(image, Image.Image)
    return np.asarray(image.convert("RGB"))


def _ours(
    model: ImageGPT, source: Source, out: Path, batch_size: int | None, expected: list[Pixels]
) -> tuple[Report, dict[str, float]]:
    """Compress and decompress, and make sure that all pictures came back; what was made, and seconds."""
    began = time.perf_counter()
    report = compress(model, source, out, True, batch_size)
    between, done, pixel_seconds = time.perf_counter(), 0, 0.0
    for batch in decompress(out, model):
        for found in pictures(batch, model):
            if not np.array_equal(found if found.ndim == 3 else found[..., None].repeat(3, 2), expected[done]):
                raise InputError(f"Picture {done} came back as another one.")
            done += 1
    if done != len(expected):
        raise InputError(f"{done} pictures came back, not {len(expected)}.")
    end = time.perf_counter()
    for batch in _batches(expected, batch_size or model.backend.rows):
        pixel_seconds += _pixel_seconds(model, batch)
    seconds = {"compress": between - began, "decompress": end - between, "of either, pixels": pixel_seconds}
    return report, {name: round(value, 2) for name, value in seconds.items()}


def _batches(images: list[Pixels], size: int) -> list[list[Pixels]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _pixel_seconds(model: ImageGPT, images: list[Pixels]) -> float:
    """Of coding the pixels alone, without the network."""
    ids_BT, began = model.encode(images), time.perf_counter()
    code_pixels(Encoder(), ids_BT, [Form(*image.shape) for image in images], model.codec, model.framing, images)
    return time.perf_counter() - began


def _without_pixels(out: Path) -> int:
    """Bytes of the file that has no pixels: of each batch what comes before them, but for the shapes."""
    layout = read_file(out)
    total = START.size + len(replace(layout.header, lossless=False).packed()) + CHECKSUM
    for number in range(len(layout.batches)):
        fields = Fields(layout.read(number))
        head = len(pack_short(fields.short(MOST_ROWS))) + DIGEST
        fields.take(DIGEST)
        info = unpack_text(fields.take(fields.short(MOST_BATCH)))
        del info["shapes"]
        words = fields.short(MOST_BATCH)
        text = pack_text(info)
        length = head + len(pack_short(len(text))) + len(text) + len(pack_short(words)) + WORD.itemsize * words
        total += len(pack_short(length)) + length
    return total


def _row(bits: float, count: int, dims: int) -> dict[str, float]:
    return {"bits_per_picture": round(bits / count, 1), "bits_per_dim": round(bits / dims, 4)}


def _our_rows(report: Report, without_pixels: int, ids: int, dims: int) -> dict[str, dict[str, float]]:
    """The rows of our files; a palette's picture has three numbers an id."""
    count, model_bits = report.pictures, report.nats / math.log(2)
    above = {"above_the_model_percent": round(100 * (8 * without_pixels / model_bits - 1), 3)}
    return {
        "the model's own nats": _row(model_bits, count, 3 * ids),
        "ours, words alone": _row(8 * report.id_bytes, count, 3 * ids),
        "ours, whole file": _row(8 * without_pixels, count, 3 * ids) | above,
        "ours --lossless, whole file": _row(8 * report.bytes, count, dims),
    }


def _peers(what: str, images: list[Pixels]) -> dict[str, dict[str, float]]:
    """PNG and WebP, each picture by itself and all in one sheet."""
    rows, dims = {}, sum(each.size for each in images)
    sheet = [_sheet(images)] if len({each.shape for each in images}) == 1 else []
    codecs: dict[str, Callable[[Pixels], int]] = {"PNG": _png, "WebP": _webp}
    for name, size in codecs.items():
        rows[f"{name} of the {what}"] = _row(8 * sum(map(size, images)), len(images), dims)
        for one in sheet:
            rows[f"{name} of one sheet of the {what}"] = _row(8 * size(one), len(images), dims)
    return rows


def _zstd(ids_NT: NDArray[np.int64], small: list[Pixels]) -> dict[str, dict[str, float]]:
    codec, dims = pyarrow.Codec("zstd", compression_level=19), sum(each.size for each in small)

    def bits(rows: Iterable[NDArray[np.int64]]) -> int:
        return 8 * sum(len(codec.compress(row.astype(np.uint16).tobytes())) for row in rows)

    return {
        "zstd of each picture's ids": _row(bits(ids_NT), len(small), dims),
        "zstd of all ids together": _row(bits([ids_NT]), len(small), dims),
    }


def _png(pixels: Pixels) -> int:
    """Bytes of the smallest: true colours, or a palette where there are no more than 256."""
    image = Image.fromarray(pixels)
    sizes = [_saved(image, "PNG", optimize=True)]
    colors, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colors) <= 256:
        paletted = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        paletted.putpalette(colors.tobytes())
        sizes.append(_saved(paletted, "PNG", optimize=True))
    return min(sizes)


def _webp(pixels: Pixels) -> int:
    image = Image.fromarray(pixels)
    return min(_saved(image, "WEBP", lossless=True, method=6, quality=quality) for quality in (75, 100))


def _saved(image: Image.Image, form: str, **options: Any) -> int:
    file = io.BytesIO()
    image.save(file, form, **options)
    return len(file.getvalue())


def _sheet(images: list[Pixels]) -> Pixels:
    height, width, _ = images[0].shape
    rows = math.ceil(len(images) / COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for number, image in enumerate(images):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[top : top + height, left : left + width] = image
    return sheet


def _print(rows: dict[str, dict[str, float]], seconds: dict[str, float]) -> None:
    table = Table("", "bits/picture", "bits/dim")
    for name, row in rows.items():
        table.add_row(name, f"{row['bits_per_picture']:,.1f}", f"{row['bits_per_dim']:.4f}")
    console = Console(width=100)
    console.print(table)
    console.print(seconds)


if __name__ == "__main__":
    cyclopts.run(benchmark)
