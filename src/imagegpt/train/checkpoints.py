"""Checkpoints of a run: folders that are whole or not there, that any number of processes can go on from.

A checkpoint is a model folder in Hugging Face's layout (so `from_pretrained` opens it), beside it `ema/`, another one,
where the run keeps a moving average, `training.safetensors` where the weights that are trained are not those of the
model (adapters; a head at a middle layer), `state/` with the optimiser's tensors as torch.distributed.checkpoint writes
them, and `checkpoint.json`: how far the run is, what made it, and size and SHA-256 of every other file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from imagegpt.codec.preprocessor_file import write_preprocessor
from imagegpt.errors import InputError, reason
from imagegpt.files import make_folder, write_text
from imagegpt.tensors import map_tensors, write_tensors
from imagegpt.train.dataset import Dataset
from imagegpt.train.network import Arrays, Network
from imagegpt.train.processes import Processes

MANIFEST, STATE, EMA, WEIGHTS, OWN = "checkpoint.json", "state", "ema", "model.safetensors", "training.safetensors"
NEEDED = ("config.json", WEIGHTS, f"{STATE}/.metadata")
# What torch.distributed.checkpoint's table of contents, a pickle, is made of.
TABLE = {
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "StorageMeta", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath")),
}
FOLDER = re.compile(r"step-(\d{8,})")
dcp: Any = torch.distributed.checkpoint  # which exports nothing by pyright's rules
Named = Mapping[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of a run, in `folder`.

    Args:
        folder: where they lie, one folder each.
        group: the processes, which all call the same methods.
        dataset: whose codec and grid go into each.
        network: says what becomes of its weights in a model folder.
        keep: the last so many stay, and the best.
    """

    def __init__(self, folder: Path, group: Processes, dataset: Dataset, network: Network, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._group, self._dataset, self._network = group, dataset, network

    def path(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Those that are there, in order, damaged ones included."""
        named = (FOLDER.fullmatch(path.parent.name) for path in self.folder.glob(f"step-*/{MANIFEST}"))
        return sorted(int(name[1]) for name in named if name)

    def clean(self) -> None:
        """Remove what runs that were killed have begun to write or to remove; for the first process."""
        for path in self.folder.glob(".step-*.part"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("step-*"):
            if FOLDER.fullmatch(path.name) and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)

    def save(
        self,
        parameters: Named,
        optimizers: list[torch.optim.Optimizer],
        ema: Named | None,
        progress: dict[str, Any],
        best: int | None,
    ) -> Path:
        """Write a checkpoint, whole or not at all, then remove old ones.

        Args:
            parameters: by name; they may be divided by FSDP.
            optimizers: of these.
            ema: moving averages by the parameters' names.
            progress: what `checkpoint.json` says, with `step`.
            best: step of the checkpoint that stays for its validation.

        Raises:
            InputError: it can't be written, such as on a full disk; the checkpoints before it are as they were.
        """
        path = self.path(progress["step"])
        temporary = path.with_name(f".{path.name}.part")
        self._together(path, temporary, lambda: self._prepare(temporary))
        weights = self.gather(parameters)
        averages = None if ema is None else self.gather(ema)
        self._together(path, temporary, lambda: self._write_models(temporary, weights, averages))
        self._together(path, temporary, lambda: _save_state(temporary / STATE, parameters, optimizers, self._group))
        listed = self._together(path, temporary, lambda: _list_files(temporary, self._group))
        files = {name: entry for part in self._group.gather(listed) for name, entry in part.items()}
        self._together(path, temporary, lambda: self._finish(path, temporary, {**progress, "files": files}))
        if self._group.first:
            self._remove_old(progress["step"], best)
        return path

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the newest checkpoint that is undamaged; the damaged ones are told of in a warning.

        Raises:
            InputError: all are damaged. To start anew would throw the rest of the run away, and nobody would notice.
        """
        return self._group.once(self._latest)

    def _latest(self) -> tuple[int, dict[str, Any]] | None:
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, read_checkpoint(self.path(step))
            except InputError as error:
                if step == steps[0]:
                    raise InputError(f"{error} There is no other; remove {self.folder} to start anew.") from None
                warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=3)
        return None

    def load(self, step: int, parameters: Named, optimizers: list[torch.optim.Optimizer], ema: Named | None) -> None:
        """Put a checkpoint's tensors into the run's; it may have been saved by another number of processes."""
        path = self.path(step)
        copy_weights(path, parameters)
        if ema is not None:
            copy_weights(path / EMA if (path / EMA).exists() else path, ema)
        _load_state(path / STATE, parameters, optimizers, self._group)

    def _prepare(self, temporary: Path) -> None:
        if self._group.first:
            shutil.rmtree(temporary, ignore_errors=True)
            make_folder(temporary / STATE)

    def gather(self, tensors: Named) -> dict[str, np.ndarray]:
        """All tensors whole, in the first process's memory; nothing in the others', which must call it too."""
        found = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self._group.first:
                found[name] = whole.detach().float().cpu().contiguous().numpy()
        return found

    def write_model(self, folder: Path, weights: Arrays, own: bool = False) -> None:
        """Write weights as a model folder in Hugging Face's layout; for the first process.

        Args:
            folder: is there.
            weights: float32 arrays by the parameters' names, as `gather` gives them.
            own: write them as the run has them too, where the model's are others.
        """
        config, published = self._network.publish(copy.deepcopy(self._network.config), weights)
        config.dtype = torch.float32
        config.save_pretrained(folder)
        _write(folder / WEIGHTS, published)
        if own and self._network.other:
            _write(folder / OWN, weights)
        store = self._network.store or self._dataset.codec.store
        write_preprocessor(folder, store(folder), self._dataset.framing)

    def _write_models(self, folder: Path, weights: Arrays, averages: Arrays | None) -> None:
        if self._group.first:
            self.write_model(folder, weights, own=True)
            if averages is not None:
                make_folder(folder / EMA)
                self.write_model(folder / EMA, averages, own=True)

    def _finish(self, path: Path, temporary: Path, manifest: dict[str, Any]) -> None:
        if not self._group.first:
            return
        write_text(temporary / MANIFEST, json.dumps({**manifest, "digest": _digest_of(manifest)}, indent=1) + "\n")
        if path.exists():  # a damaged one, or of a run that was continued from before it
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(self.folder)

    def _together(self, path: Path, temporary: Path, work: Callable[[], Any]) -> Any:
        """Do a part of the work in all processes; where one fails, all give up."""
        result, failure = None, None
        try:
            result = work()
        except (OSError, InputError, CheckpointException) as error:
            failure = reason(error.__cause__ or error) if isinstance(error, CheckpointException) else reason(error)
        failures = [told for told in self._group.gather(failure) if told]
        if failures:
            if self._group.first:
                shutil.rmtree(temporary, ignore_errors=True)
            steps = self.steps()
            kept = f"that of update {steps[-1]} is kept" if steps else "there is none yet"
            raise InputError(f"The checkpoint {path} can't be written ({failures[0].rstrip('.')}); {kept}.")
        return result

    def _remove_old(self, newest: int, best: int | None) -> None:
        """Later ones than the newest are damaged, so that the run went on from before them."""
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self.keep :]
        for step in steps:
            if step not in kept and step != best:
                path = self.path(step)
                (path / MANIFEST).unlink()  # without it the rest is no checkpoint
                shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint's `checkpoint.json` says, once all its files are found as they were written.

    Raises:
        InputError: a file is missing, truncated or changed; the message names it.
    """
    try:
        progress = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if progress.pop("digest") != _digest_of(progress):
            raise InputError(f"The checkpoint {path} is damaged: {MANIFEST} is not as it was written.")
        files = progress.pop("files")
        for name, (size, digest) in {**dict.fromkeys(NEEDED, (0, "")), **files}.items():
            file = path / name
            if not file.is_file() or not file.resolve().is_relative_to(path.resolve()):
                raise InputError(f"The checkpoint {path} lacks {name}.")
            if file.stat().st_size != size or _digest(file) != digest:
                raise InputError(f"The checkpoint {path} is damaged: {name} is not as it was written.")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The checkpoint {path} is damaged: {MANIFEST} can't be read ({reason(error)}).") from None
    return progress


@torch.no_grad()
def copy_weights(folder: Path, tensors: Named) -> None:
    """Copy a checkpoint's weights into tensors of the same names, each process its own part."""
    stored = map_tensors(folder / (OWN if (folder / OWN).exists() else WEIGHTS))
    for name, tensor in tensors.items():
        if name not in stored or stored[name].shape != tuple(tensor.shape):
            raise InputError(f"{folder / WEIGHTS}: {name} is missing or has another shape than the run's.")
        whole = torch.tensor(stored[name])
        if isinstance(tensor, DTensor):
            whole = whole.to(tensor.device)
            tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None))
        else:
            tensor.copy_(whole)


def _write(path: Path, weights: Arrays) -> None:
    entries = {name: (np.dtype(np.float32), array.shape) for name, array in weights.items()}
    write_tensors(path, entries, lambda name: [weights[name]], {"format": "pt"})


def _states(
    parameters: Named, optimizers: list[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.Tensor, torch.optim.Optimizer]]:
    """Every parameter with its name and its optimiser."""
    names = {weight: name for name, weight in parameters.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                yield names[weight], weight, optimizer


def _save_state(folder: Path, parameters: Named, optimizers: list[torch.optim.Optimizer], group: Processes) -> None:
    state = {
        f"{name}|{key}": value
        for name, weight, optimizer in _states(parameters, optimizers)
        for key, value in optimizer.state[weight].items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone is meant
        dcp.save(state, checkpoint_id=folder, no_dist=group.count == 1)


def _load_state(folder: Path, parameters: Named, optimizers: list[torch.optim.Optimizer], group: Processes) -> None:
    _check_table(folder / ".metadata")
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    for name, weight, optimizer in _states(parameters, optimizers):
        optimizer.state[weight] = {
            key.partition("|")[2]: _room(weight, optimizer, entry)
            for key, entry in saved.items()
            if key.partition("|")[0] == name
        }
        state |= {f"{name}|{key}": value for key, value in optimizer.state[weight].items()}
    if state:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=folder, no_dist=group.count == 1)


def _room(weight: torch.Tensor, optimizer: torch.optim.Optimizer, entry: Any) -> torch.Tensor:
    """An empty tensor for a part of the optimiser's state: divided as its weight is, or a number of steps."""
    if entry.size == weight.shape:
        return torch.zeros_like(weight, dtype=entry.properties.dtype)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.zeros(entry.size, dtype=entry.properties.dtype, device=weight.device if fused else "cpu")


class _Table(pickle.Unpickler):
    """Reads a pickle that names nothing but what a table of contents is made of."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in TABLE.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _check_table(path: Path) -> None:
    """torch unpickles this file: refuse one that could run code."""
    try:
        with path.open("rb") as file:
            _Table(file).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} can't be used: {reason(error)}.") from None


def _list_files(folder: Path, group: Processes) -> dict[str, tuple[int, str]]:
    """Size and digest of this process's share of the files, which are also brought to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {}
    for path in files[group.rank :: group.count]:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        listed[path.relative_to(folder).as_posix()] = (path.stat().st_size, _digest(path))
    return listed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk, where a system can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
