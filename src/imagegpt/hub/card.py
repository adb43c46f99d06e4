"""The model card (README.md) of a model folder: what its files say, and nothing else.

A card ends with a mark that holds a digest of the text above it, so a card that somebody has changed since is theirs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imagegpt.hub.facts import Facts
from imagegpt.hub.files import CONVERSION, EVALUATIONS, LICENCES, PICTURES, TRAINING, matches, read_record

SHOWN_CLASSES = 50
# What a card tells of a training run, in this order; training.json has the rest.
_TOLD = (
    *("init", "objective", "train", "validation", "pictures", "augment", "optimizer", "lr", "muon_lr", "adam_lr"),
    *("schedule", "batch", "accumulate", "steps", "published", "ema", "dropout", "weight_decay", "precision", "seed"),
    *("seconds", "device", "processes", "imagegpt", "torch"),
)
_MARK = "<!-- Made by `imagegpt push` of the files beside it; digest {digest}. A card that is changed is kept. -->\n"
_MARKED = re.compile(re.escape(_MARK).replace(re.escape("{digest}"), "([0-9a-f]{16})") + r"\Z")


def is_ours(text: str) -> bool:
    """Whether a card was generated, and not changed since."""
    mark = _MARKED.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def licence_of(text: str) -> str | None:
    """The licence that a card of ours was once told; `None` where that was a file's."""
    from huggingface_hub import ModelCard

    licence = ModelCard(text, ignore_metadata_errors=True).data.get("license")
    return None if licence == "other" else licence


def write_card(folder: Path, facts: Facts, hub_id: str, licence: str | None, names: Iterable[str]) -> str:
    """The text of a card.

    Args:
        folder: of the model.
        facts: what it says of itself.
        hub_id: where it will be.
        licence: by the Hub's name of it; default: that of the folder's licence file, if there is one.
        names: of the folder's files that go with the card.
    """
    from huggingface_hub import ModelCardData

    names = sorted(names)
    file = next((name for name in LICENCES if name in names), None)
    kind = licence or ("other" if file else None)
    link = file if kind == "other" else None
    data = ModelCardData(
        library_name="imagegpt", license=kind, license_link=link, pipeline_tag=facts.task, tags=["imagegpt", "pixels"]
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {hub_id.partition('/')[2]}", _sentence(facts), _table(_numbers(facts))]
    parts += [*_classes(facts.classes), *_origin(folder, names), *_evaluations(folder, names)]
    parts += [f"![{name.partition('.')[0]}]({name})" for name in PICTURES if name in names]
    parts += ["## Use", _use(facts, hub_id), "## Licence", _licence(kind, file)]
    text = "\n\n".join(parts) + "\n\n"
    return text + _MARK.format(digest=_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sentence(facts: Facts) -> str:
    height, width = facts.grid
    reads = f"reads pictures as {height} x {width} ids of a {facts.codec[0]}"
    if facts.classes:
        return f"An ImageGPT that {reads}, and tells which of {len(facts.classes)} classes they show."
    does = "draws them one id after another" if facts.causal else "was trained to fill in ids that are hidden (BERT)"
    return f"An ImageGPT that {reads}, and {does}."


def _numbers(facts: Facts) -> dict[str, Any]:
    spec = facts.spec
    return {
        "attention": "causal (autoregressive)" if facts.causal else "bidirectional (BERT)",
        "layers, width, heads": f"{spec.n_layer}, {spec.n_embd}, {spec.n_head}",
        "parameters": f"{facts.parameters:,}",
        "grid": f"{facts.grid[0]} x {facts.grid[1]}",
        "codec": f"{facts.codec[0]}, fingerprint `{facts.codec[1]}`",
        "fingerprint of the model": f"`{facts.fingerprint}`",
    }


def _classes(classes: tuple[str, ...]) -> Iterator[str]:
    if classes:
        more = f" and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
        yield "## Classes"
        yield ", ".join(map(_cell, classes[:SHOWN_CLASSES])) + f"{more}."


def _origin(folder: Path, names: list[str]) -> Iterator[str]:
    if CONVERSION in names:
        yield "## Converted"
        yield f"By `imagegpt convert`; `{CONVERSION}` has all.\n\n{_table(_scalars(read_record(folder / CONVERSION)))}"
    if TRAINING in names:
        record = read_record(folder / TRAINING)
        recipe = record.get("recipe")
        known = {**(recipe if isinstance(recipe, dict) else {}), **record}
        yield "## Trained"
        yield f"`{TRAINING}` has all.\n\n{_table(_scalars({name: known[name] for name in _TOLD if name in known}))}"


def _evaluations(folder: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        if matches(name, (EVALUATIONS,)):
            figures = _scalars(read_record(folder / name))
            for known in ("model", "fingerprint"):  # the card is about it
                figures.pop(known, None)
            yield "## Evaluation"
            yield f"From `{name}`.\n\n{_table(figures)}"


def _scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, (str, int, float))}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return re.sub(r"([|<\\])", r"\\\1", " ".join(text.split()))


def _use(facts: Facts, hub_id: str) -> str:
    kind = "Classifier" if facts.classes else "ImageGPT"
    line = 'print(model.features("photo.jpg").shape)'
    if facts.classes:
        line = 'print(model.classes, model.predict("photo.jpg"))'
    elif facts.causal:
        line = 'model.sample(1, seed=0).images[0][0].save("sample.png")'
    return f'```python\nfrom imagegpt import {kind}\n\nmodel = {kind}.from_pretrained("{hub_id}")\n{line}\n```'


def _licence(kind: str | None, file: str | None) -> str:
    if file is not None:
        return f"See [{file}]({file})."
    return f"`{kind}`" if kind else "None is told."
