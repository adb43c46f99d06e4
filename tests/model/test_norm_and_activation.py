from __future__ import annotations

import pytest
import torch

from imagegpt.model.layers import ImageGPTRMSNorm, quick_gelu


def kept_bytes(function, *inputs):
    """Bytes of what autograd keeps for the backward pass, beyond the inputs themselves."""
    own = {x.untyped_storage().data_ptr() for x in inputs}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(inputs[0])
    return sum(size for size, _ in kept.values())


@pytest.fixture
def norm():
    norm = ImageGPTRMSNorm(6, eps=1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 6))
    return norm


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_norm_has_the_gradients_of_its_definition_twice(norm):
    x = numbers(3, 4, 6)
    functional = lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, (x,))  # noqa: E731
    weight = norm.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(functional, (x, weight))
    assert torch.autograd.gradgradcheck(functional, (x, weight))


def test_quick_gelu_has_the_gradients_of_its_definition_twice():
    x = numbers(3, 7)
    assert torch.autograd.gradcheck(quick_gelu, (x,))
    assert torch.autograd.gradgradcheck(quick_gelu, (x,))


@pytest.mark.parametrize("grad", [True, False])
def test_quick_gelu_is_x_times_the_sigmoid_with_and_without_autograd(grad):
    x = numbers(50)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))


def test_quick_gelu_of_large_numbers_in_half_precision_is_finite():
    x = torch.tensor([-6e4, 6e4], dtype=torch.float16)
    assert quick_gelu(x).tolist() == [0.0, x[1].item()]


def test_neither_keeps_more_than_its_input(norm):
    x = numbers(5, 6)
    assert kept_bytes(norm, x, norm.weight) == 0
    assert kept_bytes(quick_gelu, x) == 0
    assert kept_bytes(lambda x: x * torch.sigmoid(1.702 * x), x) > 0  # the measure can see


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norms_gradient_in_half_precision_survives_large_activations(dtype):
    norm = ImageGPTRMSNorm(8).to(dtype)
    x = torch.full((2, 8), 1e4, dtype=dtype)
    x[:, 0] = -1e4
    x.requires_grad_()
    norm(x)[:, 1].sum().backward()
    exact = x.detach().double().requires_grad_()
    (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5))[:, 1].sum().backward()
    assert norm.weight.grad.dtype == dtype
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2e-2, atol=1e-7)
