"""The embedded model's card: card.md, filled with the figures of the result files that measure.py makes."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from imagegpt import ImageGPT
from imagegpt.files import write_text, write_whole
from imagegpt.sheet import sample_sheet

SAMPLES, SAMPLE_SEED = 36, 0
BEFORE = " (these weights were made before that command by a script with the same recipe)"


def write_card(pipeline: ImageGPT, results: Path, completions: Image.Image) -> None:
    """Write evaluation.json, samples.png, completions.png and README.md into the model's folder.

    Args:
        pipeline: the model.
        results: folder with the stages' JSON files.
        completions: the sheet of them.
    """
    folder, found = pipeline.path, read_results(results)
    write_text(folder / "evaluation.json", json.dumps(found["likelihood"], indent=2) + "\n")
    sheet = sample_sheet(pipeline.sample(SAMPLES, seed=SAMPLE_SEED).images[0])
    write_whole(folder / "samples.png", sheet.save)
    write_whole(folder / "completions.png", completions.save)
    write_text(folder / "README.md", card_text(pipeline, found))


def read_results(results: Path) -> dict[str, dict[str, Any]]:
    """Name of each stage -> what it has found."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}


def card_text(pipeline: ImageGPT, found: dict[str, dict[str, Any]]) -> str:
    """The card's words."""
    training = json.loads((pipeline.path / "training.json").read_text(encoding="utf-8"))
    template = Template((Path(__file__).parent / "card.md").read_text(encoding="utf-8"))
    return template.substitute(facts_of(pipeline, training, found))


def facts_of(pipeline: ImageGPT, training: dict[str, Any], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the card's words need, by name."""
    recipe = {"lr": training.get("adam_lr"), **training, **training.get("recipe", {})}
    seen = recipe["steps"] * recipe["batch"]
    probe, near = found["probe"], found["memorisation"]
    rows = {row["name"]: row for row in probe["rows"]}
    best = max((row for name, row in rows.items() if name != "pixels"), key=lambda row: row["top1"])
    facts = {
        "origin": "" if "recipe" in training else BEFORE,
        "samples": SAMPLES,
        "sample_seed": SAMPLE_SEED,
        "minutes": round(training["seconds"] / 60),
        "steps": f"{recipe['steps']:,}",
        "pictures_seen": f"{seen:,}",
        "parameters": f"{pipeline.spec.num_parameters:,}",
        "operations": f"{training_operations(pipeline, seen):.1e}",
        "curve": "\n".join(
            f"| {name} | {_percent(row['top1'])} | {_percent(row['top5'])} |" for name, row in rows.items()
        ),
        "best_layer": best["name"],
        "best_top1": _percent(best["top1"]),
        "few": "\n".join(
            f"| {row['labels_per_class']} | {_percent(row['mean'])} | {100 * row['deviation']:.2f} |"
            for row in probe["few_labels"]
        ),
        "pictures": f"{found['likelihood']['pictures']:,}",
        "low": found["likelihood"]["confidence_95"][0],
        "high": found["likelihood"]["confidence_95"][1],
        "int8_pictures": f"{found['int8']['pictures']:,}",
        "int8_difference": found["int8"]["difference_percent"],
        "accuracy": _percent(found["finetuned"]["accuracy"]),
        "compared": near["pictures"],
        "feature_layer": near["layer"],
    }
    for side in ("samples", "validation"):
        for name, least in (("pixel_rmse", min), ("feature_cosine", max)):
            facts[f"{side}_{name}"] = f"{np.median(near[side][name]):.3g}"
            facts[f"{side}_{name}_nearest"] = f"{least(near[side][name]):.3g}"
        facts[f"{side}_copies"] = near[side]["copies"]
    return recipe | found["likelihood"] | facts


def training_operations(pipeline: ImageGPT, pictures: int) -> float:
    """Floating-point operations of a training run over so many pictures."""
    from imagegpt.engine.cost import training_flops

    return float(training_flops(pipeline.spec, pictures))


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"
