"""OpenAI's variables in one .npz file: a model's, by name, with its palette, for programs that want arrays."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from imagegpt import __version__, checkpoint
from imagegpt.codec.codec import Codec
from imagegpt.codec.preprocessor_file import load_preprocessor
from imagegpt.convert.names import parts_of
from imagegpt.errors import InputError, reason
from imagegpt.files import write_array, write_whole
from imagegpt.painting import Progress
from imagegpt.spec import ModelSpec

CENTRES = "kmeans_centers"
RECORD = "run.json"
# What OpenAI's code has no choice of; a model with another value is another function.
FIXED = ("n_inner", "activation_function", "layer_norm_epsilon", "scale_attn_weights")
FIXED += ("scale_attn_by_inverse_layer_idx", "pruned_heads")


class Archive:
    """The arrays of an .npz file, read one after another; only what is not packed, so that sizes can be compared.

    Args:
        path: the file.

    Attributes:
        files: the file, in a list.
        shapes: name -> shape of every array.

    Raises:
        InputError: it is missing, damaged, packed, or holds something else than arrays of numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _damage_told(path), zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("two of its entries have the same name")
            members.pop(RECORD, None)
            self._headers = {name: _header(archive, name, info) for name, info in members.items()}
        self.files = [path]
        self.shapes = {name: shape for name, (shape, _) in self._headers.items()}

    def dtype(self, name: str) -> str:
        """numpy's name of an array's type."""
        return self._headers[name][1].str

    def size(self, name: str) -> int:
        """Bytes of an array."""
        shape, dtype = self._headers[name]
        return math.prod(shape) * dtype.itemsize

    def check(self, name: str) -> None:
        """Read an array, which compares its bytes with their CRC-32."""
        self.read(name)

    def read(self, name: str) -> NDArray[Any]:
        """One array; an InputError says that it is damaged."""
        with _damage_told(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            return npy.read_array(file, allow_pickle=False)


def _header(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an entry, after its sizes were compared: no more than the file has is ever allocated."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is packed; write it with numpy.savez, not numpy.savez_compressed")
    with archive.open(info) as file:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"{name} is no array of numbers")
        shape, _, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not read")
    if math.prod(shape) * dtype.itemsize != info.file_size - begin or info.file_size != info.compress_size:
        raise ValueError(f"{name} has not the bytes of its shape {shape}")
    return shape, dtype


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    # RuntimeError: it is encrypted; SyntaxError, TypeError, KeyError: numpy's reader of a damaged header.
    except (OSError, ValueError, EOFError, RuntimeError, SyntaxError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} can't be read as .npz: {reason(error)}.") from None


def write_archive(folder: Path, path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Write a model's tensors as OpenAI's variables: float32 arrays by OpenAI's names, and `kmeans_centers` (K, 3).

    Args:
        folder: a model folder in Hugging Face's layout, with its palette.
        path: an .npz file, for numpy.load; a variable's name may have slashes.
        progress: called with (parameters written, parameters in all).

    Returns:
        What was written.

    Raises:
        InputError: no such model, a model that OpenAI's code can't run (biases, other widths or activations, ids that
            are no single pixels), or a path that can't be written.
    """
    if path.suffix != ".npz":
        raise InputError(f"{path}: give a file that ends in .npz.")
    spec, causal = checkpoint.read_spec(folder), checkpoint.is_causal(folder)
    _check_expressible(folder, spec)
    codec = _palette_of(folder, spec)
    tensors, parts = checkpoint.load_tensors(folder), parts_of(spec, causal)
    for part in parts:
        if not part.variables:  # of what has no place there, this says so
            part.to_openai(tensors[part.name])
    record = {"software": f"imagegpt {__version__}", "model": checkpoint.fingerprint(folder), "causal": causal}

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for number, part in enumerate(parts, 1):
                for name, array in part.to_openai(tensors[part.name]).items():
                    write_array(archive, name, np.dtype("<f4"), array.shape, [array])
                if progress:
                    progress(number, len(parts))
            write_array(archive, CENTRES, np.dtype("<f4"), codec.colors.shape, [codec.colors])
            archive.writestr(zipfile.ZipInfo(RECORD), json.dumps(record))  # without the time: the same bytes again

    write_whole(path, write)
    variables = sum(len(part.variables) for part in parts)
    return {"written": [str(path)], "variables": variables, "parameters": spec.num_parameters, **record}


def _palette_of(folder: Path, spec: ModelSpec) -> Codec:
    codec, _ = load_preprocessor(folder)  # its own: a palette that is guessed is not for others
    if codec.factor != 1:
        raise InputError(f"{folder} has a {codec.name}, and OpenAI's code has palettes alone: one id for each pixel.")
    if len(codec) != spec.num_colors:
        raise InputError(f"{folder} has a {codec.name}, and its model has {spec.num_colors} colours.")
    return codec


def _check_expressible(folder: Path, spec: ModelSpec) -> None:
    """Refuse a model that OpenAI's code would run as another function."""
    plain = ModelSpec()
    for name in FIXED:
        value, wanted = getattr(spec, name), getattr(plain, name)
        if name == "n_inner" and value == 4 * spec.n_embd:
            continue
        if value != wanted and (value or wanted):
            raise InputError(f"{folder} has {name} {value!r}, which OpenAI's code has not: it has {wanted!r}.")
    try:
        _ = spec.square_grid
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
