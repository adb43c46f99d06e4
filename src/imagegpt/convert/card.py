"""The model card of a converted checkpoint: what its files say, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagegpt.spec import SIZES, ModelSpec

RELEASE = "https://github.com/openai/image-gpt"
_CARD = """\
---
library_name: imagegpt
license: other
license_name: modified-mit
license_link: {release}/blob/master/LICENSE
pipeline_tag: unconditional-image-generation
tags: [imagegpt, pixels]
---

# {title}

Converted by {software} from OpenAI's TensorFlow layout. The numbers are those of the files below, bit by bit; biases,
which OpenAI's layers lack, are zero.

| | |
|---|---|
| objective | {objective} |
| training step | {step} |
| layers, width, heads | {layers}, {width}, {heads} |
| parameters | {parameters:,} |
| grid | {side} x {side} |
| palette | {colors} colours, fingerprint `{palette}` |

## From

{files}

Left out: {left_out}.

`conversion.json` has the same for programs.

## Licence

OpenAI names a [modified MIT licence]({release}/blob/master/LICENSE) for its release of code and models, {release}. It
asks that pictures made with the model are said to be. Whether these files are from that release, only their digests can
tell.

## Use

```python
from imagegpt import {kind}

model = {kind}.from_pretrained("{folder}")
```
"""


def write_card(record: Mapping[str, Any], spec: ModelSpec, folder: str) -> str:
    """A README.md for a converted model.

    Args:
        record: what `conversion.json` holds.
        spec: the model's numbers.
        folder: how the model's folder is called.
    """
    causal = record["objective"] == "autoregressive"
    return _CARD.format(
        release=RELEASE,
        title=f"ImageGPT {_size(spec)}, {'autoregressive' if causal else 'BERT'}",
        software=record["software"],
        objective=record["objective"],
        step="not told by the files" if record["step"] is None else f"{record['step']:,}",
        layers=spec.n_layer,
        width=spec.n_embd,
        heads=spec.n_head,
        parameters=record["parameters"],
        side=spec.square_grid[0],
        colors=spec.num_colors,
        palette=record["palette"]["fingerprint"],
        files=_files(record["files"]),
        left_out=_left_out(record["left_out"]),
        kind="ImageGPT" if causal else "ImageGPTModel",
        folder=folder,
    )


def _size(spec: ModelSpec) -> str:
    """The name of a size, or its layers and width."""
    names = [name for name, known in SIZES.items() if (known.n_layer, known.n_embd) == (spec.n_layer, spec.n_embd)]
    return names[0] if names else f"{spec.n_layer} x {spec.n_embd}"


def _files(files: list[dict[str, Any]]) -> str:
    rows = [f"| {file['name']} | {file['bytes']:,} | {file['sha256']} |" for file in files]
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *rows])


def _left_out(kinds: Mapping[str, list[str]]) -> str:
    told = [f"{len(names)} of kind {kind}" for kind, names in kinds.items() if kind != "unknown"]
    told += [f"`{name}`" for name in kinds.get("unknown", [])]
    return ", ".join(told) or "nothing"
