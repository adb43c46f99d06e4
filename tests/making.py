"""Data sets of every kind, small and made on the spot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
CLASSES = ("cat", "dog")
GRID = (2, 3)


def content(number: int = 0, form: str = "PNG") -> bytes:
    """A picture file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), COLOURS[number % 5]).save(file, form)
    return file.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content() if data is None else data)
    return path


def table(path: Path, rows: list, metadata: dict | None = None, size: int | None = None, **columns) -> Path:
    """A parquet file with a column `image`, in row groups of `size`."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = arrow.table({"image": rows, **columns})
    if metadata is not None:
        made = made.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path, row_group_size=size)
    return path


def cells(numbers) -> list[dict]:
    return [{"bytes": content(number), "path": None} for number in numbers]


def class_names(*names: str, column: str = "label") -> dict:
    return {"info": {"features": {column: {"names": list(names), "_type": "ClassLabel"}}}}


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: Sequence[int], labels: Sequence[int], first: int = 0) -> dict[str, bytes]:
    """Members of a shard: for each sample a .cls and a .png."""
    pairs = enumerate(zip(numbers, labels, strict=True), first)
    return {
        f"{position:04}{ending}": data
        for position, (number, label) in pairs
        for ending, data in ((".cls", str(label).encode()), (".png", content(number)))
    }


def dataset(numbers: Sequence[int], labels: Sequence[int]):
    """A data set of Hugging Face's."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict({"image": cells(numbers), "label": list(labels)}, features=features)


def tokenise(folder: Path, ids: np.ndarray, labels: Sequence | None = None, **meta) -> Path:
    """A tokenised folder."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"codec": "0123456789abcdef", "grid": list(GRID), "count": len(ids), "classes": list(CLASSES), **meta}
    (folder / "meta.json").write_text(json.dumps(told))
    np.save(folder / "ids.npy", ids)
    if labels is not None:
        np.save(folder / "labels.npy", np.array(labels))
    return folder


def ids_of(numbers: Sequence[int]) -> np.ndarray:
    """(N, 6) uint16, a row for each number."""
    return np.array([[number, 0, 1, 2, 3, 4] for number in numbers], np.uint16)


def pixels_of(numbers: Sequence[int]) -> np.ndarray:
    return np.array([np.full((3, 4, 3), COLOURS[number % 5], np.uint8) for number in numbers])


def _folder(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    for position, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        put(path / CLASSES[label] / f"{position:04}.png", content(number))
    return str(path)


def _split_folder(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    _folder(path / "test", [0], [0])
    _folder(path / "train", numbers, labels)
    return f"{path}:train"


def _parquet(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    made = path / "data.parquet"
    return str(table(made, cells(numbers), class_names(*CLASSES), size=3, label=list(labels)))


def _parquet_folder(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    table(path / "test-0.parquet", cells([0]), label=[0])
    for part, rows in enumerate((slice(0, 4), slice(4, None))):
        made = path / f"train-{part}.parquet"
        table(made, cells(numbers[rows]), class_names(*CLASSES), size=2, label=list(labels[rows]))
    return f"{path}:train"


def _arrays(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    path.mkdir(parents=True)
    np.savez(path / "data.npz", images=pixels_of(numbers), labels=np.array(labels))
    return str(path / "data.npz")


def _packed_arrays(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    path.mkdir(parents=True)
    both = {"x_train": pixels_of(numbers), "y_train": np.array(labels), "x_test": pixels_of([0]), "y_test": [0]}
    np.savez_compressed(path / "data.npz", **both)
    return f"{path / 'data.npz'}:train"


def _shard(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    return str(shard(path / "data.tar", samples(numbers, labels)))


def _shards(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    for part, rows in enumerate((slice(0, 3), slice(3, 3), slice(3, None))):
        shard(path / f"train-{part:03}.tar", samples(numbers[rows], labels[rows], 3 * part))
    return f"{path}/train-{{000..002}}.tar"


def _shard_folder(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    _shards(path, numbers, labels)
    shard(path / "test-000.tar", samples([0], [0]))
    return f"{path}:train"


def _saved(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    dataset(numbers, labels).save_to_disk(str(path))
    return str(path)


def _saved_splits(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    made = dataset(numbers, labels)
    pytest.importorskip("datasets").DatasetDict({"train": made, "test": dataset([0], [0])}).save_to_disk(str(path))
    return f"{path}:train"


def _tokens(path: Path, numbers: Sequence[int], labels: Sequence[int]) -> str:
    return str(tokenise(path, ids_of(numbers), labels))


# Each writes a data set of these pictures and labels below a path that is not there yet, and returns DATA.
KINDS: dict[str, Callable[[Path, Sequence[int], Sequence[int]], str]] = {
    "folder": _folder,
    "split of a folder": _split_folder,
    "parquet": _parquet,
    "parquet folder": _parquet_folder,
    "npz": _arrays,
    "packed npz": _packed_arrays,
    "shard": _shard,
    "shards": _shards,
    "shard folder": _shard_folder,
    "saved": _saved,
    "saved splits": _saved_splits,
    "tokens": _tokens,
}
FILES = [kind for kind in KINDS if "npz" not in kind and kind != "tokens"]  # pictures as bytes of files
