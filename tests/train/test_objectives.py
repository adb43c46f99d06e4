"""What is learnt: the losses are those of the slow reference, which is the paper's definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from by_hand import make
from imagegpt.errors import InputError
from imagegpt.train.objectives import Autoregressive, Masked, draw_masks, objective_of
from reference import training

COLORS, LENGTH = 7, 6
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
IDS = torch.randint(COLORS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()


def network(causal=True):
    sizes = {"vocab_size": COLORS + 1, "n_positions": LENGTH, "n_embd": 8}
    model = make(**sizes, **PLAIN)
    if not causal:
        model.config.is_causal = False
    return model.train()


def state_of(model):
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def test_autoregressive_loss_is_that_of_all_ids_with_sos_first():
    model = network()
    expected = training.ar_loss(state_of(model), model.config.to_dict(), IDS.numpy())
    assert Autoregressive(model)(IDS).item() == pytest.approx(expected, rel=1e-6)


def test_masked_loss_is_that_of_hidden_ids_in_a_bidirectional_network_without_sos():
    model = network(causal=False)
    expected = training.bert_loss(state_of(model), model.config.to_dict(), IDS.numpy(), MASK.numpy())
    assert Masked(model)(IDS, MASK).item() == pytest.approx(expected, rel=1e-6)


def test_every_picture_counts_the_same_however_many_ids_are_masked():
    objective = Masked(network(causal=False))
    each = [objective(IDS[row : row + 1], MASK[row : row + 1]).item() for row in range(4)]
    assert each[2] == 0  # nothing is masked there
    assert objective(IDS, MASK).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_pictures_without_masked_ids_give_a_loss_and_gradients_of_zero():
    model = network(causal=False)
    loss = Masked(model)(IDS, torch.zeros_like(MASK))
    loss.backward()
    assert loss.item() == 0
    assert all(not weight.grad.any() for weight in model.parameters())


def test_the_content_of_a_masked_id_and_sos_are_unseen():
    model = network(causal=False)
    objective = Masked(model)
    first = MASK.clone()
    first[:] = False
    first[:, 2] = True
    ids = torch.full_like(IDS, 3)
    ids[:, 2] = 5
    objective(ids, first).backward()
    moved = model.transformer.wte.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3]


def test_ids_after_a_masked_one_help_to_tell_it():
    objective = Masked(network(causal=False))
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % COLORS
    mask = torch.zeros_like(MASK)
    mask[:, 0] = True
    assert objective(IDS, mask).item() != objective(changed, mask).item()


@pytest.mark.parametrize("causal", [True, False])
def test_loss_is_float32_in_half_precision(causal):
    model = network(causal)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective_of(model)(IDS, MASK).dtype == torch.float32
    assert objective_of(model.bfloat16())(IDS, MASK).dtype == torch.float32


def test_masked_objective_needs_a_bidirectional_network():
    with pytest.raises(InputError, match="is_causal = False"):
        Masked(network())


@pytest.mark.parametrize(("causal", "kind"), [(True, Autoregressive), (False, Masked)])
def test_objective_is_what_the_configuration_says(causal, kind):
    assert type(objective_of(network(causal))) is kind


def test_masks_follow_their_key():
    first, again, other = (draw_masks(key, 4, 100, 0.5) for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert first.dtype == bool
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("part", [0.15, 0.5, 1.0])
def test_each_id_is_masked_with_the_given_probability_by_itself(part):
    masks = draw_masks((0, 1, 0), 400, 256, part)
    assert masks.mean() == pytest.approx(part, abs=0.005)
    counts = masks.sum(1)  # independent: binomial, not always the same number
    assert counts.var() == pytest.approx(256 * part * (1 - part), rel=0.25, abs=1e-9)
