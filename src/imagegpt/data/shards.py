"""WebDataset's shards: .tar files in which the members of a sample share a name up to its first dot."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from imagegpt.data.folders import is_picture_name
from imagegpt.data.records import Label, Record, Source, spans
from imagegpt.errors import InputError, reason

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
    """Where a file lies in its shard."""

    name: str
    offset: int
    size: int

    def read(self, shard: IO[bytes]) -> bytes:
        """Its content."""
        shard.seek(self.offset)
        return shard.read(self.size)


class Sample(NamedTuple):
    """The members of one key that are of interest."""

    key: str
    picture: Member
    label: Member | None


def expand_braces(pattern: str) -> list[Path]:
    """The files that a pattern such as `name-{000..012}.tar` names, in order; none where it has no braces.

    Example:
        >>> [path.name for path in expand_braces("a-{08..10}.tar")]
        ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    texts = BRACES.split(pattern)  # text, first, last, text, ...
    if len(texts) == 1:
        return []
    ranges = [_numbers(first, last) for first, last in zip(texts[1::3], texts[2::3], strict=True)]
    return [
        Path(texts[0] + "".join(number + text for number, text in zip(numbers, texts[3::3], strict=True)))
        for numbers in itertools.product(*ranges)
    ]


def open_shards(paths: list[Path], name: str, label_column: str | None = None) -> Source:
    """Shards, one after another. Their headers are read once; labels are in .cls, or in .json.

    Args:
        paths: of the shards.
        name: what was given for them.
        label_column: the key of the labels in .json; default: "label", where there is no .cls.

    Raises:
        InputError: a shard is missing or cut off, there is no picture in them, or the first sample has no such key.
    """
    indexes = [_index(path, label_column) for path in paths]
    length, key = sum(map(len, indexes)), label_column or "label"
    if not length:
        raise InputError(f"{name} holds no pictures: no member with a picture's ending.")

    def records(start: int, stop: int) -> Iterator[Record]:
        for number, begin, end in spans(map(len, indexes), start, stop):
            yield from _records(paths[number], indexes[number][begin:end], key)

    first = next(records(0, 1))
    if label_column and first.label is None:
        raise InputError(f"{first.name} has no number {label_column} in a .json; name another label column.")
    return Source(name, length, records, first.label is not None)


def _index(path: Path, label_column: str | None) -> list[Sample]:
    """The samples of a shard that have a picture, in the order of their first members."""
    groups: dict[str, list[Member]] = {}
    for member in _members(path):
        if key := key_of(member.name):
            groups.setdefault(key, []).append(member)
    samples = []
    for key, members in groups.items():
        pictures = [member for member in members if is_picture_name(member.name)]
        endings = [".json"] if label_column else [".cls", ".json"]
        labels = [member for ending in endings for member in members if member.name.endswith(ending)]
        if pictures:  # of 1.depth.png and 1.png it is the latter
            picture = min(pictures, key=lambda member: member.name.count("."))
            samples.append(Sample(key, picture, labels[0] if labels else None))
    return samples


def _numbers(first: str, last: str) -> list[str]:
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def key_of(name: str) -> str:
    """The key of a member's sample: its folder, and its name up to the first dot; a hidden file has none."""
    folder, slash, base = name.rpartition("/")
    start = base.partition(".")[0]
    return folder + slash + start if start else ""


def _members(path: Path) -> list[Member]:
    """The files in a shard, which must end as a whole archive does: tarfile takes some that are cut off for whole."""
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as shard:
            members = [Member(file.name, file.offset_data, file.size) for file in archive if file.isreg()]
            shard.seek(archive.offset)
            whole = shard.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, OverflowError, tarfile.TarError) as error:
        raise InputError(f"{path} can't be read as .tar: {reason(error)}.") from None
    if not whole:
        raise InputError(f"{path} can't be read as .tar: it is cut off or damaged after {len(members)} files.")
    return members


def _records(path: Path, samples: list[Sample], key: str) -> Iterator[Record]:
    try:
        with path.open("rb") as shard:
            for sample in samples:
                where = f"{path}, sample {sample.key}"
                yield Record(where, sample.picture.read(shard), _label(sample.label, shard, key, where))
    except OSError as error:
        raise InputError(f"{path} can't be read: {reason(error)}.") from None


def _label(member: Member | None, shard: IO[bytes], key: str, where: str) -> Label | None:
    if member is None:
        return None
    content = member.read(shard)
    try:
        if member.name.endswith(".cls"):
            return int(content)
        value = json.loads(content)[key]
    except (KeyError, TypeError):
        return None
    except ValueError as error:
        raise InputError(f"{where}: its label can't be read from {member.name}: {reason(error)}.") from None
    numbers = value if isinstance(value, list) else [value]
    return value if all(isinstance(number, (int, float)) for number in numbers) else None
