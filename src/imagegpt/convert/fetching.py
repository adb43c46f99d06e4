"""Fetch a large file over HTTP: what is broken off is continued, and a file is there whole or not at all."""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagegpt import __version__
from imagegpt.errors import InputError, reason

PART = ".part"  # behind the name of what has not all come yet
PATIENCE = 30  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing
CHUNK = 1 << 20
_NOT_RETRIED = range(400, 500)
_RETRIED = (408, 429)  # of these: the server asks for patience
OnBytes = Callable[[int], None]


class _Broken(Exception):  # noqa: N818 - not for users
    """An attempt brought not all, and the next may."""


def remote_size(url: str, pause: float = 1.0) -> int:
    """How many bytes a server says that a file has.

    Args:
        url: http or https.
        pause: seconds before the second attempt; doubled before each further one.

    Raises:
        InputError: the file is not there, the server does not say, or it can't be reached.
    """

    def ask() -> int:
        with _open(url, "HEAD") as response:
            return _length(response, url)

    return _attempts(ask, url, pause)


def fetch(url: str, path: Path, size: int, on_bytes: OnBytes = lambda count: None, pause: float = 1.0) -> None:
    """Fetch a file of known size, from where the last attempt ended; nothing is done where it is there.

    What has come lies in `path`.part until all has.

    Args:
        url: http or https.
        path: the file to make.
        size: its bytes.
        on_bytes: called with the number of bytes that have come, those that were there included.
        pause: seconds before the second attempt; doubled before each further one.

    Raises:
        InputError: `path` is there and has another size, the server has another file, the connection broke too often,
            or nothing can be written.
    """
    if path.exists():
        _check_size(path, size, url)
        on_bytes(size)
        return
    part = path.with_name(path.name + PART)
    if _held(part):
        on_bytes(_held(part))
    while _held(part) != size or not part.exists():
        before = _held(part)
        if before > size:
            raise InputError(f"{part} has {before:,} bytes, more than the {size:,} of {url}: remove it and run again.")
        _attempts(lambda: _continue(url, part, size, on_bytes), url, pause)
    part.replace(path)


def _check_size(path: Path, size: int, url: str) -> None:
    there = path.stat().st_size
    if there != size:
        raise InputError(f"{path} is there and has {there:,} bytes, not the {size:,} of {url}: remove it.")


def _held(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempts(attempt: Callable[[], Any], url: str, pause: float) -> Any:
    """Try until it works; an attempt that brings something raises nothing, so that the count begins anew."""
    last = None
    for number in range(ATTEMPTS):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        try:
            return attempt()
        except _Broken as error:
            last = error
    raise InputError(f"{url} can't be fetched: {last}; the same command continues.")


def _open(url: str, method: str = "GET", first: int = 0) -> Any:
    """The server's answer; what is wrong with the address is told, what may pass is `_Broken`."""
    headers = {"User-Agent": f"imagegpt/{__version__}", "Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url} is no address of a server: it should begin with https://.")
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _NOT_RETRIED and error.code not in _RETRIED:
            raise InputError(f"{url} can't be fetched: the server says {error.code} {error.reason}.") from None
        raise _Broken(f"the server says {error.code} {error.reason}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise InputError(f"{url} is no address: {reason(error)}.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(reason(error)) from None


def _length(response: Any, url: str) -> int:
    told = response.headers.get("Content-Length", "")
    if not re.fullmatch(r"\d{1,18}", told):
        raise InputError(f"{url}: the server does not say how many bytes the file has.")
    return int(told)


def _continue(url: str, part: Path, size: int, on_bytes: OnBytes) -> None:
    """Append what the server sends, if it sends the right part of the right file; or begin anew."""
    first = _held(part)
    with _open(url, first=first) as response:
        begin, total = _range(response, url)
        if total != size or begin not in (0, first):
            told = f"{total:,} bytes, not {size:,}, from {begin:,} on"
            raise InputError(f"{url}: the server sends another file than it told of: {told}.")
        if begin == 0 and first:  # it can't send parts
            on_bytes(-first)
        _append(response, part, begin, size, on_bytes)
    if _held(part) <= first < size:
        raise _Broken(f"the connection broke off after {_held(part):,} of {size:,} bytes")


def _range(response: Any, url: str) -> tuple[int, int]:
    """Where the bytes that follow begin, and how many the file has."""
    if response.status != 206:
        return 0, _length(response, url)
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
    if match is None:
        raise InputError(f"{url}: the server does not say which part of the file it sends.")
    return int(match[1]), int(match[2])


def _append(response: Any, part: Path, begin: int, size: int, on_bytes: OnBytes) -> None:
    came = 0
    try:
        with part.open("r+b" if begin else "wb") as file:
            file.seek(begin)
            while begin + came < size and (chunk := _read(response, min(CHUNK, size - begin - came))):
                file.write(chunk)
                came += len(chunk)
                on_bytes(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{part} can't be written: {error.strerror or error}.") from None


def _read(response: Any, count: int) -> bytes:
    """Some bytes; none where the connection is at its end, however that came."""
    try:
        return response.read(count)
    except (OSError, http.client.HTTPException):
        return b""
