"""What a picture costs over learned codes, beside one over a palette's pixels.

    python benchmarks/codes.py --codes runs/codes/model --pictures 32 --repeats 5

Both models draw as many pictures, in turn, and their ids become pictures. Prints one JSON line last.
"""

from __future__ import annotations

import json
import time
from statistics import median

import cyclopts
import numpy as np

from imagegpt.engine.backends import Precision
from imagegpt.pipeline import ImageGPT


def seconds_of(model: ImageGPT, pictures: int, seed: int) -> tuple[float, float]:
    """Seconds a picture, of drawing in all and of the codec alone."""
    began = time.perf_counter()
    result = model.sample(pictures, seed=seed)
    drawn = time.perf_counter()
    model.decode(result.ids)
    return (drawn - began) / pictures, (time.perf_counter() - drawn) / pictures


def codec_rates(model: ImageGPT, pictures: int = 1024) -> dict[str, int]:
    """Pictures/s of the codec alone, at the model's size; medians of three."""
    codec = model.codec
    ids_Bhw = np.random.default_rng(0).integers(0, len(codec), (pictures, *model.grid))
    pixels_BHWC = codec.decode(ids_Bhw)
    rates = {}
    for name, work in (("encode", lambda: codec.encode(pixels_BHWC)), ("decode", lambda: codec.decode(ids_Bhw))):
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        rates[f"{name}_pictures_per_s"] = round(pictures / median(seconds[1:]))
    return rates


def main(
    *, codes: str, palette: str = "nano", pictures: int = 32, repeats: int = 5, precision: Precision = "fp32"
) -> None:
    """Draw with two models in turn.

    Args:
        codes: a model over codes.
        palette: a model of the same shape over pixels.
        pictures: of a measurement.
        repeats: measurements of each, of which the median counts.
        precision: of both.
    """
    models = {name: ImageGPT.from_pretrained(name, precision=precision) for name in (palette, codes)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for seed in range(-1, repeats):
        for name, model in models.items():
            measured = seconds_of(model, pictures, max(seed, 0))
            if seed >= 0:  # the first one loads
                found[name].append(measured)
    told = {
        name: {
            "codec": models[name].codec.name,
            "ids": models[name].spec.n_positions,
            "ms_a_picture": round(1e3 * median(whole for whole, _ in times), 2),
            "of_it_decoding": round(1e3 * median(decoding for _, decoding in times), 2),
            **codec_rates(models[name]),
        }
        for name, times in found.items()
    }
    ratio = told[palette]["ms_a_picture"] / told[codes]["ms_a_picture"]
    print(
        json.dumps(
            {"benchmark": "codes", "pictures": pictures, "precision": precision, **told, "ratio": round(ratio, 2)}
        )
    )


if __name__ == "__main__":
    cyclopts.run(main)
