"""imagegpt push"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from imagegpt.cli.options import Json
from imagegpt.cli.output import print_record
from imagegpt.hub import transfer
from imagegpt.hub.files import CARD


def push(
    folder: Path,
    hub_id: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
    card_only: Annotated[bool, Parameter(negative="")] = False,
    json_: Json = False,
) -> None:
    """Put a model on the Hugging Face Hub, with a model card.

    The folder is checked first, and only a model's files go: config, weights, codec, card, licence and results. The
    card (README.md) is made of these; one that you wrote or changed is kept. Log in with `hf auth login` before.

    Args:
        folder: a model folder.
        hub_id: owner/name; the repository is made if it is not there.
        private: make it a private one.
        revision: the branch, which is made if it is not there; default: main.
        message: of the commit.
        license: for the card, by the Hub's name of it, such as apache-2.0; default: the folder's LICENSE file, if any.
        card_only: write the card into the folder, and nothing else; needs no network.
        json_: print the report as JSON.
    """
    began = time.perf_counter()
    if card_only:
        text, made = transfer.save_card(folder, hub_id, license)
        path = folder / CARD
        sentence = str(path) if made else f"{path} is not one of ours, or was changed: it is kept."
        print_record({"written": [str(path)] if made else [], "card": text}, json_, sentence)
        return
    record = transfer.push(folder, hub_id, private=private, revision=revision, message=message, licence=license)
    seconds = round(time.perf_counter() - began, 3)
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    sentence = f"{record['url']}: {len(record['files'])} files, the card {record['card']}{left_out} ({seconds:.1f} s)"
    print_record({**record, "seconds": seconds}, json_, sentence)
