"""A batch of pictures as bytes, and back: ids, what the pictures are called, and their pixels where these are kept.

Shape suffixes: B pictures, T ids of a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.codec import Codec
from imagegpt.codec.pictures import MOST_PIXELS, Framing
from imagegpt.compression.coder import WORD, DamagedStream, Decoder, Encoder, check_length
from imagegpt.compression.container import (
    DIGEST,
    MOST_BATCH,
    MOST_ROWS,
    DamagedFile,
    Fields,
    pack_short,
    pack_text,
    unpack_text,
)
from imagegpt.compression.ids import Tell, code_ids
from imagegpt.compression.pixels import Form, code_pixels
from imagegpt.compression.student import LEVELS
from imagegpt.engine.decode import Backend

MOST_NAME = 1 << 12  # characters
# Pixels of a batch in which there is more than one picture: they are in memory together.
BATCH_PIXELS = 1 << 24


class OtherIds(Exception):  # noqa: N818 - it says what is the matter
    """Ids, or pixels, came out that are not those of the encoder."""


@dataclass(frozen=True)
class Coding:
    """What codes a batch.

    Args:
        backend: runs the model.
        codec, framing: how pictures become ids.
        lossless: whether the pictures' own pixels are kept too.
    """

    backend: Backend
    codec: Codec
    framing: Framing
    lossless: bool


@dataclass(frozen=True)
class Encoded:
    """A batch as bytes.

    Args:
        content: with its length before it, as it comes into the file.
        nats: the model's own negative log-likelihood of the ids, in all.
        id_bytes, pixel_bytes: of the two range-coded messages.
    """

    content: bytes
    nats: float
    id_bytes: int
    pixel_bytes: int


@dataclass(frozen=True)
class Batch:
    """Pictures that are coded together.

    Args:
        ids_BT: int64.
        names: of their files; `None` for those that were in no file of their own.
        pixels: uint8 (height, width, 3), or (height, width, 1) for grey, of each picture; `None` where only the ids
            are kept.
    """

    ids_BT: NDArray[np.int64]
    names: list[str | None]
    pixels: list[NDArray[np.uint8]] | None

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.names)


def encode_batch(coding: Coding, batch: Batch, tell: Tell | None = None) -> Encoded:
    """Code a batch.

    Args:
        coding: what codes.
        batch: with pixels where the coding is lossless.
        tell: called with the number of positions of the ids that are done.
    """
    ids_BT, pixels = batch.ids_BT, batch.pixels
    encoder = Encoder()
    _, nats = code_ids(coding.backend, encoder, len(batch), ids_BT, tell)
    words, info = encoder.words(), _info(batch.names, pixels)
    content = pack_short(len(batch)) + _digest([ids_BT]) + pack_short(len(info)) + info
    content += pack_short(len(words) // WORD.itemsize) + words
    pixel_words = b""
    if pixels is not None:
        encoder = Encoder()
        code_pixels(encoder, ids_BT, [Form(*each.shape) for each in pixels], coding.codec, coding.framing, pixels)
        pixel_words = encoder.words()
        content += _digest(pixels) + pixel_words
    return Encoded(pack_short(len(content)) + content, nats, len(words), len(pixel_words))


def decode_batch(coding: Coding, content: bytes, tell: Tell | None = None) -> Batch:
    """Decode a batch.

    Args:
        coding: what codes; its backend must run as the encoder's did.
        content: without its length.
        tell: called with the number of positions of the ids that are done.

    Raises:
        DamagedFile: it is no batch, whatever the model says.
        OtherIds: it decodes, but to other ids or pixels than the encoder had.
    """
    taken = Fields(content)
    rows = taken.short(MOST_ROWS)
    digest = taken.take(DIGEST)
    names, forms = _parse_info(taken.take(taken.short(MOST_BATCH)), rows, coding.lossless)
    words = taken.take(taken.short(MOST_BATCH // WORD.itemsize) * WORD.itemsize)
    pixel_digest, pixel_words = (taken.take(DIGEST), taken.rest()) if coding.lossless else (b"", taken.rest())
    if pixel_words and not coding.lossless:
        raise DamagedFile("a batch does not end where it should")
    _check_lengths(coding, rows, words, forms, pixel_words)
    try:
        ids_BT, _ = code_ids(coding.backend, Decoder(words), rows, tell=tell)
        if _digest([ids_BT]) != digest:
            raise OtherIds
        pixels = None
        if forms is not None:
            pixels = code_pixels(Decoder(pixel_words), ids_BT, forms, coding.codec, coding.framing)
            if _digest(pixels) != pixel_digest:
                raise OtherIds
    except DamagedStream:  # which a model with other probabilities makes of the right words
        raise OtherIds from None
    return Batch(ids_BT, names, pixels)


def _check_lengths(coding: Coding, rows: int, words: bytes, forms: list[Form] | None, pixel_words: bytes) -> None:
    """Refuse numbers that so few bytes can't stand for, before there is memory taken for them."""
    try:
        check_length(words, rows * coding.backend.spec.n_positions, len(coding.codec))
        if forms is not None:
            check_length(pixel_words, sum(height * width * channels for height, width, channels in forms), LEVELS)
    except DamagedStream:
        raise DamagedFile("a batch is too short for what it must hold") from None


def _digest(arrays: Sequence[NDArray[Any]]) -> bytes:
    """The first 8 bytes of SHA-256 over shapes and values: of ids as 32-bit numbers, of pixels as bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, None if array.dtype == np.uint8 else WORD).data)
    return digest.digest()[:DIGEST]


def _info(names: Sequence[str | None], pixels: Sequence[NDArray[np.uint8]] | None) -> bytes:
    """Names, if there are any, and shapes: one for all where they are the same."""
    info: dict[str, Any] = {}
    if any(name is not None for name in names):
        info["names"] = list(names)
    if pixels is not None:
        shapes = [list(each.shape) for each in pixels]
        info["shapes"] = shapes[:1] if all(shape == shapes[0] for shape in shapes) else shapes
    return pack_text(info)


def _parse_info(packed: bytes, rows: int, lossless: bool) -> tuple[list[str | None], list[Form] | None]:
    """Names and shapes.

    Raises:
        DamagedFile: they are none, or too many, or the pictures would be too large.
    """
    info = unpack_text(packed)
    if not isinstance(info, dict) or not set(info) <= {"names", "shapes"} or ("shapes" in info) != lossless:
        raise DamagedFile("a batch's text is of another kind")
    names, shapes = info.get("names", [None] * rows), info.get("shapes", [])
    if not isinstance(names, list) or len(names) != rows or not all(map(_is_name, names)):
        raise DamagedFile("a batch's names can't be")
    if not lossless:
        return names, None
    if not isinstance(shapes, list) or len(shapes) not in (1, rows) or not all(map(_is_shape, shapes)):
        raise DamagedFile("a batch's shapes can't be")
    forms = [Form(*shape) for shape in shapes] * (rows // len(shapes))
    if rows > 1 and sum(form.height * form.width for form in forms) > BATCH_PIXELS:
        raise DamagedFile("a batch has too many pixels")
    return names, forms


def _is_name(name: Any) -> bool:
    return name is None or (isinstance(name, str) and len(name) <= MOST_NAME)


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list) or len(shape) != 3 or any(type(side) is not int or side < 1 for side in shape):
        return False
    return shape[2] in (1, 3) and shape[0] * shape[1] <= MOST_PIXELS
