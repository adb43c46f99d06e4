"""A training step, ours and transformers' ImageGPT under the Hugging Face Trainer, in turn, in processes of their own.

    python benchmarks/train.py --size nano --batch 8 --steps 6 --repeats 3

Both train the same shape on the same ids at the same batch without dropout: ours by the package's own loop, with its
checkpoints and validation left out, the peer by `Trainer` with fused AdamW and labels that are its inputs. The figure
is ids a second of the updates after the first ones, the median over the repeats; the ratio is ours to theirs. MFU is
three forwards' operations a second to the machine's rate of one product of the model's shape. The last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import cyclopts
import numpy as np

WARM_UP = 2  # updates that are not counted
app = cyclopts.App(help=__doc__)


@app.default
def compare(
    *,
    size: str = "nano",
    batch: int = 8,
    accumulate: int = 1,
    steps: int = 6,
    repeats: int = 3,
    precision: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
) -> None:
    """Run both in turn, and compare.

    Args:
        size: of the model.
        batch: pictures an update.
        accumulate: forwards of an update.
        steps: updates that are counted.
        repeats: runs of each.
        precision: fp32, or bf16 by autocast.
        compile: torch.compile, for both.
    """
    given = ["--size", size, "--batch", str(batch), "--accumulate", str(accumulate), "--steps", str(steps)]
    given += ["--precision", precision, *(["--compile"] if compile else [])]
    figures: dict[str, list[dict[str, float]]] = {"ours": [], "transformers": []}
    for repeat in range(repeats):
        for who in list(figures) if repeat % 2 == 0 else list(figures)[::-1]:
            done = subprocess.run(
                [sys.executable, __file__, who, *given], stdout=subprocess.PIPE, text=True, check=True
            )
            figures[who].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{who}: {figures[who][-1]}", flush=True)
    rates = {who: median(run["ids_per_s"] for run in runs) for who, runs in figures.items()}
    record: dict[str, Any] = {
        **{"size": size, "batch": batch, "accumulate": accumulate, "precision": precision, "compile": compile},
        "repeats": repeats,
        "ids_per_s": {who: round(rate, 1) for who, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["transformers"], 3),
        "mfu": round(median(run["mfu"] for run in figures["ours"]), 3),
        "peak_mib": {who: round(median(run["peak_mib"] for run in runs)) for who, runs in figures.items()},
    }
    print(json.dumps(record))


@app.command
def ours(*, size: str, batch: int, accumulate: int, steps: int, precision: Any, compile: bool = False) -> None:
    """Our loop; prints a JSON line."""
    from imagegpt.data.tokens import IDS, META
    from imagegpt.engine.machine import peak_memory
    from imagegpt.pipeline import ImageGPT
    from imagegpt.train.loop import train
    from imagegpt.train.recipe import Recipe

    ends, rates = [], []

    def tell(kind: str, record: dict[str, Any]) -> None:
        if kind == "step":
            ends.append(time.perf_counter())
            rates.append(record["mfu"] / record["ids_per_s"])

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        np.save(data / IDS, random_ids(batch * (steps + WARM_UP + 1)).astype(np.uint16))
        codec = ImageGPT.from_pretrained("nano").codec
        meta = {"codec": codec.fingerprint, "grid": [32, 32], "count": batch * (steps + WARM_UP + 1)}
        (data / META).write_text(json.dumps(meta))
        values: dict[str, Any] = {"train": str(data), "steps": steps + WARM_UP, "batch": batch, "size": size}
        values |= {"accumulate": accumulate, "precision": precision, "compile": compile, "schedule": "constant"}
        recipe = Recipe.load(None, **values, save_every=0, lr=1e-4)
        train(recipe, Path(folder, "run"), tell=tell)
    report(ends, batch * 1024, rates[-1], peak_memory())


@app.command
def transformers(*, size: str, batch: int, accumulate: int, steps: int, precision: str, compile: bool = False) -> None:
    """The Hugging Face Trainer with transformers' own ImageGPT; prints a JSON line."""
    import dataclasses

    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.models.imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling

    from imagegpt.engine.machine import peak_memory
    from imagegpt.spec import SIZES

    numbers = dataclasses.asdict(SIZES[size])
    numbers.pop("pruned_heads")
    config = ImageGPTConfig(**numbers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    ids = torch.from_numpy(random_ids(batch * (steps + WARM_UP)))
    inputs = torch.cat([torch.full((len(ids), 1), config.vocab_size - 1), ids[:, :-1]], 1)
    rows: Any = [{"input_ids": row, "labels": row} for row in inputs]
    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch // accumulate,
            gradient_accumulation_steps=accumulate,
            max_steps=steps + WARM_UP,
            optim="adamw_torch_fused",
            learning_rate=1e-4,
            max_grad_norm=0.0,
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bf16",
            torch_compile=compile,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        model = ImageGPTForCausalImageModeling(config)
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Watch()]).train()
    report(ends, batch * 1024, 0.0, peak_memory())


def random_ids(rows: int) -> np.ndarray:
    """The same ids for both: (rows, 1024)."""
    return np.random.default_rng(0).integers(0, 512, (rows, 1024))


def report(ends: list[float], ids: int, mfu_per_rate: float, peak: int) -> None:
    """ids/s by the median time of the updates after the first ones, as a JSON line."""
    rate = ids / median(np.diff(ends[WARM_UP - 1 :]).tolist())
    figures = {"ids_per_s": round(rate, 1), "mfu": round(rate * mfu_per_rate, 4), "peak_mib": round(peak / 2**20)}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    app()
