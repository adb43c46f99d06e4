"""Training a VQ-VAE, by the same loop: its ids are the pictures' own colours, and what it is worth is PSNR."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.levels import LevelsCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.quality import Quality
from imagegpt.codec.stored import NETWORK
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.codec.vqvae.quantizer import cluster
from imagegpt.data.pixels import read_pixels
from imagegpt.errors import InputError
from imagegpt.files import write_whole
from imagegpt.sheet import comparison_sheet
from imagegpt.train.checks import check_validations
from imagegpt.train.clock import Work
from imagegpt.train.codec_objective import Reconstruction
from imagegpt.train.codec_recipe import CodecRecipe, Codes
from imagegpt.train.dataset import Dataset, Working, open_sources, warn_of_empty_classes
from imagegpt.train.network import Network
from imagegpt.train.processes import Processes
from imagegpt.train.task import Metric
from imagegpt.train.training import Training

FIRST = 1 << 15  # vectors that the first codes are made of
ROWS = 64  # validation pictures that are looked at together


class CodecTraining:
    """Learn codes for blocks of pixels.

    Args:
        recipe: everything that decides the run.

    Raises:
        InputError: an end or a choice by validations, without any.
    """

    def __init__(self, recipe: CodecRecipe) -> None:
        check_validations(recipe)
        self.recipe = recipe

    def open(self, out: Path, group: Processes, working: Working | None = None) -> Dataset:
        """The pictures, which are read anew each time."""
        data = self.recipe.data
        sources = open_sources(data)
        for source in sources:
            if source is not None and source.tokens:
                raise InputError(f"{source.path} holds ids, and a codec is trained on pictures: give those.")
        if group.first:
            warn_of_empty_classes(sources[0].path)
        height, width = (side * self.recipe.codes.factor for side in self.recipe.grid)
        framing = Framing(height, width, data.crop)
        return Dataset(LevelsCodec(), framing, Augmentation.parse(data.augment), *sources)

    def network(self, dataset: Dataset, group: Processes) -> Network:
        """A new network, whose first codes are k-means of what its encoder makes of training pictures."""
        recipe = self.recipe
        model = new_vqvae(recipe, group.device)
        objective = Reconstruction(model, recipe.codes, dataset.framing.size, group)
        codes, counts = cluster(self._vectors(model, objective, dataset), recipe.codes.codes, recipe.optimization.seed)
        with torch.no_grad():
            model.quantizer.codebook.copy_(codes)
            # In updates to come: how many of its pictures' vectors each stands for.
            model.quantizer.counts.copy_(counts * (recipe.optimization.batch * math.prod(recipe.grid) / counts.sum()))
        return Network(model, objective, store=lambda folder: {NETWORK: "."}, counted=work_of(recipe))

    def _vectors(self, model: VQVAE, objective: Reconstruction, dataset: Dataset) -> torch.Tensor:
        """The encoder's vectors of the first training batches, the same in all processes."""
        alone = Processes(0, 1, torch.device("cpu"))
        batches, found, count = dataset.batches(self.recipe, alone), [], 0
        position = 0
        device = next(model.parameters()).device
        while count < max(FIRST, len(model)) and position < batches.per_epoch:
            ids_BT = torch.from_numpy(batches.at(position).ids_BT).to(device)
            with torch.no_grad():
                z_BhwC = model.encoder(objective.pixels(ids_BT)).permute(0, 2, 3, 1)
            found.append(z_BhwC.reshape(-1, z_BhwC.shape[-1]))
            count, position = count + len(found[-1]), position + 1
        return torch.cat(found)

    def metric(self, dataset: Dataset) -> Metric:
        """PSNR in dB."""
        return Metric("psnr", rises=True)

    def validate(self, training: Training, dataset: Dataset) -> dict[str, Any]:
        """What the codec loses of the validation pictures, and how much of it is used; see `Quality.result`.

        Raises:
            InputError: none of them can be read.
        """
        source, group, quality = dataset.validation, training.group, Quality(training.model)
        assert source is not None
        start, stop = (len(source) * rank // group.count for rank in (group.rank, group.rank + 1))
        with training.evaluating():
            for _, pixels_BHWC in read_pixels(source, dataset.framing, "skip", ROWS, start, stop):
                quality.add(pixels_BHWC)
        quality.restore(group.total(*quality.state()))
        if not quality.pictures:
            raise InputError(f"{source.path} holds no picture that can be read, so nothing can be validated.")
        return {**quality.result(), "skipped": len(source) - quality.pictures}

    def draw(self, folder: Path, path: Path, dataset: Dataset, device: str) -> None:
        """Pictures that are not trained on, where there are any, over what the codec makes of them."""
        model: Any = VQVAE.load(folder)
        model.to(device)
        sources = [source for source in (dataset.validation, dataset.train) if source is not None]
        batches = (read_pixels(source, dataset.framing, "skip", self.recipe.watch.samples) for source in sources)
        pixels_BHWC = next(pixels for batch in batches for _, pixels in batch if len(pixels))
        made_BHWC = model.decode(model.encode(pixels_BHWC))
        write_whole(path, comparison_sheet({"pictures": pixels_BHWC, model.name: made_BHWC}).save)


def new_vqvae(recipe: CodecRecipe, device: torch.device) -> VQVAE:
    """A network with its first weights, which are drawn on the CPU: the same for a seed on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.optimization.seed)
        model: Any = VQVAE(config_of(recipe.codes))
    return model.to(device, memory_format=torch.channels_last)  # the fastest order for convolutions


def config_of(codes: Codes) -> VQVAEConfig:
    """The configuration that a recipe asks for."""
    same = ("factor", "code_width", "width", "blocks", "block_width", "commitment", "restart")
    given = {name: getattr(codes, name) for name in same}
    return VQVAEConfig(num_codes=codes.codes, decay=codes.code_decay, **given)


def work_of(recipe: CodecRecipe) -> Work:
    """What a picture is for a VQ-VAE: its backward takes twice what its forward does."""
    height, width = (side * recipe.codes.factor for side in recipe.grid)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VQVAE(config_of(recipe.codes))(torch.empty(1, 3, height, width))
    return Work(math.prod(recipe.grid), 3 * counter.get_total_flops(), recipe.codes.width)
