"""From a model on disk to the network that is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagegpt import checkpoint
from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.preprocessor_file import load_codec
from imagegpt.config import ImageGPTConfig
from imagegpt.errors import InputError
from imagegpt.model.heads import ImageGPTForImageClassification
from imagegpt.model.joint import ImageGPTForJointModeling
from imagegpt.model.positions import interpolate_positions
from imagegpt.train.finetune_recipe import Head
from imagegpt.train.joint import Criterion, Joint
from imagegpt.train.labels import Labels
from imagegpt.train.lora import add_adapters, merged
from imagegpt.train.network import Arrays, Network, alike, as_they_are
from imagegpt.train.start import begin_anew

TRUNK = "transformer."


@dataclass(frozen=True)
class Pretrained:
    """A model on disk that is to be fine-tuned.

    Args:
        name: as it was given.
        folder: where it lies.
        grid: (height, width) of its ids.
        codec: what its ids are of.
    """

    name: str
    folder: Path
    grid: tuple[int, int]
    codec: Codec

    @classmethod
    def open(cls, name: str) -> Pretrained:
        """Find a model.

        Raises:
            InputError: there is none, or none that can be trained.
        """
        folder = checkpoint.find_model(name)
        if "quantization_config" in checkpoint.read_config(folder):
            raise InputError(f"{name} is quantised and can't be trained; take the model that it was made of.")
        spec = checkpoint.read_spec(folder)
        codec, framing = load_codec(folder, spec)
        return cls(name, folder, grid_of(codec, framing), codec)


def network_of(
    backbone: Pretrained, head: Head, labels: Labels, grid: tuple[int, int], seed: int, device: torch.device
) -> Network:
    """The network at its start.

    Args:
        backbone: the model whose weights, or shape, it takes.
        head: how it is fine-tuned.
        labels: what its classifier tells.
        grid: (height, width) of ids.
        seed: of new weights.
        device: where it is made.

    Raises:
        InputError: the model lacks what is asked for.
    """
    plan = _Plan(backbone, head, labels, grid)
    with torch.device(device):
        model = plan.model()
    notes = plan.fill(model, seed, device)
    if head.lora:
        add_adapters(model, head.lora, head.lora_alpha, seed)
    else:
        plan.freeze(model)
    criterion = Criterion(labels.problem, labels.weights(head.class_weights), head.smoothing)
    objective = Joint(model, criterion, head.generative, plan.middle)
    publish, other = as_they_are, bool(head.lora) or plan.middle is not None
    if head.lora:
        publish = partial(merged, rank=head.lora, alpha=head.lora_alpha)
    if plan.middle is not None:
        publish = _after(publish, partial(_cut, layer=plan.middle))
    return Network(model, objective, publish, other, _rate(head, plan.blocks), tuple(notes))


class _Plan:
    """What becomes of a model's parts."""

    def __init__(self, backbone: Pretrained, head: Head, labels: Labels, grid: tuple[int, int]) -> None:
        self.backbone, self.head, self.labels, self.grid = backbone, head, labels, grid
        self.spec = checkpoint.read_spec(backbone.folder)
        self.causal = checkpoint.is_causal(backbone.folder)
        whole = self.spec.n_layer
        layer = whole if head.layer is None else head.layer
        if not 1 <= layer <= whole:
            raise InputError(f"--layer must be 1 to {whole}, the blocks of {backbone.name}, not {layer}.")
        if head.freeze > layer:
            raise InputError(f"--freeze must be 0 to {layer}, the blocks below the classifier, not {head.freeze}.")
        self.lm_head = None
        if head.start == "model":
            self.lm_head = checkpoint.load_head(backbone.folder, checkpoint.HEAD, self.spec.num_colors)
        can_draw = self.lm_head is not None or head.start != "model"
        if head.generative and not can_draw:
            raise InputError(f"{backbone.name} has no head that predicts ids: give --generative 0.")
        # Without a generative loss nothing trains the blocks above the classifier.
        self.cut = layer if layer < whole and not head.generative else None
        self.middle = layer if layer < whole and head.generative else None
        self.draws = can_draw and self.cut is None
        self.blocks = self.cut or whole

    def model(self) -> Any:
        """The network, its weights still to be filled in."""
        pruned = {layer: heads for layer, heads in (self.spec.pruned_heads or {}).items() if layer < self.blocks}
        tied = self.spec.tie_word_embeddings and self.draws
        numbers = {"n_positions": math.prod(self.grid), "n_layer": self.blocks, "tie_word_embeddings": tied}
        spec = asdict(replace(self.spec, **numbers, pruned_heads=pruned or None))
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), self.head.dropout)
        names = dict(enumerate(self.labels.classes))
        config = ImageGPTConfig(**spec, **dropout, id2label=names, label2id={name: i for i, name in names.items()})
        config.problem_type = self.labels.problem  # pyright: ignore[reportAttributeAccessIssue]
        config.architectures = [ImageGPTForImageClassification.__name__]
        if self.causal:
            config.classifier_start = True
        else:
            config.is_causal = False
        if not self.draws:
            return ImageGPTForImageClassification(config)
        return ImageGPTForJointModeling(config, self.middle)

    def fill(self, model: Any, seed: int, device: torch.device) -> list[str]:
        """Give it its first weights; what is to be said of them."""
        if self.head.start != "model":
            if self.head.start == "informed" and not self.draws:
                raise InputError("--start informed needs the generative loss: leave --layer or --generative 0 out.")
            begin_anew(model, self.head.start, self.backbone.codec, self.grid, seed, device)
            _clear(model)
            return [f"The weights are new, in the shape of {self.backbone.name}."]
        notes = []
        tensors: dict[str, Any] = dict(checkpoint.load_tensors(self.backbone.folder, {}))
        if self.grid != self.backbone.grid:
            notes.append(self._stretch(tensors))
        if self.cut is not None:
            tensors[f"{TRUNK}ln_f.weight"] = tensors[f"{TRUNK}h.{self.cut}.ln_1.weight"]
            notes.append(f"The blocks above the {self.cut}. are left out: nothing would train them.")
        if self.middle is not None:
            tensors["ln_score.weight"] = tensors[f"{TRUNK}h.{self.middle}.ln_1.weight"]
        if self.draws:
            tensors[checkpoint.HEAD] = self.lm_head
        tensors[checkpoint.SCORE] = score = self._score()
        if score is not None:
            notes.append(f"The classifier of {self.backbone.name} tells these classes already and goes on.")
        _clear(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if tensors.get(name) is not None:
                    parameter.copy_(torch.tensor(np.asarray(tensors[name])))
        return notes

    def freeze(self, model: Any) -> None:
        """Have nothing trained that shall stay, or that no loss reaches."""
        first = [f"{TRUNK}h.{layer}." for layer in range(self.head.freeze)]
        frozen = (f"{TRUNK}wte.", f"{TRUNK}wpe.", *first) if self.head.freeze else ()
        if not self.head.generative:
            frozen = (*frozen, checkpoint.HEAD)
        for name, weight in model.named_parameters():
            if name.startswith(frozen):
                weight.requires_grad_(False)

    def _stretch(self, tensors: dict[str, Any]) -> str:
        name = f"{TRUNK}wpe.weight"
        wpe_TD = torch.tensor(tensors[name])
        tensors[name] = interpolate_positions(wpe_TD, self.backbone.grid, self.grid).numpy()
        old, new = (f"{height} x {width}" for height, width in (self.backbone.grid, self.grid))
        return f"The position embeddings are interpolated from {old} to {new}."

    def _score(self) -> np.ndarray | None:
        """The model's own classifier, if it tells the same classes; one of the last states knows none of others."""
        if self.cut is not None or self.middle is not None:
            return None
        folder, classes = self.backbone.folder, self.labels.classes
        kind = checkpoint.read_config(folder).get("problem_type")
        if checkpoint.read_classes(folder) != classes or kind not in (None, self.labels.problem):
            return None
        return checkpoint.load_head(folder, checkpoint.SCORE, len(classes))


@torch.no_grad()
def _clear(model: Any) -> None:
    """A new classifier begins at 0 (openai/image-gpt, src/model.py), behind a norm that changes nothing."""
    model.score.weight.zero_()


def _rate(head: Head, blocks: int) -> Any:
    """Factor of the step size by name: it falls from layer to layer, the embeddings being the lowest."""
    if head.layer_decay == 1 and head.head_rate == 1:
        return alike

    def rate(name: str) -> float:
        if name.startswith(("score.", "ln_score.")):
            return head.head_rate
        above = 0
        if name.startswith(f"{TRUNK}h."):
            above = blocks - int(name.split(".")[2])
        elif name.startswith((f"{TRUNK}wte", f"{TRUNK}wpe")):
            above = blocks + 1
        return head.layer_decay**above

    return rate


def _after(first: Any, second: Any) -> Any:
    return lambda config, weights: second(*first(config, weights))


def _cut(config: ImageGPTConfig, weights: Arrays, layer: int) -> tuple[ImageGPTConfig, dict[str, Any]]:
    """The classifier alone: the blocks below it, behind which its norm is the last one."""
    above = tuple(f"{TRUNK}h.{number}." for number in range(layer, config.n_layer))
    config.n_layer, config.tie_word_embeddings = layer, False
    if config.pruned_heads:
        config.pruned_heads = {number: heads for number, heads in config.pruned_heads.items() if number < layer} or None
    cut = {name: array for name, array in weights.items() if not name.startswith((*above, "ln_score.", "lm_head."))}
    cut[f"{TRUNK}ln_f.weight"] = weights["ln_score.weight"]
    return config, cut
