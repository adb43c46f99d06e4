"""Pictures as batches of pixels, whatever they lie in."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagegpt.codec.pictures import Framing
from imagegpt.data.pixels import read_pixels
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import KINDS, ids_of, pixels_of, tokenise

SIZE = Framing(3, 4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_pictures_of_every_kind_come_as_they_are(tmp_path, kind):
    source = open_source(KINDS[kind](tmp_path / "data", range(5), [0, 1, 0, 1, 0]))
    batches = list(read_pixels(source, SIZE, batch=2))
    assert [len(pixels) for _, pixels in batches] == [2, 2, 1]
    assert [rows.numbers.tolist() for rows, _ in batches] == [[0, 1], [2, 3], [4]]
    found = np.concatenate([pixels for _, pixels in batches])
    assert found.dtype == np.uint8
    order = [name for rows, _ in batches for name in rows.names]
    assert len(set(order)) == 5
    assert sorted(map(bytes, found)) == sorted(map(bytes, pixels_of(range(5))))


def test_they_are_framed(tmp_path):
    """As `Framing` does it, on any size."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (9 + n, 14 - n, 3), np.uint8)) for n in range(4)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    for framing in (Framing(4, 6), Framing(6, 4, "center")):
        [(_, pixels)] = read_pixels(open_source(tmp_path), framing)
        np.testing.assert_array_equal(pixels, [framing.apply(picture) for picture in pictures])


def test_a_part_is_read(tmp_path):
    """By itself: another process has the rest."""
    for number in range(7):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number}.png")
    source = open_source(tmp_path)
    found = [
        (rows.numbers.tolist(), pixels[:, 0, 0, 0].tolist())
        for rows, pixels in read_pixels(source, SIZE, batch=2, start=2, stop=5)
    ]
    assert found == [([2, 3], [2, 3]), ([4], [4])]
    assert not list(read_pixels(source, SIZE, start=7, stop=7))


def test_damaged_pictures_stop_it_or_are_left_out(tmp_path):
    for number in range(4):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"text")
    source = open_source(tmp_path)
    with pytest.raises(InputError, match=r"1\.png"):
        list(read_pixels(source, SIZE))
    batches = list(read_pixels(source, SIZE, "skip", batch=2))
    assert [(pixels.shape, len(rows.skipped)) for rows, pixels in batches] == [((1, 3, 4, 3), 1), ((0, 3, 4, 3), 2)]
    assert batches[0][0].numbers.tolist() == [0]


def test_ids_are_no_pictures(tmp_path):
    source = open_source(tokenise(tmp_path / "tokens", ids_of(range(3))))
    with pytest.raises(InputError, match="holds ids, not pictures"):
        next(read_pixels(source, SIZE))
