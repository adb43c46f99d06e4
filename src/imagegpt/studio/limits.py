"""What one request, one client and the server as a whole may take."""

from __future__ import annotations

from dataclasses import dataclass, fields

from imagegpt.errors import InputError, check_count


@dataclass(frozen=True)
class Limits:
    """The studio's limits; the size of a picture is limited where it is read (`imagegpt.codec.pictures`).

    Args:
        running: requests that run at once, a row of pixels each in turn.
        waiting: requests that wait beside them; more are refused.
        share: requests of one client that wait.
        samples: pictures of one request.
        rows: histories of all samples of one request together.
        pictures: among which neighbours are looked for.
        seconds: of one request, from its start on.
        models: that are kept in memory.
        upload: bytes of one file.

    Raises:
        InputError: a limit that is too low.
    """

    running: int = 4
    waiting: int = 32
    share: int = 8
    samples: int = 16
    rows: int = 128
    pictures: int = 500
    seconds: float = 120
    models: int = 2
    upload: int = 20 << 20

    def __post_init__(self) -> None:
        for limit in fields(self):
            if limit.name != "seconds":
                check_count(limit.name, getattr(self, limit.name))
        if not self.seconds >= 1:
            raise InputError(f"seconds must be at least 1, not {self.seconds}.")

    def check_samples(self, count: int) -> None:
        """Refuse more pictures than one request may ask for."""
        if not 1 <= count <= self.samples:
            raise InputError(f"The number of pictures must be 1 to {self.samples}, not {count}.")
