"""`generate` with candidates from elsewhere: a smaller model, the prompt, the model's own first layers."""

from __future__ import annotations

import copy

import pytest
import torch

import by_hand
from by_hand import HEADS, LAYERS, WIDTH, K, T, left_padded, make, prompt

P = 7
PENALTIES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "bad_words_ids": [[15, 2]]}


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


def small_model():
    return make(seed=1, n_layer=1, n_embd=16)


def helpers(model):
    """Arguments that ask for candidates: rarely right, always right, found in the prompt."""
    return {
        "a smaller model": {"assistant_model": small_model()},
        "the model itself": {"assistant_model": copy.deepcopy(model)},
        "the prompt": {"prompt_lookup_num_tokens": 3},
    }


each_helper = pytest.mark.parametrize("helper", ["a smaller model", "the model itself", "the prompt"])


def generate(model, ids=None, **kwargs):
    return model.generate(prompt(1) if ids is None else ids, **{"do_sample": False, **kwargs})


@each_helper
@pytest.mark.parametrize("asked", [{}, PENALTIES, {"max_new_tokens": 9}], ids=["whole", "penalties", "part"])
def test_assistance_changes_no_id_up_to_the_last_pixel(model, helper, asked):
    expected = generate(model, **asked)
    assert generate(model, **helpers(model)[helper], **asked).tolist() == expected.tolist()
    assert expected.shape == (1, P + asked.get("max_new_tokens", T + 1 - P))


@each_helper
def test_assistance_changes_no_logits_and_returns_all_outputs(model, helper):
    everything = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    got = generate(model, max_new_tokens=20, **helpers(model)[helper], **everything)
    logits = by_hand.greedy(model, prompt(1), 20)[1]
    torch.testing.assert_close(torch.stack(got.logits, 1), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(got.scores, 1), logits, atol=1e-5, rtol=1e-5)
    read = [P] + [1] * 19
    assert [[x.shape for x in step] for step in got.hidden_states] == [[(1, t, WIDTH)] * (LAYERS + 1) for t in read]
    for step, layers in enumerate(got.attentions):
        assert [probs.shape for probs in layers] == [(1, HEADS, read[step], P + step)] * LAYERS
    for layer in got.past_key_values.layers:
        assert layer.keys.shape == (1, HEADS, P + 19, WIDTH // HEADS)


def test_right_candidates_save_calls(model):
    calls = []
    assistant = copy.deepcopy(model)
    assistant.generation_config.update(num_assistant_tokens=4, num_assistant_tokens_schedule="constant")
    assistant.generation_config.assistant_confidence_threshold = 0
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(model, max_new_tokens=20, assistant_model=assistant)
    assert len(calls) == 4  # 5 ids at a call: 4 candidates, and the one after them


def test_candidates_from_a_prompt_that_repeats_itself_save_calls(model):
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(model, prompt_lookup_num_tokens=5)
    assert len(calls) < (T + 1 - P) / 1.3


@each_helper
@pytest.mark.parametrize("padding", [0, 4])
def test_assistance_works_after_padding(model, helper, padding):
    ids, mask = left_padded(torch.zeros(1, P + padding, dtype=torch.long), prompt(1))
    ids, mask = ids[1:], mask[1:]
    got = generate(model, ids, attention_mask=mask, **helpers(model)[helper])
    assert got.shape == (1, T + 1 + padding)
    assert got[0, padding:].tolist() == generate(model)[0].tolist()


@each_helper
@pytest.mark.parametrize("start", [None, 0])
def test_assistance_starts_from_the_start_token_too(model, helper, start):
    ids = None if start is None else prompt(1, start)
    got = model.generate(ids, do_sample=False, **helpers(model)[helper])
    assert got.tolist() == model.generate(do_sample=False).tolist()


def test_candidates_lost_to_the_end_of_the_row_are_left_out(model):
    end = int(generate(model)[0, 30])
    asked = {"eos_token_id": end, "pad_token_id": 0}
    expected = generate(model, **asked)
    for name, helper in helpers(model).items():
        assert generate(model, **asked, **helper).tolist() == expected.tolist(), name


@pytest.mark.parametrize("helper", ["a smaller model", "the prompt"])
def test_assisted_samples_are_distributed_as_samples(model, helper):
    """The chance of each colour two ids on, over many draws, against its exact value."""
    ids = torch.cat([prompt(1, 4), prompt(1, 4)[:, 1:]], 1)  # so that there is something to look up
    with torch.no_grad():
        first = model(ids).logits[0, -1].softmax(-1)
        rows = torch.cat([ids.expand(K, -1), torch.arange(K)[:, None]], 1)
        exact = first @ model(rows).logits[:, -1].softmax(-1)
    torch.manual_seed(0)
    arguments = helpers(model)[helper]
    draws = [int(generate(model, ids, max_new_tokens=3, do_sample=True, **arguments)[0, -2]) for _ in range(250)]
    counts = torch.bincount(torch.tensor(draws), minlength=K).double()
    sigma = (250 * exact * (1 - exact)).sqrt()
    assert ((counts - 250 * exact).abs() < 4 * sigma + 1).all()


def test_the_first_layers_may_propose_the_ids(model):
    expected = generate(model)
    assert generate(model, assistant_early_exit=1).tolist() == expected.tolist()
    assert model.config.n_layer == LAYERS


def test_assistance_takes_one_row_at_a_time(model):
    with pytest.raises(ValueError, match="batch_size = 1"):
        generate(model, prompt(2), assistant_model=small_model())
    with pytest.raises(ValueError, match="num_return_sequences"):
        generate(model, assistant_model=small_model(), num_return_sequences=2, do_sample=True)
