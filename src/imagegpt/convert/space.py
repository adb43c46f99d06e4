"""Room on the disk, asked for before gigabytes are written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from imagegpt.errors import InputError


def check_space(folder: Path, needed: int) -> None:
    """Refuse to write so many bytes into a folder, which need not be there yet, if its disk has fewer free."""
    there = Path(os.path.abspath(folder))
    while not there.is_dir():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(f"{folder}: {needed:,} bytes are to be written, and the disk has {free:,} free.")
