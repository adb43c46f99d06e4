"""Train the embedded model "nano" on CIFAR-10's pictures; one command, resumable.

    python recipes/cifar10_nano/train.py --data DIR --out runs/nano

DIR holds train.parquet and validation.parquet in the Hugging Face layout (image bytes). On CIFAR-10's pictures this
reaches 1.84 nats/token in 87 minutes on two CPU cores with bfloat16 units (AMX); elsewhere --dtype float32 may be
faster. Ctrl-C loses nothing and a kill the updates since the last checkpoint; the same command goes on from there.
The step size is constant until the last `decay` part of the run, so a run may be given more or fewer steps as long as
its decay has not begun.
"""

from __future__ import annotations

import io
import json
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cyclopts
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.config import ImageGPTConfig
from imagegpt.files import write_text, write_whole
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from muon import Muon
from start import informed_start

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Recipe:
    """What determines the weights; recorded beside them.

    Args:
        steps: updates in all.
        batch: pictures an update.
        width, layers, heads: the shape.
        muon_lr: step of the blocks' matrices.
        adam_lr: step of embeddings, head, norms and biases.
        warmup: updates until the full step.
        decay: last part of the run, in which the step falls linearly to 0.
        neighbours: start the first heads on neighbouring pixels.
        seed: of everything random.
    """

    steps: int = 4400
    batch: int = 8
    width: int = 192
    layers: int = 8
    heads: int = 3
    colors: int = 512
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 100
    decay: float = 0.4
    neighbours: bool = True
    seed: int = 0

    def rate(self, step: int) -> float:
        """Factor of the step sizes at an update."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay * self.steps))


def read_pictures(path: Path) -> np.ndarray:
    """All pictures of a parquet file, which must have one size: (n, height, width, 3) uint8."""
    records = pq.read_table(path, columns=["image"]).column("image").to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(record["bytes"])).convert("RGB")) for record in records])


def tokenized(data: Path, out: Path, colors: int, seed: int) -> tuple[PaletteCodec, torch.Tensor, torch.Tensor]:
    """The palette, and the training and validation ids (n, T) uint16; made once, kept in `out`."""
    cache = out / "ids.npz"
    if not cache.exists():
        pictures = {split: read_pictures(data / f"{split}.parquet") for split in ("train", "validation")}
        codec = PaletteCodec.fit(pictures["train"], colors, seed)
        ids = {k: codec.encode(v).reshape(len(v), -1).astype(np.uint16) for k, v in pictures.items()}
        write_whole(cache, lambda path: np.savez(path, allow_pickle=False, clusters=codec.clusters, **ids))
    with np.load(cache) as arrays:
        train, validation = (torch.from_numpy(arrays[split]) for split in ("train", "validation"))
        return PaletteCodec(arrays["clusters"]), train, validation


def batch_at(ids: torch.Tensor, recipe: Recipe, step: int) -> torch.Tensor:
    """The pictures of an update, a function of (seed, step) alone; half of them mirrored."""
    per_epoch = len(ids) // recipe.batch
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(ids))
    chosen = order[position * recipe.batch : (position + 1) * recipe.batch]
    side = math.isqrt(ids.shape[1])
    grid = ids[chosen].long().view(-1, side, side)
    mirrored = torch.from_numpy(np.random.default_rng([recipe.seed, epoch, position]).random(len(grid)) < 0.5)
    return torch.where(mirrored[:, None, None], grid.flip(2), grid).flatten(1)


def build(recipe: Recipe, codec: PaletteCodec, length: int) -> ImageGPTForCausalImageModeling:
    """The model at its start, for pictures of `length` ids; no dropout."""
    torch.manual_seed(recipe.seed)
    config = ImageGPTConfig(
        vocab_size=len(codec) + 1,
        n_positions=length,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = ImageGPTForCausalImageModeling(config)
    informed_start(model, torch.from_numpy(codec.clusters), recipe.seed, recipe.neighbours)
    return model


def optimizers(
    model: ImageGPTForCausalImageModeling, recipe: Recipe, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, Adam for the rest."""
    matrices = {n: p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2}
    joined = [p for n, p in matrices.items() if "c_attn" in n]
    single = [p for n, p in matrices.items() if "c_attn" not in n]
    rest = [p for n, p in model.named_parameters() if n not in matrices]
    return [
        Muon([{"params": joined, "parts": 3}, {"params": single}], lr=recipe.muon_lr, dtype=dtype),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]


class Run:
    """A model in training: its optimizers, its position, its folder.

    Args:
        recipe: what determines the weights.
        codec: the palette.
        out: folder of the checkpoint and the log.
        dtype: of the matrix products.
        compile: use torch.compile.
    """

    def __init__(self, recipe: Recipe, codec: PaletteCodec, length: int, out: Path, dtype: str, compile: bool) -> None:
        self.recipe, self.out = recipe, out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.amp = getattr(torch, dtype)
        self.model = build(recipe, codec, length).train()
        torch.nn.Module.to(self.model, self.device)  # transformers types its own `to` as a method without self
        self.optimizers = optimizers(self.model, recipe, self.amp)
        self.image_loss = torch.compile(self.model.image_loss) if compile else self.model.image_loss
        self.step, self.seconds = 0, 0.0

    def loss(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """nats/token of a batch."""
        with torch.autocast(self.device, self.amp, enabled=self.amp != torch.float32):
            return self.image_loss(ids_BT.to(self.device))

    def update(self, ids_BT: torch.Tensor) -> float:
        """One update; the batch's nats/token before it."""
        began = time.perf_counter()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("full_lr", group["lr"])
                group["lr"] = group["full_lr"] * self.recipe.rate(self.step)
        loss = self.loss(ids_BT)
        if not torch.isfinite(loss):
            raise SystemExit(f"The loss is not finite at update {self.step}; the last checkpoint is kept.")
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - began
        return loss.item()

    @torch.no_grad()
    def validate(self, ids_BT: torch.Tensor, batch: int = 20) -> float:
        """Mean nats/token."""
        losses = [self.loss(part.long()) * len(part) for part in ids_BT.split(batch)]
        return (torch.stack(losses).sum() / len(ids_BT)).item()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_whole(self.out / CHECKPOINT, lambda path: torch.save(state, path))

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            SystemExit: it was made by another recipe; only `steps` may differ, and only before the decay has begun.
        """
        if not (self.out / CHECKPOINT).exists():
            return
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        ours = asdict(self.recipe)
        changed = [name for name in ours if ours[name] != state["recipe"][name] and name != "steps"]
        if changed:
            raise SystemExit(f"{self.out} holds a run with another {changed[0]}; choose another --out.")
        steps = {self.recipe.steps, state["recipe"]["steps"]}
        if len(steps) > 1 and state["step"] > (1 - self.recipe.decay) * min(steps):
            raise SystemExit(f"{self.out} holds a run whose decay has begun; its number of steps is settled.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **record: float) -> None:
        """Add a line to log.jsonl."""
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **record}) + "\n")


def train(
    *,
    data: Path,
    out: Path,
    recipe: Recipe | None = None,
    dtype: str = "bfloat16",
    compile: bool = True,
    save_every: int = 250,
    stop_at: int | None = None,
) -> None:
    """Train, or go on training. Ctrl-C finishes the update, saves and leaves.

    Args:
        data: folder with train.parquet and validation.parquet.
        out: folder for ids, checkpoint, log and the finished model.
        recipe: what determines the weights.
        dtype: "bfloat16" (matrix products under autocast) or "float32", faster where a CPU has no bfloat16 units.
        compile: use torch.compile.
        save_every: updates between checkpoints, and between looks at 200 validation pictures.
        stop_at: leave after this update, to go on later.
    """
    recipe = recipe or Recipe()
    out.mkdir(parents=True, exist_ok=True)
    codec, train_ids, validation_ids = tokenized(data, out, recipe.colors, recipe.seed)
    run = Run(recipe, codec, train_ids.shape[1], out, dtype, compile)
    run.resume()
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    end = min(recipe.steps, stop_at or recipe.steps)
    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=end, completed=run.step)
        while run.step < end and not interrupted.is_set():
            began = run.seconds
            loss = run.update(batch_at(train_ids, recipe, run.step))
            rate = recipe.batch / (run.seconds - began)
            progress.update(task, completed=run.step, description=f"{loss:.3f} nats/token, {rate:.1f} pictures/s")
            if run.step % 25 == 0:
                run.log(loss=loss)
            if run.step % save_every == 0 or run.step == end or interrupted.is_set():
                run.save()
            if run.step % save_every == 0 or run.step == end:
                nats = run.validate(validation_ids[:200])
                run.log(validation=nats)
                progress.console.print(f"update {run.step}: {nats:.4f} nats/token on 200 validation pictures")
    if run.step == recipe.steps:
        export(run, codec, out / "model")


def export(run: Run, codec: PaletteCodec, folder: Path) -> None:
    """Write the finished model in the Hugging Face layout, and what made it."""
    model = run.model.eval()
    torch.nn.Module.to(model, "cpu")
    model.save_pretrained(folder)
    height, width = model.config.spec.square_grid
    save_preprocessor(folder, codec, Framing(height, width, crop="center"))
    facts = {**asdict(run.recipe), "seconds": round(run.seconds), "torch": torch.__version__}
    write_text(folder / "training.json", json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    cyclopts.run(train)
