"""Pictures to ids: transformers' image processor against ours, in turn.

    python benchmarks/processor.py --repeats 3

Prints one JSON line last: pictures/s of quantising alone (arrays of 32 x 32 colours to ids) and of the whole processor
(from 32 x 32 arrays, and from 500 x 375 JPEG files in memory), their ratios to the peer, and the memory that quantising
takes at its peak. transformers' PIL processor is the peer: its torchvision one has no CPU build to install here.
"""

from __future__ import annotations

import io
import json
import statistics
import tracemalloc
from collections.abc import Callable
from typing import Any

import cyclopts
import numpy as np
from PIL import Image
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil as Peer
from transformers.models.imagegpt.image_processing_pil_imagegpt import color_quantize

from imagegpt.checkpoint import find_model
from imagegpt.codec.codec import Codec
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.codec.processor import ImageGPTImageProcessor
from imagegpt.engine.machine import seconds

PEER_MOST = 64  # pictures that the peer gets at once: it then holds 770 MiB of distances


def processor(*, repeats: int = 3) -> None:
    """Time both.

    Args:
        repeats: of each side, in turn; medians count.
    """
    codec, _ = load_preprocessor(find_model("nano"))
    ours: Any = ImageGPTImageProcessor(codec.colors, size=32)
    peer = Peer(codec.colors, size={"height": 32, "width": 32})
    codec.encode(_pictures(512))  # the table is there, as after the first second of any large job
    record: dict[str, Any] = {"benchmark": "processor"}
    for count in (1, 64, 4096):
        pictures = _pictures(count)
        few = pictures[:PEER_MOST]
        scaled = few / np.float32(127.5) - 1
        record[f"quantise {count}"] = _compare(
            repeats, count, lambda p=pictures: codec.encode(p), len(few), lambda s=scaled: _peer_ids(s, codec)
        )
        record[f"process {count}"] = _compare(
            repeats, count, lambda p=pictures: ours(list(p)), len(few), lambda f=few: peer(list(f))
        )
    files = [_jpeg(picture) for picture in _pictures(64)]
    record["process 64 JPEG files 500x375"] = _compare(
        repeats, 64, lambda: ours(files), 64, lambda: peer([Image.open(io.BytesIO(file)) for file in files])
    )
    record["quantise 4096, peak MiB beside the ids"] = _peak_mib(codec, _pictures(4096))
    print(json.dumps(record))


def _pictures(count: int) -> np.ndarray:
    """Smooth random pictures, (count, 32, 32, 3) uint8: about as many colours as photographs have."""
    rng = np.random.default_rng(count)
    rough = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)) for picture in rough]
    )


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).resize((500, 375), Image.Resampling.BICUBIC).save(file, "jpeg")
    return file.getvalue()


def _peer_ids(scaled: np.ndarray, codec: Codec) -> np.ndarray:
    return color_quantize(scaled, codec.colors)


def _compare(
    repeats: int, count: int, ours: Callable[[], object], peer_count: int, peer: Callable[[], object]
) -> dict[str, float]:
    """Pictures/s of both, run in turn; the first round warms up."""
    rates: dict[str, list[float]] = {"imagegpt": [], "transformers": []}
    for _ in range(repeats + 1):
        rates["imagegpt"].append(count / seconds(ours))
        rates["transformers"].append(peer_count / seconds(peer))
    medians = {side: statistics.median(values[1:]) for side, values in rates.items()}
    ratio = medians["imagegpt"] / medians["transformers"]
    return {side: round(value, 1) for side, value in medians.items()} | {"ratio": round(ratio, 1)}


def _peak_mib(codec: Codec, pictures: np.ndarray) -> float:
    tracemalloc.start()
    ids = codec.encode(pictures)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round((peak - ids.nbytes) / 2**20, 1)


if __name__ == "__main__":
    cyclopts.run(processor)
