"""Table of defects: generate.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defects import OURS, K, T, defect, random_ids, with_start
from reference import network

# 21 ids, transformers' default, must differ from a picture's 25 with the start token.
assert T == 24


def greedy(model, ids, new):
    """Each next id from logits in numpy and float64."""
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    rows = ids.numpy()
    for _ in range(new):
        last = [network.logits(state, model.config.to_dict(), row)[-1] for row in rows]
        rows = np.concatenate([rows, np.argmax(last, 1)[:, None]], 1)
    return rows.tolist()


def calls_of(model):
    """How often the trunk ran so far, in a list that grows."""
    calls = []
    model.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@defect("generate", "no input ids is an error: there is no bos", peer="ValueError: .*bos_token_id")
def test_without_ids_it_starts_with_the_start_token(family):
    model = family.make()
    assert model.generate(do_sample=False).tolist() == greedy(model, torch.tensor([[K]]), T)


@defect("generate", "no input ids is an error: there is no bos", peer="ValueError: .*bos_token_id")
def test_several_pictures_from_nothing(family):
    torch.manual_seed(0)
    samples = family.make().generate(do_sample=True, num_return_sequences=5)
    assert samples.shape == (5, T + 1)
    assert (samples[:, 0] == K).all()
    assert (samples[:, 1:] < K).all()
    assert len({tuple(row) for row in samples.tolist()}) == 5


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
@pytest.mark.parametrize("prompt", [0, 10])
@defect("generate", "the default length is 21")
def test_the_default_length_is_a_picture(family, prompt):
    model, start = family.make(), with_start(random_ids(2, prompt))
    assert model.generate(start, do_sample=False).tolist() == greedy(model, start, T - prompt)


@pytest.mark.parametrize("length", [{"max_length": T + 2}, {"max_new_tokens": T - 2}], ids=str)
@defect("generate", "a length of n + 2 fails in the middle", peer="IndexError: index out of range in self")
def test_a_length_beyond_the_positions_is_refused_before_the_first_step(family, length):
    model, start = family.make(), with_start(random_ids(2, 3))
    calls = calls_of(model)
    with pytest.raises(ValueError, match="24 positions"):
        model.generate(start, do_sample=False, **length)
    assert not calls


@defect("generate", "a length of n + 2 fails in the middle", peer="IndexError: index out of range in self")
def test_a_length_in_a_configuration_is_refused_too(family):
    from transformers import GenerationConfig

    model = family.make()
    calls = calls_of(model)
    with pytest.raises(ValueError, match="24 positions"):
        model.generate(with_start(random_ids(2, 3)), GenerationConfig(max_length=T + 2, do_sample=False))
    assert not calls


# Not a defect of transformers: what must still work beside the above.


@pytest.mark.parametrize("length", [{"max_length": T + 1}, {"max_new_tokens": T - 3}], ids=str)
def test_the_longest_length_is_taken(length):
    model, start = OURS.make(), with_start(random_ids(2, 3))
    assert model.generate(start, do_sample=False, **length).tolist() == greedy(model, start, T - 3)
