"""Classifier: pictures in, probabilities of classes out, by a network that was fine-tuned.

Shape suffixes: B pictures, T ids, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt import checkpoint
from imagegpt.backbone import Backbone
from imagegpt.codec.augment import Views, check_views, fixed_views
from imagegpt.codec.pictures import OnError, Picture, read_pictures
from imagegpt.data.ids import BATCH, Ids, View, read_ids
from imagegpt.data.records import Source
from imagegpt.engine.backends import Precision, load_class_network
from imagegpt.errors import InputError
from imagegpt.metrics import sigmoid, softmax
from imagegpt.painting import Progress
from imagegpt.sequence import flatten, unflatten

if TYPE_CHECKING:
    from imagegpt.model.heads import ImageGPTForImageClassification

HIDDEN = 0.15  # part of the ids that a vote does not see (Chen et al. 2020, section 2.1)
SURE = 0.5  # probability from which on a picture has one of many labels

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


class Classifier(Backbone):
    """An ImageGPT with a class head: what `imagegpt finetune` writes, and transformers' Trainer too.

    Use `from_pretrained`. Nothing heavy is loaded before the first picture; on a CPU few pictures need no torch.

    Args:
        path: a local model folder in HF's layout, with `score.weight`; it need not be able to draw.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.
        precision: "fp32"; "bf16" or "fp16" in torch; "int8" in onnxruntime (see docs/engine.md).
        backend: "onnx" (onnxruntime, on the CPU) or "torch"; default: the faster one.

    Attributes:
        classes: names of the outputs, in their order.
        problem: "single_label_classification", "multi_label_classification" or "regression".

    Raises:
        InputError: the folder has no class head, or can't be used; the message says why.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
    ) -> None:
        super().__init__(path, device, precision, backend)
        self.classes = checkpoint.read_classes(self.path)
        self.problem: Problem = _problem_of(self.path, len(self.classes))
        checkpoint.check_weights(self.path, self.spec, {checkpoint.SCORE: len(self.classes)})
        score_CD = checkpoint.load_head(self.path, checkpoint.SCORE, len(self.classes))
        if score_CD is None:  # in a .bin file
            raise InputError(checkpoint.no_class_head(self.path))
        self._score_CD = score_CD

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: Precision = "fp32",
        backend: str | None = None,
    ) -> Classifier:
        """Open a classifier.

        Args:
            name: a model folder, or a Hugging Face Hub id.
            revision: branch, tag or commit on the Hub.
            device, precision, backend: see `Classifier`.

        Raises:
            InputError: there is no such model, or it has no class head; the message says what to do.
        """
        return cls(checkpoint.find_model(name, revision), device, precision, backend)

    @property
    def reads_start(self) -> bool:
        """Whether the network reads SOS and all ids but the last, or the ids as they are."""
        return bool(checkpoint.read_config(self.path).get("classifier_start", False))

    @property
    def may_hide(self) -> bool:
        """Whether the network has learnt to read pictures of which some ids are hidden (BERT)."""
        return not checkpoint.is_causal(self.path) and not self.reads_start

    @cached_property
    def model(self) -> ImageGPTForImageClassification:
        """The network in torch, in evaluation mode."""
        model = load_class_network(self.path, self.device, self.precision)
        if self.may_hide:
            # SOS, which it never reads, stands for hidden ids: nothing but their positions is seen of these.
            model.transformer.wte.weight.data[self.spec.sos] = 0
        return model

    def logits_of(
        self, ids_BT: NDArray[np.int64], *, backend: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """The head's outputs for pictures' ids, (B, C): its weights times the mean of the states behind the last norm.

        Args:
            ids_BT: whole pictures of 0..K-1.
            backend: "onnx" or "torch", as `feature_backend` chose it for several calls; default: chosen for this one.
            progress: called with (pictures done, pictures in all).

        Raises:
            InputError: ids that are no pictures of this model's, or logits that are not finite.
        """
        return self._logits(self.check_ids(ids_BT), backend, progress)

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        views: Views = "none",
        votes: int = 0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Tell what pictures show.

        Args:
            images: a picture or several: paths, bytes, PIL images, arrays, tensors; see `read_picture`.
            views: predictions are averaged over "none" (the picture itself), "flip" (and its mirror image), or "ten"
                (five cuts of the framed picture that is padded by an eighth, each with its mirror image).
            votes: of a bidirectional (BERT) model: so many random masks hide 15 % of the ids, and the class with the
                most votes wins (Chen et al. 2020, section 3.3). With n votes a class has (its votes + the mean of its
                probabilities) / (n + 1): this mean counts as one more vote, so it decides between equals and nowhere
                else. Of many labels each has a vote where its probability is at least a half.
            seed: of the masks; they also depend on the number of the picture and that of the vote, and on nothing else.
            progress: called with (pictures done, pictures in all).

        Returns:
            float32 (pictures, C): probabilities, which sum to 1 unless a picture may have many labels; of a regression
            the numbers themselves.

        Raises:
            InputError: a picture that can't be read, no such views, or votes of a model that has none.
        """
        self.check_votes(votes, seed)
        pixels_BHWC = np.stack([self.framing.apply(picture) for picture in read_pictures(images)])
        seen = [flatten(self.codec.encode(view)) for view in fixed_views(pixels_BHWC, views)]
        return self._predict(seen, np.arange(len(pixels_BHWC)), votes, seed, progress=progress)

    def predict_ids(
        self,
        ids_BT: NDArray[np.int64],
        *,
        numbers: NDArray[np.int64] | None = None,
        views: Views = "none",
        votes: int = 0,
        seed: int = 0,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Tell what pictures show, by their ids; see `predict`.

        Args:
            ids_BT: whole pictures of 0..K-1.
            numbers: of the pictures among all, for the masks; default: from 0 on.
            views: see `predict`; of ids where each is a pixel's, or else "none".
            votes, seed, progress: see `predict`.
            backend: see `logits_of`.
        """
        self.check_votes(votes, seed)
        ids_BT = self.check_ids(ids_BT)
        numbers = np.arange(len(ids_BT)) if numbers is None else numbers
        return self._predict(self._views_of(ids_BT, views), numbers, votes, seed, backend, progress)

    def predict_source(
        self,
        source: Source,
        *,
        views: Views = "none",
        votes: int = 0,
        seed: int = 0,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Tell what the pictures of DATA show, batch by batch, in memory that does not grow with their number.

        Args:
            source: pictures, or ids of the model's codec and grid; see docs/data.md. Views of a codec whose ids
                are no single pixels need the pictures.
            views, votes, seed, progress: see `predict`.
            on_error: "raise" stops at the first bad picture; "skip" leaves it out and tells why.

        Yields:
            Batches in the order of the records, with (B, C) as `predict` returns it.
        """
        self.check_votes(votes, seed)
        check_views(views)
        backend, length = self.feature_backend([self.spec.n_layer], len(source)), len(source)
        for batch, seen in self._seen(source, views, on_error):
            before = int(batch.numbers[0]) if len(batch) else 0
            tell = progress and (lambda done, _, before=before: progress(before + done, length))
            yield batch, self._predict(seen, batch.numbers, votes, seed, backend, tell)

    def check_votes(self, votes: int, seed: int) -> None:
        """Refuse votes of a model that has none, and numbers below 0.

        Raises:
            InputError: what is wrong.
        """
        if votes < 0 or seed < 0:
            raise InputError(f"votes and seed must be at least 0, not {votes} and {seed}.")
        if votes and not self.may_hide:
            raise InputError(
                f"{self.path} is no bidirectional (BERT) classifier: hidden ids, and so votes, are for these."
            )
        if votes and self.problem == "regression":
            raise InputError(f"{self.path} tells numbers, and votes are for classes: leave the votes out.")

    def _seen(self, source: Source, views: Views, on_error: OnError) -> Iterator[tuple[Ids, list[NDArray[np.int64]]]]:
        """Batches of a source, with the ids of each of the views."""
        if views == "none" or self.codec.factor == 1:
            for batch in read_ids(source, self.codec, self.framing, on_error):
                yield batch, self._views_of(batch.ids_BT, views)
            return
        # An id hangs on all pixels of its block and those around: other views have other ids.
        length, few = self.spec.n_positions, BATCH // 8  # pictures, of which all views are in memory at once
        for batch in read_ids(source, self.codec, self.framing, on_error, batch=few, view=self._pixels_in(views)):
            ids_BVT = batch.ids_BT.reshape(len(batch), batch.ids_BT.shape[1] // length, length)
            yield replace(batch, ids_BT=ids_BVT[:, 0]), list(ids_BVT.swapaxes(0, 1))

    def _pixels_in(self, views: Views) -> View:
        """What makes pixels (V, H, W, 3) of a picture."""
        return lambda image, _: np.concatenate(fixed_views(self.framing.apply(image)[None], views))

    def _views_of(self, ids_BT: NDArray[np.int64], views: Views) -> list[NDArray[np.int64]]:
        """The views of pictures that are ids already."""
        if views != "none" and self.codec.factor != 1:
            raise InputError(
                f"The ids of a {self.codec.name} can't be mirrored or cut as pixels can: give pictures, or no views."
            )
        return [flatten(view) for view in fixed_views(unflatten(ids_BT, self.grid), views)]

    def _predict(
        self,
        seen: Sequence[NDArray[np.int64]],
        numbers: NDArray[np.int64],
        votes: int,
        seed: int,
        backend: str | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Probabilities (B, C), averaged over the views, each (B, T), and perhaps elected."""
        if not len(numbers):
            return np.empty((0, len(self.classes)), np.float32)
        if votes:
            masks = [hidden_ids(seed, numbers, copy, self.spec.n_positions) for copy in range(votes)]
            seen = [np.where(mask_BT, self.spec.sos, rows_BT) for mask_BT in masks for rows_BT in seen]
        told = [
            self._told(self._logits(rows_BT, backend, _share(progress, number, len(seen))))
            for number, rows_BT in enumerate(seen)
        ]
        told_VBC = np.stack(told).reshape(max(votes, 1), -1, *told[0].shape).mean(1)
        return self._elect(told_VBC) if votes else told_VBC[0]

    def _logits(self, ids_BT: NDArray[np.int64], backend: str | None, progress: Progress | None) -> NDArray[np.float32]:
        last = self.spec.n_layer
        states_BD = self.features_of(ids_BT, [last], backend=backend, progress=progress)[last]
        logits_BC = states_BD @ self._score_CD.T
        self._check_finite("logits", logits_BC)
        return logits_BC

    def _told(self, logits_BC: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.problem == "regression":
            return logits_BC
        return sigmoid(logits_BC) if self.problem == "multi_label_classification" else softmax(logits_BC)

    def _elect(self, told_VBC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Votes, and the mean probability as one more vote."""
        if self.problem == "multi_label_classification":
            votes_VBC = told_VBC >= SURE
        else:
            votes_VBC = told_VBC.argmax(2)[..., None] == np.arange(len(self.classes))
        return (votes_VBC.sum(0, dtype=np.float32) + told_VBC.mean(0)) / (len(told_VBC) + 1)


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one pass of several over the same pictures."""
    return None if progress is None else lambda done, total: progress((number * total + done) // count, total)


def hidden_ids(seed: int, numbers: NDArray[np.int64], copy: int, length: int) -> NDArray[np.bool_]:
    """Which ids a vote does not see, (B, T): each of them with a probability of 15 % by itself.

    Args:
        seed: decides, with the number of the picture and that of the vote.
        numbers: of the pictures.
        copy: number of the vote.
        length: T.
    """
    return np.stack([np.random.default_rng([seed, int(number), copy]).random(length) < HIDDEN for number in numbers])


def _problem_of(folder: Path, outputs: int) -> Problem:
    """What config.json says; where it says nothing one output is a number, and several are classes."""
    told = checkpoint.read_config(folder).get("problem_type")
    if told is None:
        return "regression" if outputs == 1 else "single_label_classification"
    if told not in get_args(Problem):
        raise InputError(f"{folder}: problem_type must be one of {', '.join(get_args(Problem))}, not {told!r}.")
    if told == "single_label_classification" and outputs == 1:
        raise InputError(f"{folder}: its only class can't be told from others; a {told} needs at least two classes.")
    return told
