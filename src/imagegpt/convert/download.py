"""OpenAI's release of checkpoints: where its files are, and how to fetch them.

Source of the addresses: openai/image-gpt, README.md and download.py; the BERT models' are those of its commit c6af2eb
(issue 13). A checkpoint is an index and 32 shards, 64 for the large model; the palette is one file for all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from imagegpt.convert.fetching import PART, fetch, remote_size
from imagegpt.convert.openai import MEGABYTE, PALETTE_FILE
from imagegpt.convert.space import check_space
from imagegpt.errors import InputError, Interrupted
from imagegpt.files import make_folder
from imagegpt.painting import Progress

BASE = "https://openaipublic.blob.core.windows.net/image-gpt"
Size = Literal["small", "medium", "large"]
SHARDS = {"small": 32, "medium": 32, "large": 64}
STEPS = (131_000, 262_000, 524_000, 1_000_000)


def release_files(size: str, step: int = STEPS[-1], bert: bool = False) -> list[str]:
    """The files of one checkpoint, by their addresses below `BASE`.

    Args:
        size: "small", "medium" or "large".
        step: of training: 131000, 262000, 524000 or 1000000.
        bert: the model that was trained to fill in ids, not to continue them.

    Raises:
        InputError: there is no such checkpoint.
    """
    if size not in SHARDS:
        raise InputError(f"OpenAI released the sizes {', '.join(get_args(Size))}, not {size!r}.")
    if step not in STEPS:
        raise InputError(f"OpenAI released the steps {', '.join(map(str, STEPS))}, not {step}.")
    folder, stem = f"checkpoints/igpt-{size[0]}{'-bert' if bert else ''}/{step}", f"model.ckpt-{step}"
    shards = [f"{folder}/{stem}.data-{number:05}-of-{SHARDS[size]:05}" for number in range(SHARDS[size])]
    return [f"{folder}/{stem}.index", f"color-clusters/{PALETTE_FILE}", *shards]


def download_release(
    size: str,
    folder: str | Path,
    *,
    step: int = STEPS[-1],
    bert: bool = False,
    base: str = BASE,
    progress: Progress | None = None,
    pause: float = 1.0,
) -> dict[str, Any]:
    """Fetch one checkpoint of OpenAI's into a folder, from where the last attempt ended.

    Each file has another name until it is whole, and is compared with the size that the server tells. The bytes are
    compared with their checksums by `convert_openai`.

    Args:
        size, step, bert: which checkpoint; see `release_files`.
        folder: made if it is not there. Have one for each checkpoint.
        base: another place that has the same files.
        progress: called with (megabytes there, megabytes in all).
        pause: seconds between the first two attempts.

    Returns:
        The folder, the number of files and their bytes.

    Raises:
        InputError: no such checkpoint, a file that is not there or has another size, no connection, no room.
        Interrupted: by Ctrl-C; what has come is kept.
    """
    folder = Path(folder)
    urls = [f"{base.rstrip('/')}/{file}" for file in release_files(size, step, bert)]
    done = 0

    def count(total: int) -> Callable[[int], None]:
        def on_bytes(more: int) -> None:
            nonlocal done
            done += more
            if progress:
                progress(done // MEGABYTE, total // MEGABYTE)

        return on_bytes

    try:
        sizes = {url: remote_size(url, pause) for url in urls}
        check_space(folder, sum(sizes.values()) - sum(_there(folder, url) for url in urls))
        make_folder(folder)
        on_bytes = count(sum(sizes.values()))
        for url in urls:
            fetch(url, folder / _name(url), sizes[url], on_bytes, pause)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; what has come is kept in {folder}: the same command continues.") from None
    return {"folder": str(folder), "files": len(urls), "bytes": sum(sizes.values())}


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _there(folder: Path, url: str) -> int:
    """Bytes of a file that are there already."""
    whole = folder / _name(url)
    return sum(path.stat().st_size for path in (whole, whole.with_name(whole.name + PART)) if path.is_file())
