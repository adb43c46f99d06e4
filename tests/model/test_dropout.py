from __future__ import annotations

import pytest
import torch

from imagegpt.model import dropout
from imagegpt.model.dropout import dropped_attention

SHAPE = (2, 3, 9, 4)  # batch, heads, length, head width


class Attention(torch.nn.Module):
    is_causal = True


@pytest.fixture(params=[1 << 21, 300], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(dropout, "BLOCK_NUMBERS", request.param)


def masks():
    generator = torch.Generator().manual_seed(0)
    full = torch.rand(2, 1, 9, 9, generator=generator) > 0.3
    full[0, :, 4] = False  # a query that sees nothing
    return {"causal": None, "of queries and keys": full, "of keys": torch.rand(2, 1, 1, 9, generator=generator) > 0.3}


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def kept_of(q, k, mask, part, seed):
    """The matrix of what is kept, gathered from the blocks: the one thing that a reference can't know."""
    torch.manual_seed(seed)
    drawn = int(torch.randint(2**63 - 1, ()))
    parts = dropout._Blocks(q.detach(), k.detach(), mask, part, 0.5, mask is None, drawn)
    kept = torch.zeros(2, 3, 9, 9)
    for rows, end, _, block in parts:
        kept[:, :, rows, :end] = block.float()
    return kept * parts.scale


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", masks())
def test_output_and_gradients_are_those_of_the_definition(name):
    (q, k, v), mask = inputs(), masks()[name]
    torch.manual_seed(7)
    out, probs = dropped_attention(Attention(), q, k, v, mask, 0.3, 0.5)
    assert probs is None
    seen = torch.ones(9, 9, dtype=torch.bool).tril() if mask is None else mask
    expected = (q @ k.transpose(-1, -2) * 0.5).masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    expected = ((expected * kept_of(q, k, mask, 0.3, 7)) @ v).transpose(1, 2)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(out, (q, k, v), weights)
    for got, wanted in zip(ours, torch.autograd.grad(expected, (q, k, v), weights), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_without_dropout_it_is_torchs_own_attention():
    q, k, v = inputs()
    out, _ = dropped_attention(Attention(), q, k, v, None, 0.0, 0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5).transpose(1, 2)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def test_the_part_that_is_dropped_is_the_part_asked_for_and_independent_of_the_place():
    q, k = torch.randn(2, 1, 4, 512, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.cat([block for *_, block in dropout._Blocks(q, k, None, 0.1, 1.0, False, 3)], 2).float()
    assert kept.shape == (1, 4, 512, 512)
    error = 5 * (0.09 / kept.numel()) ** 0.5
    assert abs(1 - kept.mean().item() - 0.1) < error
    for i in range(4):  # of one random word
        assert abs(1 - kept.flatten()[i::4].mean().item() - 0.1) < 2 * error
    neighbours = (kept[..., 1:] * kept[..., :-1]).mean().item()
    assert abs(neighbours - 0.81) < 2 * error


def test_the_mean_over_many_seeds_is_attention_without_dropout():
    q, k, v = (x.detach() for x in inputs())
    torch.manual_seed(0)
    total = sum(dropped_attention(Attention(), q, k, v, None, 0.5, 0.5)[0] for _ in range(3000))
    expected, _ = dropped_attention(Attention(), q, k, v, None, 0.0, 0.5)
    torch.testing.assert_close(total / 3000, expected, atol=0.1, rtol=0)


def test_the_seed_decides():
    q, k, v = inputs()

    def run(seed):
        torch.manual_seed(seed)
        return dropped_attention(Attention(), q, k, v, None, 0.3, 0.5)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_has_scores_in_float32(dtype):
    q, k, v = inputs(dtype)
    with torch.no_grad():
        q *= 200
        k *= 200  # products beyond what float16 holds
    out, _ = dropped_attention(Attention(), q, k, v, None, 0.3, 1.0)
    assert out.dtype == dtype
    assert out.isfinite().all()
    out.sum().backward()
    assert q.grad.dtype == dtype
    assert q.grad.isfinite().all()


def test_training_with_attention_dropout_goes_through_it(tiny_config, monkeypatch):
    from imagegpt.model import attention
    from imagegpt.model.modeling import ImageGPTModel

    calls = []

    def spy(*args, **kwargs):
        calls.append(kwargs["dropout"])
        return dropped_attention(*args, **kwargs)

    monkeypatch.setattr(attention, "dropped_attention", spy)
    model = ImageGPTModel(tiny_config)
    model.eval()(torch.zeros(1, 5, dtype=torch.long))
    assert calls == []
    model.train()(torch.zeros(1, 5, dtype=torch.long))
    assert calls == [0.1, 0.1]
