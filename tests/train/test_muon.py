"""Muon: orthogonal updates, of q, k and v apart; equal to plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagegpt.train import muon
from reference import training


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalized_matrix_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalize(matrix, steps=8))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_treats_joined_matrices_as_separate_ones():
    weight = torch.nn.Parameter(torch.zeros(8, 24))
    weight.grad = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    weight.grad[:, 8:16] *= 1000
    muon.Muon([{"params": [weight], "parts": 3}], lr=1.0).step()
    norms = [part.norm().item() for part in weight.detach().chunk(3, 1)]
    assert max(norms) / min(norms) < 1.5


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7), (1, 5)])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalize_is_its_polynomial_on_the_singular_values(shape, steps):
    matrix = np.random.default_rng(0).normal(size=shape)
    found = muon.orthogonalize(torch.tensor(matrix, dtype=torch.float32), steps).numpy()
    np.testing.assert_allclose(found, training.orthogonalized(matrix, steps), atol=2e-5)


def test_orthogonalize_keeps_the_dtype_and_zeros():
    assert muon.orthogonalize(torch.ones(3, 4, dtype=torch.float64), dtype=torch.bfloat16).dtype == torch.float64
    assert (muon.orthogonalize(torch.zeros(3, 4)) == 0).all()


def test_bfloat16_products_are_close():
    matrix = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    exact = muon.orthogonalize(matrix)
    rough = muon.orthogonalize(matrix, dtype=torch.bfloat16)
    assert not torch.equal(exact, rough)
    assert (exact - rough).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(("shape", "parts"), [((6, 10), 1), ((10, 6), 1), ((4, 12), 3), ((4, 24), 3)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_muon_is_the_plain_updates(shape, parts, weight_decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(4, *shape))
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = muon.Muon([{"params": [weight], "parts": parts}], weight_decay=weight_decay)
    rates = [0.02, 0.1, 0.05, 0.01]
    for gradient, rate in zip(gradients, rates, strict=True):
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    expected = training.muon(start, gradients, rates, parts, weight_decay=weight_decay)
    np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-5)


def test_weights_without_a_gradient_stay_and_the_gradient_too():
    moved, still = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.eye(3)
    muon.Muon([moved, still], weight_decay=0.1).step()
    assert (still == 1).all() and not (moved == 1).all()
    assert torch.equal(moved.grad, torch.eye(3))


def test_a_saved_state_goes_on_as_if_never_stopped():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 6, generator=generator) for _ in range(4)]

    def run(weight, optimizer, parts):
        for gradient in parts:
            weight.grad = gradient.clone()
            optimizer.step()

    whole = torch.nn.Parameter(torch.zeros(4, 6))
    run(whole, muon.Muon([whole]), gradients)
    first = torch.nn.Parameter(torch.zeros(4, 6))
    before = muon.Muon([first])
    run(first, before, gradients[:2])
    second = torch.nn.Parameter(first.detach().clone())
    after = muon.Muon([second])
    after.load_state_dict(before.state_dict())
    run(second, after, gradients[2:])
    assert torch.equal(whole, second)
