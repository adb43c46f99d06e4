"""From OpenAI's release, TensorFlow checkpoints or our .npz of them, to a model folder in Hugging Face's layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__, checkpoint
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.convert.archive import CENTRES, Archive
from imagegpt.convert.bundle import Bundle, find_index, step_of
from imagegpt.convert.card import write_card
from imagegpt.convert.names import Part, left_out, parts_of, read_sizes
from imagegpt.convert.space import check_space
from imagegpt.errors import InputError, reason
from imagegpt.files import check_new_folder, whole_folder, write_text, write_whole
from imagegpt.painting import Progress
from imagegpt.spec import ModelSpec
from imagegpt.tensors import write_tensors

PALETTE_FILE = f"{CENTRES}.npy"
RECORD = "conversion.json"
MEGABYTE = 1 << 20
_SLACK = 1e-6  # of a colour's range: centres are means of float32
_TOLD = 5  # unknown variables that a warning names


class Variables(Protocol):
    """Arrays by OpenAI's names, in files: a `Bundle` or an `Archive`."""

    path: Path

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every array."""
        ...

    def dtype(self, name: str) -> str | None:
        """numpy's name of an array's type."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an array."""
        ...

    def check(self, name: str) -> None:
        """Compare an array's bytes with their checksum."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """One array, compared with its checksum."""
        ...


def convert_openai(
    source: str | Path,
    target: str | Path,
    *,
    step: int | None = None,
    n_head: int | None = None,
    palette: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a model folder of a checkpoint of OpenAI's image-gpt.

    Every byte that TensorFlow has a checksum for is compared with it, the optimiser's too; one tensor is in memory at a
    time. The folder holds model.safetensors, config.json, preprocessor_config.json, README.md and conversion.json, and
    is written whole or not at all.

    Args:
        source: a folder with `model.ckpt-STEP.index` and its shards, the index itself, or its path without the ending;
            or an .npz file of `write_archive`.
        target: the folder to make.
        step: which checkpoint, where the folder has several.
        n_head: heads, where neither the tensors nor the known sizes tell.
        palette: an .npy file of the colours, (K, 3) in [-1, 1]; default: kmeans_centers.npy beside the checkpoint, or
            in the .npz.
        progress: called with (megabytes read, megabytes in all).

    Returns:
        What conversion.json says, and what was written.

    Raises:
        InputError: a file is missing or damaged, a tensor is missing or has a wrong shape, the palette is another's, or
            the folder can't be made; the message names the file.
    """
    source, target = Path(source), Path(target)
    check_new_folder(target)
    is_archive = source.suffix == ".npz"
    if is_archive and step is not None:
        raise InputError(f"{source} has no steps: leave --step out.")
    variables: Variables = Archive(source) if is_archive else Bundle(find_index(source, step))
    try:
        spec, causal = read_sizes(variables.shapes, n_head)
    except InputError as error:
        raise InputError(f"{variables.path}: {error}") from None
    parts = parts_of(spec, causal)
    _check_types(variables, parts)
    codec, palette_path = _read_palette(variables, spec, palette)
    check_space(target, 4 * spec.num_parameters)
    work = _Work(variables, parts, [*variables.files, *([palette_path] if palette_path else [])], progress)
    record = {
        "software": f"imagegpt {__version__}",
        "source": str(variables.path.name),
        "step": None if is_archive else step_of(variables.path),
        "objective": "autoregressive" if causal else "BERT",
        "parameters": spec.num_parameters,
        "palette": {"colors": len(codec), "fingerprint": codec.fingerprint},
        "left_out": work.left_out,
        "files": work.digests(),
    }
    _warn_unknown(variables, work.left_out)
    with whole_folder(target) as folder:
        work.check_left_out()
        work.write_weights(folder / "model.safetensors")
        write_text(folder / checkpoint.CONFIG, json.dumps(_config(spec, causal), indent=2) + "\n")
        save_preprocessor(folder, codec, Framing(*spec.square_grid))
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        write_text(folder / "README.md", write_card(record, spec, target.name))
        checkpoint.check_weights(folder, spec)
        written = [str(target / path.name) for path in sorted(folder.iterdir())]
    return {"written": written, **record}


class _Work:
    """The long part of a conversion, told as megabytes: files for their digests, tensors for the model."""

    def __init__(self, variables: Variables, parts: list[Part], files: list[Path], progress: Progress | None) -> None:
        self._variables, self._parts, self._files = variables, {part.name: part for part in parts}, files
        self.left_out = left_out((name for name in variables.shapes if name != CENTRES), parts)
        self._progress, self._done = progress, 0
        sizes = (variables.size(name) for name in variables.shapes)
        self._total = sum(sizes) + sum(path.stat().st_size for path in files)

    def digests(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of each source file."""
        found = []
        for path in self._files:
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{path} can't be read: {error.strerror}.") from None
            size = path.stat().st_size
            found.append({"name": path.name, "bytes": size, "sha256": digest})
            self._tell(size)
        return found

    def check_left_out(self) -> None:
        """Compare what the model does not need with its checksums: damage seldom comes alone."""
        for names in self.left_out.values():
            for name in names:
                self._variables.check(name)
                self._tell(self._variables.size(name))

    def write_weights(self, path: Path) -> None:
        """Write the model's tensors, one after another."""
        entries = {part.name: (np.dtype(np.float32), part.shape) for part in self._parts.values()}
        metadata = {"format": "pt"}  # transformers asks for it
        write_whole(path, lambda temporary: write_tensors(temporary, entries, self._tensor, metadata))

    def _tensor(self, name: str) -> Iterator[NDArray[np.float32]]:
        part = self._parts[name]
        yield part.to_hf(self._variables.read)
        self._tell(sum(self._variables.size(variable) for variable in part.variables))

    def _tell(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done // MEGABYTE, self._total // MEGABYTE)


def _check_types(variables: Variables, parts: Iterable[Part]) -> None:
    for part in parts:
        for name in part.variables:
            if variables.dtype(name) != "<f4":
                raise InputError(f"{variables.path}: {name} is {variables.dtype(name)}; OpenAI's are float32.")


def _read_palette(
    variables: Variables, spec: ModelSpec, palette: str | Path | None
) -> tuple[PaletteCodec, Path | None]:
    """The palette, and its file where it has one of its own."""
    if palette is None and CENTRES in variables.shapes:
        return _checked_palette(variables.read(CENTRES), variables.path, spec), None
    path = Path(palette) if palette is not None else variables.path.with_name(PALETTE_FILE)
    try:
        # Mapped: a header that claims more than the file has is refused before anything is allocated.
        clusters = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file, so the palette is unknown; give it by --palette, or fetch it with "
            "`imagegpt download`."
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or reason(error)}.") from None
    except (ValueError, EOFError, SyntaxError, TypeError, BadZipFile):  # numpy's words are of pickles
        raise InputError(f"{path} holds no palette: give an .npy file of floats of shape (K, 3).") from None
    return _checked_palette(clusters, path, spec), path


def _checked_palette(clusters: Any, path: Path, spec: ModelSpec) -> PaletteCodec:
    if not isinstance(clusters, np.ndarray) or clusters.dtype.kind != "f" or clusters.ndim != 2:
        raise InputError(f"{path} holds no palette: it should be floats of shape (K, 3).")
    if clusters.shape != (spec.num_colors, 3):
        raise InputError(f"{path} has shape {clusters.shape}; the model's palette has shape ({spec.num_colors}, 3).")
    if not (np.abs(clusters) <= 1 + _SLACK).all():  # not for NaN either
        raise InputError(f"{path} holds a colour outside of [-1, 1].")
    return PaletteCodec(clusters)


def _warn_unknown(variables: Variables, kinds: dict[str, list[str]]) -> None:
    unknown = kinds.get("unknown", [])
    if unknown:
        named = ", ".join(unknown[:_TOLD]) + (", ..." if len(unknown) > _TOLD else "")
        warnings.warn(f"{variables.path}: {len(unknown)} tensors of unknown use are left out: {named}.", stacklevel=3)


def _config(spec: ModelSpec, causal: bool) -> dict[str, Any]:
    """config.json, as `ImageGPTConfig` reads it; without dropout, as the models were trained."""
    numbers = {name: value for name, value in dataclasses.asdict(spec).items() if name != "pruned_heads"}
    plain = {"model_type": "imagegpt", "architectures": ["ImageGPTForCausalImageModeling"], "dtype": "float32"}
    rest = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02, "use_cache": True}
    return {**plain, **numbers, **rest, **({} if causal else {"is_causal": False})}
