"""What decompressed pictures are called: the names come from a file that anyone may have written."""

from __future__ import annotations

import re

ENDING = ".png"
MOST_BYTES = 200  # of a part of a path: file systems take 255
MOST_PARTS = 16
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Names:
    """Gives each picture a path of its own, always below the folder that it is put into."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, number: int, name: str | None) -> str:
        """A relative path with slashes that ends in .png.

        Args:
            number: of the picture, which stands for a name that it has not, or that says nothing.
            name: what its file was called.
        """
        *folders, stem = safe_parts(name or "") or [f"{number:06}"]
        stem = stem.rpartition(".")[0] or stem
        # Files end in .png and folders don't, so that neither is in the other's place.
        folder = "".join(f"{part}{'_' * part.lower().endswith(ENDING)}/" for part in folders)
        found, count = f"{folder}{stem}{ENDING}", 1
        while found.lower() in self._taken:  # some file systems don't tell cases apart
            found, count = f"{folder}{stem}-{number}{'' if count == 1 else f'-{count}'}{ENDING}", count + 1
        self._taken.add(found.lower())
        return found


def safe_parts(name: str) -> list[str]:
    """The parts of a path that can do no harm: none that leads up or to a drive, no character that a system refuses."""
    parts = [_safe(part) for part in re.split(r"[/\\]", name)]
    return [part for part in parts if part][-MOST_PARTS:]


def _safe(part: str) -> str:
    part = FORBIDDEN.sub("_", part).strip().rstrip(". ")
    if part in ("", ".", ".."):
        return ""
    if DEVICES.fullmatch(part):
        part = f"_{part}"
    return _shortened(part)


def _shortened(part: str) -> str:
    if len(part.encode()) <= MOST_BYTES:
        return part
    stem, dot, ending = part.rpartition(".")
    if not stem or len(ending) > 8:
        stem, dot, ending = part, "", ""
    return stem.encode()[: MOST_BYTES - len((dot + ending).encode())].decode(errors="ignore") + dot + ending
