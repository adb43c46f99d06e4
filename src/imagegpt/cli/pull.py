"""imagegpt pull"""

from __future__ import annotations

import time
from pathlib import Path

from imagegpt.cli.options import Json
from imagegpt.cli.output import print_record
from imagegpt.hub import transfer


def pull(hub_id: str, /, *, to: Path, revision: str | None = None, json_: Json = False) -> None:
    """Fetch a model from the Hugging Face Hub into a folder, whole or not at all.

    Only a model's files are fetched, and it is checked that they fit.

    Args:
        hub_id: owner/name.
        to: a new or empty folder.
        revision: branch, tag or commit; default: main.
        json_: print the report as JSON.
    """
    began = time.perf_counter()
    record = transfer.pull(hub_id, to, revision)
    seconds = round(time.perf_counter() - began, 3)
    sentence = (
        f"{to}: {len(record['files'])} files, {record['bytes']:,} bytes, of {record['revision']} at "
        f"{record['commit'][:12]} ({seconds:.1f} s)"
    )
    print_record({**record, "seconds": seconds}, json_, sentence)
