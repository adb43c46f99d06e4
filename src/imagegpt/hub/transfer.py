"""Model folders to the Hugging Face Hub and back: checked before, and whole or not at all."""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagegpt import __version__, checkpoint
from imagegpt.backbone import Backbone
from imagegpt.codec.preprocessor_file import NAME as PREPROCESSOR
from imagegpt.codec.preprocessor_file import codec_folders
from imagegpt.errors import InputError
from imagegpt.files import check_new_folder, sizes, whole_folder, write_text
from imagegpt.hub.card import is_ours, licence_of, write_card
from imagegpt.hub.errors import told
from imagegpt.hub.facts import Facts, check_weights, read_facts
from imagegpt.hub.files import CARD, SAFE, WEIGHTS, contents_of, files_of, matches

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
OLD = ("*.bin", "*.bin.index.json")


def make_card(folder: Path, hub_id: str, licence: str | None = None) -> tuple[str, bool]:
    """The card of a model folder.

    Args:
        folder: of the model; it is opened, to see that it is one.
        hub_id: owner/name on the Hub.
        licence: by the Hub's name of it, such as apache-2.0; default: the folder's licence file, if there is one.

    Returns:
        Its text, and whether it was made; a card that somebody wrote or changed is kept.
    """
    check_id(hub_id)
    facts = read_facts(folder)
    return _card(folder, facts, hub_id, licence, files_of(folder, facts.fingerprint))


def save_card(folder: Path, hub_id: str, licence: str | None = None) -> tuple[str, bool]:
    """Write the card into the model's folder, unless there is one that somebody wrote; see `make_card`."""
    text, made = make_card(folder, hub_id, licence)
    if made:
        write_text(folder / CARD, text)
    return text, made


def push(
    folder: Path,
    hub_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Put a model folder on the Hub, as one commit; the folder stays as it is.

    Args:
        folder: of the model.
        hub_id: owner/name; the repository is made if it is not there.
        private: make it a private one.
        revision: the branch, which is made if it is not there; default: main.
        message: of the commit.
        licence: see `make_card`.

    Returns:
        Where the model is, by which commit, and which files went there and which did not.

    Raises:
        InputError: the folder is no model that opens, or the Hub refuses; the message says why.
    """
    check_id(hub_id)
    facts = read_facts(folder)
    names = files_of(folder, facts.fingerprint)
    card, made = _card(folder, facts, hub_id, licence, names)
    contents = contents_of(folder, names) | {CARD: card.encode()}
    with _seen_bars(), told(hub_id, revision or MAIN):
        api = _api()
        _make_repository(api, hub_id, private, revision)
        there = api.list_repo_files(hub_id, revision=revision)
        if made and CARD in there and not is_ours(_card_there(api, hub_id, revision)):
            made, _ = False, contents.pop(CARD)
        stale = [name for name in there if matches(name, WEIGHTS) and name not in contents]
        title = message or f"imagegpt push: model {facts.fingerprint}"
        commit = _commit(api, hub_id, revision, title, contents, stale)
    return {
        "repository": hub_id,
        "revision": revision or MAIN,
        "commit": commit.oid,
        "url": str(commit.commit_url),
        "fingerprint": facts.fingerprint,
        "card": "generated" if made else "kept",
        "files": sorted(contents),
        "left_out": sorted({path.name for path in folder.iterdir()} - {name.partition("/")[0] for name in contents}),
    }


def pull(hub_id: str, to: Path, revision: str | None = None) -> dict[str, Any]:
    """Fetch a model from the Hub into a folder, whole or not at all.

    Args:
        hub_id: owner/name.
        to: a new or empty folder.
        revision: branch, tag or commit; default: main.

    Returns:
        What was fetched, and of which commit.

    Raises:
        InputError: there is no such model, it can't be fetched, or it does not open; the message says why.
    """
    from huggingface_hub import snapshot_download

    check_id(hub_id)
    check_new_folder(to)
    with whole_folder(to) as temporary, _seen_bars(), told(hub_id, revision or MAIN):
        api = _api()
        about = api.model_info(hub_id, revision=revision)
        there = [sibling.rfilename for sibling in about.siblings or []]
        if checkpoint.CONFIG not in there or about.sha is None:
            raise InputError(f"{hub_id} is no model: it has no {checkpoint.CONFIG}.")
        others = {name.partition("/")[0] for name in there if "/" in name}
        if PREPROCESSOR in there:
            others -= _codec_there(api, hub_id, about.sha)
        better = any(matches(name, SAFE) for name in there)
        snapshot_download(
            hub_id,
            revision=about.sha,
            local_dir=temporary,
            allow_patterns=checkpoint.HUB_FILES,
            ignore_patterns=[*(f"{glob.escape(name)}/*" for name in others), *(OLD if better else [])],
            endpoint=api.endpoint,
            library_name="imagegpt",
            library_version=__version__,
        )
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own notes
        fingerprint = _check_fetched(temporary, hub_id)
        files = sizes(temporary)
    return {
        "repository": hub_id,
        "revision": revision or MAIN,
        "commit": about.sha,
        "folder": str(to),
        "fingerprint": fingerprint,
        "bytes": sum(files.values()),
        "files": list(files),
    }


def check_id(hub_id: str) -> None:
    """Refuse a name that is no owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if hub_id.count("/") != 1:
            raise HFValidationError
        validate_repo_id(hub_id)
    except HFValidationError:
        raise InputError(f"{hub_id!r} is no id of the Hugging Face Hub: give owner/name.") from None


def _card(folder: Path, facts: Facts, hub_id: str, licence: str | None, names: list[str]) -> tuple[str, bool]:
    if CARD in names:
        try:
            text = (folder / CARD).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder / CARD} can't be read: {error}") from None
        if not is_ours(text):
            return text, False
        licence = licence or licence_of(text)
    return write_card(folder, facts, hub_id, licence, names), True


def _make_repository(api: HfApi, hub_id: str, private: bool, revision: str | None) -> None:
    api.create_repo(hub_id, private=private or None, exist_ok=True)
    if private and not api.model_info(hub_id).private:
        raise InputError(f"{hub_id} is there already and public: make it private on its page, or leave out --private.")
    if revision not in (None, MAIN) and not str(revision).startswith("refs/"):
        api.create_branch(hub_id, branch=str(revision), exist_ok=True)


def _card_there(api: HfApi, hub_id: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(hub_id, CARD, revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _codec_there(api: HfApi, hub_id: str, commit: str) -> set[str]:
    """The folders in which a model's codec lies."""
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(hub_id, PREPROCESSOR, revision=commit, local_dir=folder)
        return set(codec_folders(Path(folder)))


def _commit(
    api: HfApi, hub_id: str, revision: str | None, title: str, contents: dict[str, str | bytes], stale: list[str]
) -> Any:
    """One commit of the files; stale weights, which lie there in other files, go, as a reader could take these."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]
    return api.create_commit(hub_id, operations, commit_message=title, revision=revision)


def _check_fetched(folder: Path, hub_id: str) -> str:
    """Find out whether what came opens; its fingerprint."""
    try:
        check_weights(folder)
        if (folder / PREPROCESSOR).is_file():  # many on the Hub have none; who opens them is told
            Backbone(folder)
        return checkpoint.fingerprint(folder)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), hub_id)) from None


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="imagegpt", library_version=__version__)


@contextmanager
def _seen_bars() -> Iterator[None]:
    """No progress bars of the client's where nobody sees them move."""
    from huggingface_hub import utils

    silent = not (sys.stderr.isatty() or utils.are_progress_bars_disabled())
    if silent:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if silent:
            utils.enable_progress_bars()
