"""The one loop: from a recipe to a checkpoint, through every interruption."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from imagegpt import __version__
from imagegpt.codec.preprocessor_file import codec_folders
from imagegpt.errors import InputError, Interrupted
from imagegpt.files import make_folder, write_text
from imagegpt.train.batches import Batch
from imagegpt.train.checkpoints import EMA, Checkpoints, read_checkpoint
from imagegpt.train.checks import CHECKPOINTS, RECIPE, check_recipe, check_same_run
from imagegpt.train.clock import Clock
from imagegpt.train.dataset import Dataset, Working
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.guard import Guard
from imagegpt.train.journal import Journal
from imagegpt.train.optimizers import Schedule, schedule_of
from imagegpt.train.processes import Processes, processes
from imagegpt.train.stopping import Stop, stopping
from imagegpt.train.task import Task, task_of
from imagegpt.train.training import Gradient, Training

MODEL, SAMPLES, SKIPPED = "model", "samples", "skipped.txt"
ROLLBACKS = 3  # in a row, without a new checkpoint between them
Tell = Callable[[str, dict[str, Any]], None]
Evaluator = Callable[[Path], dict[str, float]]


def train(
    recipe: FlatRecipe,
    out: Path,
    *,
    place: tuple[int, int] = (0, 1),
    evaluators: Mapping[str, Evaluator] | None = None,
    tell: Tell | None = None,
    working: Working | None = None,
) -> dict[str, Any]:
    """Train by a recipe into a folder; a run that is there already goes on from its newest checkpoint.

    The folder gets `recipe.yaml`, `log.jsonl`, `checkpoints/`, `samples/` and at the end `model/`, in Hugging Face's
    layout, with what made it in `model/training.json`.

    Args:
        recipe: everything that decides the run.
        out: the folder.
        place: rank and number of processes; with several, torchrun has set the environment.
        evaluators: what else is asked of the network every `probe_every` updates: name -> numbers of a model folder.
        tell: called with what happens: "start", "note", "step", "validation", "checkpoint", "samples", "rollback",
            "skipped", "patience", and a record.
        working: told of what takes time before the first update.

    Returns:
        Steps, where the model is, which step's it is, and the best validation so far.

    Raises:
        InputError: the recipe or the data can't be used, the folder holds another run, the loss is not finite, a
            checkpoint can't be written, or another process was lost.
        Interrupted: by Ctrl-C or SIGTERM, after a checkpoint.
    """
    with processes(place, recipe.compute.device, recipe.compute.timeout) as group:
        group_tell: Tell = tell if tell is not None and group.first else lambda *_: None
        task = group.once(lambda: task_of(recipe))
        recipe = task.recipe
        make_folder(out)
        group.once(lambda: check_same_run(recipe, out))  # before ids are made anew in the other run's folder
        check_recipe(recipe, group)
        dataset = task.open(out, group, working if group.first else None)
        run = Run(task, out, group, dataset, dict(evaluators or {}), group_tell)
        with stopping() as stop, _told(out):
            group.wait()  # a signal to all, once the start is told, must find no process that does not listen yet
            return run.go(stop)


class Run:
    """A run at its place: what has been learnt so far, and how far it is.

    Args:
        task: what it is for, and its recipe.
        out: its folder.
        group: the processes.
        dataset: the pictures.
        evaluators: see `train`.
        tell: see `train`.
    """

    def __init__(
        self,
        task: Task,
        out: Path,
        group: Processes,
        dataset: Dataset,
        evaluators: dict[str, Evaluator],
        tell: Tell,
    ) -> None:
        recipe = task.recipe
        self.task, self.recipe, self.out, self.group, self.dataset = task, recipe, out, group, dataset
        self._evaluators, self._tell = evaluators, tell
        options = recipe.optimization
        listed = out / SKIPPED
        self._skipped = set(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else set[str]()
        self.batches = dataset.batches(recipe, group, self._skip)
        self.schedule: Schedule = schedule_of(options, self.batches.per_epoch)
        self.network = task.network(dataset, group)
        self.training = Training(self.network.model, recipe, group, self.network.objective, self.network.rate)
        self.metric = task.metric(dataset)
        self.checkpoints = Checkpoints(out / CHECKPOINTS, group, dataset, self.network, keep=recipe.watch.keep)
        self.guard = Guard(recipe.watch.spike)
        self.step = self.position = self.rollbacks = 0
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.waited = 0  # validations since the best one
        self._clock = Clock(recipe, self.network.work, group)
        self._journal = self._begin()

    def _begin(self) -> Journal | None:
        """Go on from the folder's newest checkpoint, if there is one."""
        self.group.once(self._prepare)
        self._resume()
        if not self.group.first:
            return None
        journal = Journal(self.out, self.recipe.watch.tracker, self.recipe.flat(), self.step)
        journal.rewind(self.step or -1)  # from the start on it is told anew how the network began
        return journal

    def _prepare(self) -> None:
        make_folder(self.checkpoints.folder)
        self.checkpoints.clean()
        write_text(self.out / RECIPE, yaml.safe_dump(self.recipe.flat(), sort_keys=False))

    def _resume(self) -> None:
        found = self.checkpoints.latest()
        if found is None:
            return
        step, progress = found
        training = self.training
        self.checkpoints.load(step, training.parameters, training.optimizers, training.ema)
        self.step, self.position, self.seconds = step, progress["position"], progress["seconds"]
        self.best, self.rollbacks, self.waited = progress["best"], progress["rollbacks"], progress.get("waited", 0)
        training.scale.restore(progress["scale"])
        self.guard.restore(progress["losses"])

    def go(self, stop: Stop) -> dict[str, Any]:
        """Train from here to the end, or until `stop` is asked.

        Returns:
            See `train`.
        """
        self._tell("start", self._facts())
        for sentence in self.network.notes if not self.step else ():
            self._record("note", {"sentence": sentence})
        while not self.done:
            with closing(self.batches.stream(self.position)) as stream:
                if not self._follow(stream, stop):
                    continue  # rolled back: the data goes on elsewhere
            if not self.done:
                raise Interrupted(f"Interrupted at update {self.step}; the same command goes on from there.")
        return self._finish()

    @property
    def done(self) -> bool:
        """Whether all updates are made, or validations have stopped getting better."""
        return self.step >= self.schedule.steps or self.waited_enough

    @property
    def waited_enough(self) -> bool:
        """Whether validations have stopped getting better."""
        return 0 < self.recipe.watch.patience <= self.waited

    def _follow(self, stream: Iterator[Batch], stop: Stop) -> bool:
        """Update after update; False where the run was rolled back."""
        self._clock.start()
        for batch in stream:
            gradient = self.training.gradient(batch.ids_BT, self.position, self.dataset.more(batch))
            trouble = None if gradient.overflowed else self.guard.trouble(gradient.loss, gradient.norm)
            if trouble:
                self._roll_back(trouble)
                return False
            factor = self.schedule.factor(self.step)
            told = self.training.step(gradient, factor)
            self.step, self.position = self.step + 1, self.position + 1
            self.seconds += self._clock.tick()
            self._log(gradient, factor, told)
            stopped = self.group.any(stop.asked)
            self._look(stopped)
            if stopped or self.done:
                return True
        raise AssertionError("the stream of batches has no end")

    def _look(self, stopped: bool) -> None:
        """All that happens every so many updates besides updating."""
        watch, last = self.recipe.watch, self.step == self.schedule.steps
        validate_every = self.batches.per_epoch if watch.validate_every is None else watch.validate_every

        def due(every: int) -> bool:
            return bool(every) and (self.step % every == 0)

        improved = False
        if self.dataset.validation is not None and (due(validate_every) or (last and validate_every)):
            improved = self._validate()
        if due(watch.save_every) or improved or stopped or self.done:
            self.save()
        if due(watch.sample_every) and not self.training.objective.masked:
            self._on_export(self._draw)
        if due(watch.probe_every) and self._evaluators:
            self._on_export(lambda folder: self._evaluate(folder))
        self._clock.start()

    def _validate(self) -> bool:
        """Validate; whether it is the best so far."""
        record = self.task.validate(self.training, self.dataset)
        self._record("validation", record)
        name, value = self.metric.name, record[self.metric.name]
        if self.best is not None and not self.metric.is_better(value, self.best[name]):
            self.waited += 1
            if self.waited_enough:
                self._record("patience", {"best": self.best["step"], "waited": self.waited})
            return False
        self.best, self.waited = {"step": self.step, name: value}, 0
        return True

    def save(self) -> None:
        """Write a checkpoint."""
        self.rollbacks = 0
        progress = {
            "step": self.step,
            "position": self.position,
            "epoch": self.position / self.batches.per_epoch,
            "seconds": self.seconds,
            "best": self.best,
            "waited": self.waited,
            "rollbacks": self.rollbacks,
            "scale": self.training.scale.state(),
            "losses": self.guard.state(),
            "seed": self.recipe.optimization.seed,  # all random numbers follow from it and the position
            **self._facts(),
            "recipe": self.recipe.flat(),
        }
        training = self.training
        best = None if self.best is None else self.best["step"]
        path = self.checkpoints.save(training.parameters, training.optimizers, training.ema, progress, best)
        self._tell("checkpoint", {"step": self.step, "path": str(path)})

    def _roll_back(self, trouble: str) -> None:
        """Go back to the last checkpoint and leave out the data since then; or give up."""
        self.training.forget()
        told = f"At update {self.step + 1} {trouble}."
        found = self.checkpoints.latest()
        position, rollbacks = self.position + 1, self.rollbacks + 1
        if self.recipe.watch.on_spike == "stop" or found is None or rollbacks > ROLLBACKS:
            kept = f"the checkpoint of update {found[0]} is kept" if found else "there is no checkpoint yet"
            raise InputError(f"{told} The run stops; {kept}. Take a lower --lr, --clip 1 or --on-spike rollback.")
        self._resume()
        self.position, self.rollbacks = position, rollbacks
        if self._journal is not None:
            self._journal.rewind(self.step)
        self._record("rollback", {"trouble": told, "to": self.step, "position": position})

    def _on_export(self, use: Callable[[Path], None]) -> None:
        """Write the network as a model folder for the first process, use it, and remove it."""
        folder = self.out / ".export"
        weights = self.checkpoints.gather(self.training.weights())
        if self.group.first:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            self.checkpoints.write_model(folder, weights)
            try:
                use(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self.group.wait()

    def _draw(self, folder: Path) -> None:
        make_folder(self.out / SAMPLES)
        path = self.out / SAMPLES / f"step-{self.step:08d}.png"
        self.task.draw(folder, path, self.dataset, str(self.group.device))
        self._tell("samples", {"step": self.step, "path": str(path)})

    def _evaluate(self, folder: Path) -> None:
        for name, evaluator in self._evaluators.items():
            self._record(name, evaluator(folder))

    def _log(self, gradient: Gradient, factor: float, told: Mapping[str, float]) -> None:
        if self._journal is None:
            return  # the first process tells
        record = {
            "epoch": round(self.position / self.batches.per_epoch, 4),
            "loss": gradient.loss,
            **gradient.told,
            **told,
            "grad_norm": gradient.norm,
            "lr": factor * self.recipe.optimization.lr,
            "seconds": round(self.seconds, 3),
            **self._clock.rates(),
        }
        self._tell("step", {"step": self.step, "steps": self.schedule.steps, **record})
        every = self.recipe.watch.log_every
        if every and (self.step % every == 0 or self.step == self.schedule.steps):
            self._journal.write(self.step, kind="train", **record)

    def _record(self, kind: str, record: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.write(self.step, kind=kind, seconds=round(self.seconds, 3), **record)
        self._tell(kind, {"step": self.step, **record})

    def _skip(self, sentence: str) -> None:
        """A picture could not be read: it is listed, and the run goes on."""
        if sentence not in self._skipped:
            self._skipped.add(sentence)
            with (self.out / SKIPPED).open("a", encoding="utf-8") as file:
                file.write(sentence + "\n")
            self._tell("skipped", {"step": self.step, "sentence": sentence, "count": len(self._skipped)})

    def _facts(self) -> dict[str, Any]:
        weights = self.training.parameters.values()
        return {
            "step": self.step,
            "steps": self.schedule.steps,
            "parameters": sum(weight.numel() for weight in weights),
            "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
            "pictures": len(self.dataset.train),
            "skipped": self.dataset.skipped + len(self._skipped),
            "processes": self.group.count,
            "device": str(self.group.device),
            "codec": self.dataset.codec.fingerprint,
            "imagegpt": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    def _finish(self) -> dict[str, Any]:
        """Put the finished model beside the checkpoints."""
        best = self.recipe.watch.publish == "best" and self.best is not None
        step = self.best["step"] if best and self.best is not None else self.step
        source = self.checkpoints.path(step)
        if step != self.step:  # hours ago
            self.group.once(lambda: read_checkpoint(source))
        if self.training.ema is not None:
            source /= EMA
        facts = {"seconds": round(self.seconds, 1), "best": self.best, "published": step}
        summary = {**self._facts(), **facts, "notes": list(self.network.notes)}
        if self.group.first:
            made = {**summary, "recipe": self.recipe.flat()}
            self._publish(source, json.dumps(made, indent=2) + "\n")
        self.group.wait()
        return {**summary, "model": str(self.out / MODEL)}

    def _publish(self, source: Path, made: str) -> None:
        temporary, target = self.out / f".{MODEL}.part", self.out / MODEL
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            shutil.copyfile(source / name, temporary / name)
        for name in codec_folders(source):
            shutil.copytree(source / name, temporary / name)
        write_text(temporary / "training.json", made)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turn what a full disk makes of the log, a sheet or the model into one sentence."""
    try:
        yield
    except OSError as error:
        what = error.filename2 or error.filename or out
        raise InputError(f"The run in {out} stops: {what} can't be used ({error.strerror or error}).") from None
