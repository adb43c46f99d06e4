"""Tables of nearest colours: one in memory for each palette in use, and one file on disk for each palette ever used.

The files lie in the user's cache folder, by the platform's convention; `IMAGEGPT_CACHE` names another folder, and "off"
keeps them off the disk. A file that is damaged, or can't be read or written, costs half a second and nothing else.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.nearest import build_table
from imagegpt.errors import InputError
from imagegpt.files import cache_folder, write_whole

IN_MEMORY = 4  # tables, of 32 MiB each for up to 65,536 colours
ON_DISK = 16
# From so many pixels on it pays to read a table, and to build one: a pixel costs 1 us without a table and 0.02 us with
# one, reading it 0.03 s, building it 0.5 s.
AT_HAND = 1 << 15
TO_BUILD = 1 << 19

_tables: OrderedDict[str, NDArray[np.integer]] = OrderedDict()
_seen: dict[str, int] = {}
_lock = threading.Lock()


def table_pays(fingerprint: str, pixels: int) -> bool:
    """Whether ids should be looked up in a table. Pixels of earlier calls count: many small calls come to one too.

    Args:
        fingerprint: the palette's.
        pixels: how many are to be encoded now.
    """
    if fingerprint in _tables:
        return True
    seen = _seen[fingerprint] = _seen.get(fingerprint, 0) + pixels
    if seen < AT_HAND:
        return False
    folder = cache_folder()
    return seen >= TO_BUILD or (folder is not None and _path(folder, fingerprint).is_file())


def table_for(fingerprint: str, clusters: NDArray[np.float32]) -> NDArray[np.integer]:
    """The table of a palette: from memory, from disk, or built and kept in both.

    Args:
        fingerprint: the palette's; the key.
        clusters: (K, 3) float32 colours in [-1, 1].

    Returns:
        (2^24,) ids, indexed by r 65536 + g 256 + b; read-only.
    """
    with _lock:  # threads that need the same table wait for one
        if fingerprint not in _tables:
            _tables[fingerprint] = _find(fingerprint, clusters)
            while len(_tables) > IN_MEMORY:
                _tables.popitem(last=False)
        _tables.move_to_end(fingerprint)
        return _tables[fingerprint]


def forget() -> None:
    """Free the tables in memory."""
    with _lock:
        _tables.clear()
        _seen.clear()


def _find(fingerprint: str, clusters: NDArray[np.float32]) -> NDArray[np.integer]:
    table = _load(fingerprint, len(clusters))
    return _build(fingerprint, clusters) if table is None else table


def _path(folder: Path, fingerprint: str) -> Path:
    return folder / f"nearest-{fingerprint}.bin"


def _build(fingerprint: str, clusters: NDArray[np.float32]) -> NDArray[np.integer]:
    table = build_table(clusters)
    table.flags.writeable = False
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError, InputError):  # a full or read-only disk
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(_path(folder, fingerprint), lambda path: path.write_bytes(_packed(table)))
            _evict(folder)
    return table


def _packed(table: NDArray[np.integer]) -> bytes:
    content = table.tobytes()
    return zlib.crc32(content).to_bytes(4, "little") + content


def _load(fingerprint: str, colors: int) -> NDArray[np.integer] | None:
    folder = cache_folder()
    if folder is None:
        return None
    path = _path(folder, fingerprint)
    try:
        content = path.read_bytes()
        os.utime(path)  # the least recently used goes first
    except OSError:
        return None
    dtype = _dtype(colors)
    if len(content) != 4 + (dtype.itemsize << 24) or content[:4] != zlib.crc32(content[4:]).to_bytes(4, "little"):
        return None
    return np.frombuffer(content, dtype, offset=4)


def _dtype(colors: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if colors <= 1 << 16 else np.uint32)


def _evict(folder: Path) -> None:
    files = sorted(folder.glob("nearest-*.bin"), key=lambda path: path.stat().st_mtime)
    for path in files[:-ON_DISK]:
        with suppress(OSError):  # another process holds or removed it
            path.unlink()
