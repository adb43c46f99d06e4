"""Decoding for tests: plain prompts in one batch, and models that are small enough to be counted out."""

from __future__ import annotations

import itertools

import numpy as np

from imagegpt.engine.backends import open_onnx
from imagegpt.engine.decode import Batch, Decoding
from imagegpt.engine.onnx_backend import OnnxBackend
from imagegpt.engine.onnx_weights import float_weights
from imagegpt.spec import ModelSpec


def decode(backend, prompt_RP, rows_B, sampling, uniforms_BT, **kwargs):
    """(B, T) ids: row b continues prompt `rows_B[b]`."""
    rows, given = prompt_RP.shape
    ids_RT = np.zeros((rows, uniforms_BT.shape[1]), np.int64)
    ids_RT[:, :given] = prompt_RP
    known_RT = np.zeros(ids_RT.shape, bool)
    known_RT[:, :given] = True
    return finish(Decoding(backend, Batch(ids_RT, known_RT, np.asarray(rows_B), uniforms_BT), sampling, **kwargs)).ids()


def finish(decoding):
    """Draw all that is to be drawn."""
    for _ in decoding:
        pass
    return decoding


def parameters(model):
    """A torch model's parameters by the names of a checkpoint, the head included."""
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    colors = model.config.vocab_size - 1
    return {**tensors, "lm_head.weight": tensors.get("lm_head.weight", tensors["transformer.wte.weight"])[:colors]}


def onnx_of(model, convert=lambda spec, tensors: float_weights(tensors)):
    """The onnxruntime backend of a torch model."""
    spec = model.config.spec
    return OnnxBackend(spec, convert(spec, parameters(model)))


def saved_onnx(model, folder, precision="fp32"):
    """The same through files, as a user gets it."""
    model.save_pretrained(folder)
    return open_onnx(folder, model.config.spec, precision)


class FakeBackend:
    """A numpy backend whose logits are a function of the ids so far; it writes down what it is asked.

    Its rows hold their ids alone, and check that whoever copies them tells rightly up to where they are alike.
    """

    rows = 32

    def __init__(self, colors, length):
        self.spec = ModelSpec(vocab_size=colors + 1, n_positions=length, n_embd=8, n_layer=1, n_head=1)
        self.prefills, self.steps, self.copies = [], [], []

    def logits(self, ids_BP):
        raise NotImplementedError

    def prefill(self, inputs_RP, rows_B):
        self.prefills.append((inputs_RP.copy(), rows_B.copy()))
        assert (inputs_RP[:, 0] == self.spec.sos).all()
        return FakeRows(self, inputs_RP[rows_B, 1:])

    def array(self, values):
        return values

    def numpy(self, values):
        return values

    def rows_that_fit(self, prompt):
        return 10**6


class FakeRows:
    def __init__(self, backend, ids_BP):
        self._backend, self.ids_BP = backend, ids_BP
        self.logits_BK = backend.logits(ids_BP)

    def step(self, ids_B):
        assert ids_B.shape == (len(self.ids_BP),)
        assert ((ids_B >= 0) & (ids_B < self._backend.spec.num_colors)).all()
        self._backend.steps.append(ids_B.copy())
        self.ids_BP = np.concatenate([self.ids_BP, ids_B[:, None]], axis=1)
        self.logits_BK = self._backend.logits(self.ids_BP)

    def copy(self, sources, targets, since):
        self._backend.copies.append((sources.copy(), targets.copy()))
        assert not set(sources) & set(targets)
        for source, target, first in zip(sources, targets, since, strict=True):
            assert (self.ids_BP[source, :first] == self.ids_BP[target, :first]).all()
            self.ids_BP[target, first:] = self.ids_BP[source, first:]
        self.logits_BK = self._backend.logits(self.ids_BP)


class UniformBackend(FakeBackend):
    """Every id is equally likely."""

    def logits(self, ids_BP):
        return np.zeros((len(ids_BP), self.spec.num_colors), np.float32)


class TableBackend(FakeBackend):
    """p(x_t | x_0 ... x_t-1) is a table of random numbers, so all that can be asked of it can be counted out."""

    def __init__(self, colors, length, seed=0, spread=1.5):
        super().__init__(colors, length)
        rng = np.random.default_rng(seed)
        self.tables = [rng.normal(0, spread, (colors,) * (t + 1)).astype(np.float32) for t in range(length)]

    def logits(self, ids_BP):
        table = self.tables[ids_BP.shape[1]]
        return table[tuple(ids_BP.T)] if ids_BP.shape[1] else np.tile(table, (len(ids_BP), 1))

    def conditional(self, ids, position):
        """p(x | the ids before a position), summed up by hand."""
        weights = np.exp(self.tables[position][tuple(ids[:position])].astype(np.float64))
        return weights / weights.sum()

    def pictures(self):
        """All pictures there are."""
        return itertools.product(range(self.spec.num_colors), repeat=self.spec.n_positions)

    def posterior(self, known):
        """Picture -> p(picture | the known ids), by enumeration; `known` maps positions to ids."""
        joint = {
            ids: float(np.prod([self.conditional(ids, t)[ids[t]] for t in range(len(ids))]))
            for ids in self.pictures()
            if all(ids[position] == value for position, value in known.items())
        }
        total = sum(joint.values())
        return {ids: probability / total for ids, probability in joint.items()}

    def forced(self, known):
        """Picture -> its probability where known ids are put in their places and the others are drawn."""
        return {
            ids: float(np.prod([self.conditional(ids, t)[ids[t]] for t in range(len(ids)) if t not in known]))
            for ids in self.posterior(known)
        }


def batches_of(task, rows):
    """All parts of a task with their batches."""
    return [(part, task.batch(part)) for part in task.parts(rows)]
