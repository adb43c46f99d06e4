"""`generate`: what it returns and tells beside the ids, and what stops it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

import by_hand
from by_hand import HEADS, LAYERS, WIDTH, K, T, prompt

P, NEW = 7, 5  # ids of the prompt, and new ones
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 2},
    "beam search": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
    "beam sampling": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
}
each_strategy = pytest.mark.parametrize("asked", STRATEGIES.values(), ids=STRATEGIES.keys())


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


def generate(model, ids=None, **kwargs):
    return model.generate(prompt() if ids is None else ids, **{"max_new_tokens": NEW, "do_sample": False, **kwargs})


def shapes(steps):
    return [[tuple(tensor.shape) for tensor in step] for step in steps]


# Shapes.


@pytest.mark.parametrize("use_cache", [True, False])
@each_strategy
def test_every_output_has_its_shape(model, asked, use_cache):
    got = generate(model, use_cache=use_cache, **asked, **EVERYTHING)
    assert type(got) is (GenerateBeamDecoderOnlyOutput if "num_beams" in asked else GenerateDecoderOnlyOutput)
    rows = 2 * asked.get("num_beams", asked.get("num_return_sequences", 1))
    assert got.sequences.shape == (2 * asked.get("num_return_sequences", 1), P + NEW)
    # The start token has no column.
    assert shapes([got.scores]) == shapes([got.logits]) == [[(rows, K)] * NEW]
    seen = range(P, P + NEW)
    read = [P] + [1] * (NEW - 1) if use_cache else seen
    assert shapes(got.attentions) == [[(rows, HEADS, t, s)] * LAYERS for t, s in zip(read, seen, strict=True)]
    assert shapes(got.hidden_states) == [[(rows, t, WIDTH)] * (LAYERS + 1) for t in read]
    if use_cache:
        keys_and_values = [(layer.keys, layer.values) for layer in got.past_key_values.layers]
        assert shapes(keys_and_values) == [[(rows, HEADS, P + NEW - 1, WIDTH // HEADS)] * 2] * LAYERS
    else:
        assert got.past_key_values is None


@each_strategy
def test_nothing_that_is_not_asked_for_is_returned(model, asked):
    got = generate(model, **asked, return_dict_in_generate=True)
    assert got.scores is got.logits is got.attentions is got.hidden_states is None
    assert isinstance(generate(model, **asked), torch.Tensor)


# Values.


@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_and_scores_of_greedy_are_those_of_the_sequences_read_anew(model, use_cache):
    got = generate(model, use_cache=use_cache, max_new_tokens=30, **EVERYTHING)
    ids, logits = by_hand.greedy(model, prompt(), 30)
    assert got.sequences.tolist() == ids.tolist()
    torch.testing.assert_close(torch.stack(got.logits, 1), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(got.scores, 1), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_attentions_hidden_states_and_past_are_those_of_one_call_on_all_ids(model, use_cache):
    got = generate(model, use_cache=use_cache, **EVERYTHING)
    with torch.no_grad():
        whole = model(got.sequences[:, :-1], output_attentions=True, output_hidden_states=True, use_cache=True)
    for step, end in enumerate(range(P, P + NEW)):
        for layer in range(LAYERS):
            expected = whole.attentions[layer][:, :, end - 1, :end]
            torch.testing.assert_close(got.attentions[step][layer][:, :, -1], expected, atol=1e-5, rtol=1e-4)
        for layer in range(LAYERS + 1):
            expected = whole.hidden_states[layer][:, end - 1]
            torch.testing.assert_close(got.hidden_states[step][layer][:, -1], expected, atol=1e-5, rtol=1e-4)
    if use_cache:
        for mine, theirs in zip(got.past_key_values.layers, whole.past_key_values.layers, strict=True):
            torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mine.values, theirs.values, atol=1e-5, rtol=1e-4)


@each_strategy
def test_asking_for_attentions_changes_no_id_though_it_changes_the_attention_function(model, asked):
    assert model.config._attn_implementation == "sdpa"
    rows = []
    for told in ({}, EVERYTHING):
        torch.manual_seed(0)
        got = generate(model, max_new_tokens=20, **asked, **told)
        rows.append(got.sequences if told else got)
    assert rows[0].tolist() == rows[1].tolist()


def test_attentions_leave_padding_out(model):
    ids, mask = by_hand.left_padded(prompt(1, 6), prompt(1, 2))
    for step in generate(model, ids, attention_mask=mask, **EVERYTHING).attentions:
        for probs in step:
            assert (probs[1, :, :, :4] == 0).all()
            torch.testing.assert_close(probs[:, :, -1].sum(-1), torch.ones(2, HEADS))


def test_logits_to_keep_changes_no_id(model):
    lengths = []
    model.lm_head.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    ids = [generate(model, **kept).tolist() for kept in ({}, {"logits_to_keep": 0})]
    assert ids[0] == ids[1]
    # Of the prompt, only the last state goes through the head unless asked otherwise.
    assert lengths == [1] * NEW + [P] + [1] * (NEW - 1)


# Scores of the chosen ids.


def log_probs_of(model, sequences):
    with torch.no_grad():
        log_p = model(sequences[:, :-1]).logits.log_softmax(-1)
    return log_p.gather(-1, sequences[:, 1:, None])[:, P - 1 :, 0]


@pytest.mark.parametrize("asked", [{}, {"do_sample": True, "num_return_sequences": 2}], ids=["greedy", "sampling"])
def test_transition_scores_are_the_log_probabilities_of_the_new_ids(model, asked):
    got = generate(model, **asked, **EVERYTHING)
    scores = model.compute_transition_scores(got.sequences, got.scores, normalize_logits=True)
    torch.testing.assert_close(scores, log_probs_of(model, got.sequences), atol=1e-5, rtol=1e-5)
    raw = model.compute_transition_scores(got.sequences, got.scores)
    expected = torch.stack(got.scores, 1).gather(-1, got.sequences[:, P:, None])[..., 0]
    torch.testing.assert_close(raw, expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_transition_scores_of_beams_add_up_to_the_beams_scores(model, normalize):
    got = generate(model, num_beams=4, num_return_sequences=3, length_penalty=2.0, **EVERYTHING)
    scores = model.compute_transition_scores(got.sequences, got.scores, got.beam_indices, normalize)
    torch.testing.assert_close(scores.sum(1) / NEW**2, got.sequences_scores, atol=1e-5, rtol=1e-5)
    if normalize:
        torch.testing.assert_close(scores, log_probs_of(model, got.sequences), atol=1e-5, rtol=1e-5)


def test_scores_of_beams_are_those_of_a_search_by_hand(model):
    got = generate(model, num_beams=4, num_return_sequences=4, **EVERYTHING)
    expected = [total / NEW for row in prompt() for total, _ in by_hand.beams(model, row[None], NEW, 4)]
    torch.testing.assert_close(got.sequences_scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)


# Streamers.


class Kept(BaseStreamer):
    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_each_id(model):
    streamer = Kept()
    ids = generate(model, prompt(1), streamer=streamer)
    assert streamer.parts == [ids[:, :P].tolist(), *([color] for color in ids[0, P:].tolist())]
    assert streamer.ended


def test_a_streamer_may_be_read_while_the_picture_is_painted(model):
    lengths = []
    model.register_forward_pre_hook(lambda *_: lengths.append(len(streamer.parts)))
    streamer = Kept()
    model.generate(streamer=streamer, do_sample=True)
    # At each step, all ids before it are there.
    assert lengths == list(range(1, T + 1))


def test_beams_can_not_be_streamed(model):
    with pytest.raises(ValueError, match="streamer"):
        generate(model, num_beams=2, streamer=Kept())


# Stopping.


class Seen(StoppingCriteria):
    """Stop a row at an id."""

    def __init__(self, color):
        self.color, self.columns = color, []

    def __call__(self, input_ids, scores, **kwargs):
        self.columns.append(scores[-1].shape[-1])
        return input_ids[:, -1] == self.color


def test_a_stopping_criterion_ends_the_row_and_sees_k_scores(model):
    ids = generate(model, prompt(1), max_new_tokens=30)[0].tolist()
    seen = Seen(ids[P + 9])
    got = generate(model, prompt(1), max_new_tokens=30, stopping_criteria=StoppingCriteriaList([seen]), **EVERYTHING)
    length = ids.index(seen.color, P) + 1
    assert got.sequences.tolist() == [ids[:length]]
    assert length < P + 30
    assert seen.columns == [K] * (length - P)


def test_time_may_run_out(model):
    assert generate(model, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)])).shape == (2, P + 1)
    assert generate(model, max_time=0.0).shape == (2, P + 1)


# Processors of the caller's own.


class Only(LogitsProcessor):
    """Let one id through at each step."""

    def __init__(self, colors):
        self.colors, self.seen = list(colors), []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.tolist(), tuple(scores.shape)))
        color = self.colors[len(self.seen) - 1]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([color]), 0.0)


def test_a_processor_of_the_caller_s_own_sees_all_ids_and_k_scores(model):
    only = Only([3, 0, 15])
    ids = generate(model, logits_processor=LogitsProcessorList([only]), max_new_tokens=3)
    assert ids[:, P:].tolist() == [[3, 0, 15]] * 2
    assert only.seen == [(ids[:, :end].tolist(), (2, K)) for end in range(P, P + 3)]


def test_a_processor_of_the_caller_s_own_comes_before_temperature_and_after_penalties(model):
    class Ones(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.ones_like(scores)

    got = generate(
        model,
        logits_processor=LogitsProcessorList([Ones()]),
        repetition_penalty=3.0,
        do_sample=True,
        temperature=0.25,
        **EVERYTHING,
    )
    assert (torch.stack(got.scores) == 4).all()
