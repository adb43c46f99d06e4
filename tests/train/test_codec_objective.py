"""What a VQ-VAE learns: losses, gradients and codes are those of the slow reference, in any number of processes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from imagegpt.codec.levels import LevelsCodec
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.sequence import flatten
from imagegpt.train import codec_objective as module
from imagegpt.train.codec_objective import Reconstruction, edges_differ
from imagegpt.train.codec_recipe import CodecRecipe, Codes
from imagegpt.train.processes import Processes
from imagegpt.train.training import Gradient, Training
from reference import vqvae as slow

SIZE, KEY = (4, 6), (0, 5, 0)
CPU = torch.device("cpu")
ONE = Processes(0, 1, CPU)
# Of two processes with two forwards each these are two rows each.
PIXELS = np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), np.uint8)
IDS = torch.from_numpy(flatten(LevelsCodec().encode(PIXELS)))


def objective(group=ONE, decay=0.9, restart=0.0, codes=5, **losses) -> Reconstruction:
    """The same network each time, whose codes lie among its vectors."""
    torch.manual_seed(0)
    config = VQVAEConfig(2, codes, code_width=2, width=4, blocks=1, block_width=3, decay=decay, restart=restart)
    model = VQVAE(config)
    made = Reconstruction(model, Codes(**losses), SIZE, group)
    with torch.no_grad():
        vectors = model.encoder(made.pixels(IDS)).permute(0, 2, 3, 1).reshape(-1, 2)
        model.quantizer.codebook.copy_(vectors[:codes] + 0.01)
    return made.train()


def slow_network(made: Reconstruction) -> tuple[slow.SlowNetwork, np.ndarray]:
    """And its codes."""
    weights = {name: weight.detach().numpy() for name, weight in made.model.named_parameters()}
    return slow.SlowNetwork(weights, 2, 1), weights["quantizer.codebook"].astype(np.float64)


def slow_pixels(rows: int) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1], float64."""
    return PIXELS[:rows].transpose(0, 3, 1, 2) / 127.5 - 1


def pixel_loss(made, pixels, kind: str) -> float:
    errors = [made[place] - pixels[place] for place in np.ndindex(*pixels.shape)]
    return float(np.mean([error**2 if kind == "l2" else abs(error) for error in errors]))


def edge_loss(made, pixels) -> float:
    """One pair of neighbours after the other."""
    errors = []
    for b, c, row, column in np.ndindex(*pixels.shape):
        for down, right in ((1, 0), (0, 1)):
            other = (b, c, row + down, column + right)
            if other[2] < pixels.shape[2] and other[3] < pixels.shape[3]:
                here = (b, c, row, column)
                errors.append(abs((made[other] - made[here]) - (pixels[other] - pixels[here])))
    return float(np.mean(errors))


# Losses.


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("edge", [0.0, 0.3])
def test_the_losses_are_those_of_the_slow_reference(kind, edge):
    made = objective(loss=kind, edge=edge, commitment=0.7)
    network, codes_KC = slow_network(made)
    pixels = slow_pixels(2)
    vectors = np.stack([network.encode(picture) for picture in pixels])
    chosen, _, commitment = slow.quantize(vectors, codes_KC)
    seen = np.stack([network.decode(codes) for codes in chosen])
    expected = [pixel_loss(seen, pixels, kind), 0.7 * commitment, edge * edge_loss(seen, pixels)]
    assert made(IDS[:2]).tolist() == pytest.approx(expected[: 3 if edge else 2], rel=1e-5)


def test_edges_that_are_moved_count_and_another_brightness_does_not():
    flat, step = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 1
    assert edges_differ(flat + 0.5, flat) == 0
    assert edges_differ(flat, step) == pytest.approx(4 / 24)  # 4 of 12 + 12 pairs of neighbours


def test_the_gradients_are_those_of_the_slow_reference_and_codes_have_none():
    """The decoder's by differences; the encoder's straight through, by its last bias, on which vectors depend as is."""
    made = objective(commitment=0.7)
    made(IDS[:1]).sum().backward()
    network, codes_KC = slow_network(made)
    pixels, vectors = slow_pixels(1), network.encode(slow_pixels(1)[0])[None]
    chosen = slow.quantize(vectors, codes_KC)[0]

    def loss() -> float:
        return pixel_loss(network.decode(chosen[0])[None], pixels, "l2")

    def slopes(array: np.ndarray) -> np.ndarray:
        found = np.zeros_like(array)
        for place in np.ndindex(*array.shape):
            kept, values = array[place], []
            for step in (1e-4, -1e-4):
                array[place] = kept + step
                values.append(loss())
            array[place] = kept
            found[place] = (values[0] - values[1]) / 2e-4
        return found

    weights: dict[str, Any] = dict(made.model.named_parameters())
    for name in ("decoder.0.bias", "decoder.3.bias"):
        np.testing.assert_allclose(weights[name].grad, slopes(network.weights[name]), rtol=1e-3, atol=1e-6)
    at_vectors = slow.gradient(vectors, codes_KC, slopes(chosen), 0.7)
    np.testing.assert_allclose(weights["encoder.5.bias"].grad, at_vectors.sum((0, 2, 3)), rtol=1e-3, atol=1e-6)
    without = [name for name, weight in weights.items() if weight.grad is None]
    assert without == ["quantizer.codebook", "quantizer.counts"]
    assert all(weight.grad.any() for name, weight in weights.items() if name not in without)


def test_the_ids_are_the_pixels():
    ends = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]], [[0, 255, 0], [0, 0, 255], [1, 2, 254]]], np.uint8)
    made = Reconstruction(objective().model, Codes(), (2, 3), ONE)
    pixels_BCHW = made.pixels(torch.from_numpy(flatten(LevelsCodec().encode(ends[None]))))
    assert pixels_BCHW.dtype == torch.float32
    assert (pixels_BCHW.min().item(), pixels_BCHW.max().item()) == (-1, 1)
    np.testing.assert_allclose(pixels_BCHW[0], ends.transpose(2, 0, 1) / 127.5 - 1, atol=1e-7)
    assert pixels_BCHW.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(objective().pixels(IDS), slow_pixels(8), atol=1e-7)


def test_losses_are_told_without_their_weights():
    made = objective(commitment=0.7, edge=0.3)
    losses = made(IDS).tolist()
    told = made.describe(losses)
    assert told == {
        "reconstruction": losses[0],
        "commitment": pytest.approx(losses[1] / 0.7),
        "edge": pytest.approx(losses[2] / 0.3),
    }
    assert objective(commitment=0).describe([0.5, 0.0]) == {"reconstruction": 0.5, "commitment": 0.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_codes_are_float32_in_half_precision(dtype):
    made = objective(edge=0.1)
    exact = made(IDS)
    made.forget()
    with torch.autocast("cpu", dtype):
        losses = made(IDS)
    made.settle(KEY)
    assert losses.dtype == made.model.quantizer.codebook.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.05, atol=1e-3)


# Codes.


def state(made: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    quantizer = made.model.quantizer
    return quantizer.codebook.detach().numpy().copy(), quantizer.counts.detach().numpy().copy()


def same(one: Reconstruction, other: Reconstruction) -> None:
    for ours, theirs in zip(state(one), state(other), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("forwards", [1, 2, 4])
def test_the_codes_become_the_moving_averages_of_all_forwards(forwards):
    made = objective()
    network, codes_KC = slow_network(made)
    vectors = np.stack([network.encode(picture) for picture in slow_pixels(8)]).transpose(0, 2, 3, 1).reshape(-1, 2)
    nearest = [slow.nearest(vector, codes_KC) for vector in vectors]
    counts_K, expected_KC = slow.update(state(made)[1].astype(np.float64), codes_KC, vectors, nearest, 0.9)
    for rows in IDS.chunk(forwards):
        made(rows)
    told = made.settle(KEY)
    np.testing.assert_allclose(state(made)[0], expected_KC, atol=1e-6)
    np.testing.assert_allclose(state(made)[1], counts_K, atol=1e-6)
    parts = np.bincount(nearest) / len(nearest)
    parts = parts[parts > 0]
    assert told == {"perplexity": pytest.approx(np.exp(-(parts * np.log(parts)).sum()), rel=1e-5), "revived": 0}


def test_dead_codes_go_where_the_key_says_among_the_vectors():
    """Those that no vector is near; the others become what they become without."""

    def settled(key, restart=0.9) -> Reconstruction:
        made = objective(restart=restart)
        with torch.no_grad():
            made.model.quantizer.codebook[2:] = 1e3 + torch.arange(3.0)[:, None]
            made.model.quantizer.counts[:] = torch.tensor([50.0, 50.0, 0.01, 0.01, 0.01])
        made(IDS)
        vectors.append(made._vectors[0].numpy())
        assert made.settle(key)["revived"] == (3 if restart else 0)
        return made

    vectors: list[np.ndarray] = []
    first, again, other, left = settled(KEY), settled(KEY), settled((0, 5, 1)), settled(KEY, restart=0.0)
    same(first, again)
    assert (state(first)[0][2:] != state(other)[0][2:]).any()
    np.testing.assert_array_equal(state(first)[0][:2], state(left)[0][:2])
    assert (state(left)[0][2:] > 900).all()
    for code in state(first)[0][2:]:
        assert (np.abs(vectors[0] - code).max(1) < 1e-6).any()


def test_codes_stay_where_they_are_without_training():
    made = objective()
    before = state(made)
    made.eval()
    made(IDS)
    made.train()
    made(IDS[:2])
    assert [len(vectors) for vectors in made._vectors] == [2 * 6]
    for ours, theirs in zip(before, state(made), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_forgotten_moves_no_code():
    made, other = objective(restart=0.5), objective(restart=0.5)
    made(IDS[:4])
    made.forget()
    for one in (made, other):
        one(IDS[4:])
        one.settle(KEY)
    same(made, other)


class Threads:
    """Processes that are threads: what `all_reduce` needs."""

    def __init__(self, count: int) -> None:
        self._barrier, self._given = threading.Barrier(count, timeout=60), dict[str, torch.Tensor]()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._given[threading.current_thread().name] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(sum(self._given.values()))  # pyright: ignore[reportArgumentType]
        self._barrier.wait()


@pytest.mark.parametrize(("processes", "forwards"), [(2, 1), (2, 2), (4, 2)])
def test_codes_of_several_processes_are_those_of_one(monkeypatch, processes, forwards):
    """Dead ones included, which are put in the same places."""
    alone = objective(restart=0.9, codes=7)
    alone(IDS)
    expected = alone.settle(KEY)
    assert 0 < expected["revived"] < 7
    monkeypatch.setattr(module, "dist", Threads(processes))
    group = [objective(Processes(rank, processes, CPU), restart=0.9, codes=7) for rank in range(processes)]
    told: dict[int, dict[str, float]] = {}

    def work(rank: int) -> None:
        for rows in IDS.chunk(processes)[rank].chunk(forwards):
            group[rank](rows)
        told[rank] = dict(group[rank].settle(KEY))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, made in enumerate(group):
        same(made, alone)
        assert told[rank] == pytest.approx(expected, rel=1e-6)


# In an update.


def training(accumulate=1, **options) -> Training:
    flat = {"batch": 8, "accumulate": accumulate, "device": "cpu", "grid": "2x3", "factor": 2, **options}
    made = objective(restart=0.5)
    return Training(made.model, CodecRecipe.from_flat(flat, "test"), ONE, made)


def test_an_update_of_two_forwards_is_one_of_both():
    one, two = training(1), training(2)
    for step in range(3):
        for made in (one, two):
            told = made.step(made.gradient(IDS.numpy(), step), 1.0)
            assert told["perplexity"] > 1
    for name, weight in one.parameters.items():
        torch.testing.assert_close(weight, two.parameters[name], atol=1e-6, rtol=0)


def test_an_update_that_overflows_or_is_given_up_moves_nothing():
    made, other = training(), training()
    before = {name: weight.detach().clone() for name, weight in made.parameters.items()}
    found = made.gradient(IDS.numpy(), 0)
    assert not made.step(Gradient(found.loss, found.norm, overflowed=True), 1.0)
    made.gradient(IDS.numpy(), 1)
    made.forget()  # what a rollback begins with
    for name, weight in made.parameters.items():
        assert torch.equal(weight, before[name]), name
    for one in (made, other):
        one.step(one.gradient(IDS.numpy(), 2), 1.0)
    for name, weight in made.parameters.items():
        assert torch.equal(weight, other.parameters[name]), name
        assert not torch.equal(weight, before[name]), name


def test_codes_are_moved_by_averages_alone():
    """Neither by the optimiser nor by its weight decay."""
    made, other = training(weight_decay=0.5, lr=0.1), training(weight_decay=0.5, lr=1e-30)
    for one in (made, other):
        one.step(one.gradient(IDS.numpy(), 0), 1.0)
    same(made.objective, other.objective)
    assert not torch.equal(made.parameters["decoder.0.weight"], other.parameters["decoder.0.weight"])
