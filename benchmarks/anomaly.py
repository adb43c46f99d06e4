"""How well each method tells pictures of CIFAR-10 from other ones: AUROC, and FPR at 95 % TPR in brackets.

    python benchmarks/anomaly.py --data ../shared/data/cifar10 --precision bf16

The detector is fitted to the first training pictures and judged on the first validation pictures against anomalies that
are made of them or of nothing, with fixed seeds. The methods, what they look at and their settings were fixed before
any of these pictures was made, but for one: that Ren et al.'s mutations are needed showed on noise. FPR at 95 % TPR is
the part of the anomalies that pass where 95 % of the normal pictures pass (Liang et al. 2018). Prints one JSON line
last.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cyclopts
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from imagegpt.anomaly import Detector
from imagegpt.anomaly.judging import judge
from imagegpt.anomaly.methods import DEFAULT, METHODS
from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from imagegpt.pipeline import ImageGPT

Picture = NDArray[np.uint8]
Change = Callable[[Picture, np.random.Generator], Picture]
SIDE = 32


def shuffled_rows(picture: Picture, rng: np.random.Generator) -> Picture:
    """The rows of pixels in another order."""
    return picture[rng.permutation(len(picture))]


def noise(picture: Picture, rng: np.random.Generator) -> Picture:
    """Every number by chance."""
    return rng.integers(0, 256, picture.shape, np.uint8)


def flat(picture: Picture, rng: np.random.Generator) -> Picture:
    """One colour."""
    return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), picture.shape).copy()


def shuffled_tiles(picture: Picture, rng: np.random.Generator) -> Picture:
    """The 16 tiles of 8 x 8 pixels in another order."""
    tiles = picture.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3)[rng.permutation(16)]
    return tiles.reshape(4, 4, 8, 8, 3).swapaxes(1, 2).reshape(picture.shape)


def salt_and_pepper(picture: Picture, rng: np.random.Generator) -> Picture:
    """A tenth of the pixels black or white."""
    spoiled = rng.random(picture.shape[:2]) < 0.1
    either = np.where(rng.random(picture.shape[:2]) < 0.5, 0, 255)[..., None]
    return np.where(spoiled[..., None], either, picture).astype(np.uint8)


def faded(picture: Picture, rng: np.random.Generator) -> Picture:
    """A quarter of the contrast."""
    return (0.75 * picture.mean((0, 1)) + 0.25 * picture).astype(np.uint8)


def ramp(picture: Picture, rng: np.random.Generator) -> Picture:
    """From one colour to another along a line of any direction."""
    first, last = rng.integers(0, 256, (2, 3))
    angle, (y, x) = rng.uniform(0, 2 * np.pi), np.indices(picture.shape[:2])
    along = x * np.cos(angle) + y * np.sin(angle)
    part = (along - along.min()) / np.ptp(along)
    return (first + (last - first) * part[..., None]).astype(np.uint8)


def smeared(picture: Picture, rng: np.random.Generator) -> Picture:
    """Each fourth pixel of a row four times."""
    return picture[:, ::4].repeat(4, 1)


def inverted(picture: Picture, rng: np.random.Generator) -> Picture:
    """The negative."""
    return 255 - picture


def blurred(picture: Picture, rng: np.random.Generator) -> Picture:
    """By a Gaussian of 1.5 pixels."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.5)))


def upside_down(picture: Picture, rng: np.random.Generator) -> Picture:
    """The lowest row first."""
    return picture[::-1]


ASKED: dict[str, Change] = {"shuffled rows": shuffled_rows, "uniform noise": noise, "flat colours": flat}
OTHERS: dict[str, Change] = {
    "shuffled tiles": shuffled_tiles,
    "salt and pepper": salt_and_pepper,
    "faded": faded,
    "colour ramps": ramp,
    "smeared": smeared,
    "blurred": blurred,
    "inverted": inverted,
    "upside down": upside_down,
}


def digits(count: int) -> list[Picture]:
    """scikit-learn's digits, 8 x 8, brought to 32 x 32 by bilinear interpolation."""
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    small = (held.images[:count] * 255 / 16).astype(np.uint8)
    large = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in small]
    return [np.asarray(image.convert("RGB")) for image in large]


def other_palette(model: ImageGPT, pictures: list[Picture]) -> list[Picture]:
    """Each colour of the palette exchanged for another, the same in all pictures."""
    exchanged = np.random.default_rng(0).permutation(len(model.codec))[model.encode(pictures)]
    return [np.asarray(image) for image in model.decode(exchanged)]


def read(data: str, count: int) -> list[Picture]:
    """The first pictures, 32 x 32."""
    source = open_source(data, limit=count)
    return [np.asarray(image) for _, image in read_records(source) if isinstance(image, Image.Image)]


def main(*, data: str, fit: int = 2000, pictures: int = 500, precision: str = "fp32", only: str | None = None) -> None:
    """Fit, and judge every kind of anomaly.

    Args:
        data: DATA with the splits train and validation, 32 x 32 pixels.
        fit: training pictures; the network runs on half of them.
        pictures: validation pictures, and anomalies of each kind.
        precision: of the model.
        only: the name of one kind.
    """
    began = time.perf_counter()
    model = ImageGPT.from_pretrained("nano", precision=precision)  # pyright: ignore[reportArgumentType]
    detector = Detector.fit(model, open_source(f"{data}:train", limit=fit))
    normal = read(f"{data}:validation", pictures)
    usual = detector.score(normal)
    makers: dict[str, Callable[[], list[Picture]]] = {
        name: lambda name=name, change=change: [change(picture, rng) for rng in [_rng(name)] for picture in normal]
        for name, change in {**ASKED, **OTHERS}.items()
    }
    makers = {name: makers[name] for name in ASKED} | {"digits": lambda: digits(pictures)} | makers
    makers["other palette"] = lambda: other_palette(model, normal)
    print("| anomalies | " + " | ".join(METHODS) + " |\n|---|" + "---|" * len(METHODS))
    results = []
    for name, make in makers.items():
        if only not in (None, name):
            continue
        odd = detector.score(make())
        found = judge(usual.scores, odd.scores, usual.thresholds)
        print(f"| {name} | " + " | ".join(f"{one.auroc:.3f} ({100 * one.fpr95:.1f} %)" for one in found) + " |")
        sys.stdout.flush()
        means = {statistic: round(float(values.mean()), 3) for statistic, values in odd.statistics.items()}
        results.append({"anomalies": name, "statistics": means, "methods": [asdict(one) for one in found]})
    least = {
        method: min(one["auroc"] for row in results[:4] for one in row["methods"] if one["method"] == method)
        for method in METHODS
    }
    means = {statistic: round(float(values.mean()), 3) for statistic, values in usual.statistics.items()}
    record = {"benchmark": "anomaly", "model": "nano", "precision": precision, "fit": fit, "pictures": pictures}
    record |= {"default": DEFAULT, "least_auroc_of_the_first_four": least, "normal": means, "kinds": results}
    print(json.dumps(record | {"seconds": round(time.perf_counter() - began, 1)}))


def _rng(name: str) -> np.random.Generator:
    """One for each kind, so that a kind is the same whatever others are made."""
    return np.random.default_rng(list(name.encode()))


if __name__ == "__main__":
    cyclopts.run(main)
