"""`generate`: everything that rewrites scores, with prompts whose start token has no score."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SynthIDTextWatermarkingConfig,
    WatermarkDetector,
    WatermarkingConfig,
)

from by_hand import SOS, K, make, prompt

P = 7


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


def generate(model, ids=None, new=20, **kwargs):
    return model.generate(prompt() if ids is None else ids, max_new_tokens=new, **{"do_sample": False, **kwargs})


def steps_of(model, ids=None, new=12, **kwargs):
    """For each row and new id: the ids before it, the network's logits, the scores made of them."""
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    got = generate(model, ids, new, **asked, **kwargs)
    first = got.sequences.shape[1] - len(got.scores)
    for step, (logits_BK, scores_BK) in enumerate(zip(got.logits, got.scores, strict=True)):
        for row, logits, scores in zip(got.sequences, logits_BK, scores_BK, strict=True):
            assert logits.shape == scores.shape == (K,)
            yield row[: first + step].tolist(), logits, scores


def pairs(ids):
    return set(itertools.pairwise(ids))


# Penalties and bans; each tells what the scores of one step should be.


def penalised(factor):
    def expected(before, logits):
        seen = torch.tensor([color in before for color in range(K)])
        return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)

    return expected


def without_repeated(size):
    def expected(before, logits):
        grams = {tuple(before[i : i + size]) for i in range(len(before) - size + 1)}
        last = before[len(before) - size + 1 :]
        return logits.where(~torch.tensor([(*last, color) in grams for color in range(K)]), -math.inf)

    return expected


def without(*colors):
    return lambda before, logits: logits.index_fill(0, torch.tensor(colors), -math.inf)


BANS = {
    "repetition_penalty": ({"repetition_penalty": 1.7}, penalised(1.7)),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, without_repeated(2)),
    "bad_words_ids": ({"bad_words_ids": [[2], [15]]}, without(2, 15)),
    "suppress_tokens": ({"suppress_tokens": [2, 15]}, without(2, 15)),
    "sequence_bias": ({"sequence_bias": [[[7], 2.5]]}, lambda _, logits: logits + 2.5 * torch.eye(K)[7]),
    "prefix_allowed_tokens_fn": (
        {"prefix_allowed_tokens_fn": lambda row, ids: [color for color in range(K) if color not in (2, 15)]},
        without(2, 15),
    ),
}


@pytest.mark.parametrize("beams", [{}, {"num_return_sequences": 2, "do_sample": True}], ids=["greedy", "sampling"])
@pytest.mark.parametrize(("asked", "expected"), BANS.values(), ids=BANS.keys())
def test_scores_are_rewritten_as_the_argument_says(model, asked, expected, beams):
    for before, logits, scores in steps_of(model, **asked, **beams):
        torch.testing.assert_close(scores, expected(before, logits))


def test_longer_words_are_banned_where_they_would_end(model):
    word = generate(model)[0, P + 2 : P + 5].tolist()
    ids = generate(model, bad_words_ids=[word])[0].tolist()
    assert ids[: P + 4] == generate(model)[0, : P + 4].tolist()
    assert word not in [ids[i : i + 3] for i in range(len(ids))]


def test_an_encoder_s_penalty_rewards_the_ids_of_the_prompt_alone(model):
    for before, logits, scores in steps_of(model, encoder_repetition_penalty=1.7):
        torch.testing.assert_close(scores, penalised(1 / 1.7)(before[:P], logits))


def test_ngrams_of_the_prompt_alone_are_not_repeated(model):
    ids = torch.cat([prompt()[:, :1], generate(model, new=15)[:, P:]], 1)
    repeated = [pairs(row[:16]) & pairs(row[15:]) for row in generate(model, ids).tolist()]
    assert any(repeated)
    for row in generate(model, ids, encoder_no_repeat_ngram_size=2).tolist():
        assert not pairs(row[:16]) & pairs(row[15:])


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.7},
        {"encoder_repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 2},
        {"bad_words_ids": [[SOS]]},
        {"bad_words_ids": [[SOS, SOS], [SOS, 3]]},
        {"suppress_tokens": [SOS]},
        {"sequence_bias": [[[SOS], 100.0], [[SOS, 4], 1.0]]},
        {"prefix_allowed_tokens_fn": lambda row, ids: list(range(SOS + 1))},
        {"watermarking_config": WatermarkingConfig(greenlist_ratio=0.9)},
    ],
    ids=lambda asked: next(iter(asked)),
)
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beam", "sample"])
def test_start_tokens_may_be_anywhere_and_named_anywhere(model, asked, strategy):
    ids = prompt()
    ids[:, :3] = ids[:, -1] = SOS  # as padding, and as the latest id
    got = generate(model, ids, 8, **asked, **strategy)
    assert got.shape == (2, P + 8)
    assert (got[:, P:] < K).all()
    assert got[:, :P].tolist() == ids.tolist()


def test_a_start_token_that_nobody_asked_about_changes_no_score(model):
    for asked in ({"bad_words_ids": [[SOS]]}, {"suppress_tokens": [SOS]}, {"sequence_bias": [[[SOS], 100.0]]}):
        assert all((logits == scores).all() for _, logits, scores in steps_of(model, **asked))


def test_the_first_step_from_the_start_token_alone_is_not_penalised(model):
    for asked in ({"repetition_penalty": 5.0}, {"encoder_repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}):
        _, logits, scores = next(iter(steps_of(model, prompt(1, 0), **asked)))
        assert logits.tolist() == scores.tolist()


def test_a_processor_passed_as_an_object_reads_start_tokens_too(model):
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7)])
    for before, logits, scores in steps_of(model, logits_processor=processors):
        torch.testing.assert_close(scores, penalised(1.7)(before, logits))


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="an older transformers penalises it")
def test_padding_in_front_is_not_penalised(model):
    ids, mask = torch.nn.functional.pad(prompt(), (4, 0), value=9), torch.ones(2, P + 4, dtype=torch.long)
    mask[:, :4] = 0
    assert 9 not in prompt()[1]
    padded = generate(model, ids, attention_mask=mask, repetition_penalty=1.7)
    assert padded[:, 4:].tolist() == generate(model, repetition_penalty=1.7).tolist()


def test_penalties_from_embeddings_count_the_new_ids_alone(model):
    embeds = model.get_input_embeddings()(prompt()).detach()
    asked = {"inputs_embeds": embeds, "repetition_penalty": 1.7}
    with pytest.warns(UserWarning, match="only to newly generated tokens"):
        steps = list(steps_of(model, prompt()[:, :0], **asked))
    assert [len(before) for before, _, _ in steps[::2]] == list(range(12))
    for before, logits, scores in steps:
        torch.testing.assert_close(scores, penalised(1.7)(before, logits))


# Ends.


def test_the_end_comes_no_earlier_than_asked(model):
    end = int(generate(model)[0, P + 3])
    for asked in ({"min_new_tokens": 9}, {"min_length": P + 9}):
        for before, _, scores in steps_of(model, prompt(1), eos_token_id=end, pad_token_id=0, **asked):
            assert scores.isneginf().tolist() == [color == end and len(before) < P + 9 for color in range(K)]


def test_the_first_and_the_last_id_may_be_forced(model):
    model.generation_config.update(pad_token_id=0)
    assert generate(model, prompt(1, 0), forced_bos_token_id=5)[0, 1] == 5
    assert generate(model, forced_eos_token_id=6, eos_token_id=6)[0, -1] == 6


def test_an_end_grows_likelier_where_that_is_asked(model):
    steps = list(steps_of(model, prompt(1), eos_token_id=4, pad_token_id=0, exponential_decay_length_penalty=(3, 2.0)))
    rises = [float(scores[4] - logits[4]) for _, logits, scores in steps]
    assert rises[:4] == [0.0] * 4
    assert all(rise > 0 for rise in rises[4:])


# Warpers: which ids are left, from the definition.


def entropy(probs):
    return float(-(probs * probs.log()).sum())


def typical(probs, mass):
    """The ids whose surprise is nearest to the entropy, until their mass is reached."""
    order = ((-probs.log()) - entropy(probs)).abs().argsort().tolist()
    count = next(n for n in range(1, K + 1) if float(probs[order[:n]].sum()) >= mass)
    return set(order[:count])


def above(probs, least):
    return {color for color in range(K) if probs[color] >= least} | {int(probs.argmax())}


WARPERS = {
    "min_p": (0.3, lambda probs, p: above(probs, p * float(probs.max()))),
    "typical_p": (0.6, typical),
    "epsilon_cutoff": (0.05, above),
    "eta_cutoff": (0.2, lambda probs, eta: above(probs, min(eta, math.sqrt(eta) * math.exp(-entropy(probs))))),
    "top_k": (3, lambda probs, k: set(probs.topk(k).indices.tolist())),
}


@pytest.mark.parametrize("name", WARPERS)
def test_a_warper_leaves_the_ids_of_its_definition(model, name):
    value, left = WARPERS[name]
    sizes = set()
    for _, logits, scores in steps_of(model, **{name: value}, do_sample=True):
        ids = set(scores.isfinite().nonzero()[:, 0].tolist())
        assert ids == left(logits.double().softmax(-1), value)
        sizes.add(len(ids))
    assert max(sizes) < K


def test_top_h_leaves_fewer_ids_the_smaller_it_is(model):
    left = [
        sum(int(scores.isfinite().sum()) for _, _, scores in steps_of(model, new=1, do_sample=True, top_h=top_h))
        for top_h in (0.2, 0.6, 0.999)
    ]
    assert 2 <= left[0] < left[1] < left[2] <= 2 * K


def test_scores_may_be_normalised_and_cleaned(model):
    for _, logits, scores in steps_of(model, renormalize_logits=True, remove_invalid_values=True):
        torch.testing.assert_close(scores, logits.log_softmax(-1))


# Guidance.


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("negative", [None, prompt(2, 3, seed=5)], ids=["its own last id", "another prompt"])
def test_guidance_weighs_the_prompt_against_another(model, negative, use_cache):
    got = generate(
        model,
        new=6,
        guidance_scale=2.5,
        negative_prompt_ids=negative,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_scores=True,
    )
    other = prompt()[:, -1:] if negative is None else negative
    for step, scores in enumerate(got.scores):
        with torch.no_grad():
            with_prompt = model(got.sequences[:, : P + step]).logits[:, -1].log_softmax(-1)
            without_it = model(torch.cat([other, got.sequences[:, P : P + step]], 1)).logits[:, -1].log_softmax(-1)
        expected = without_it + 2.5 * (with_prompt - without_it)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


# Watermarks.


def test_a_watermark_is_found_by_its_detector_and_by_no_other():
    model = make(vocab_size=65, n_positions=128)
    mark = WatermarkingConfig(greenlist_ratio=0.5, bias=4.0)
    torch.manual_seed(0)
    pictures = [
        model.generate(do_sample=True, num_return_sequences=4, watermarking_config=config) for config in (mark, None)
    ]
    config = copy.deepcopy(model.config)
    config.bos_token_id = model.config.vocab_size - 1  # the detector leaves it out
    detector = WatermarkDetector(config, device="cpu", watermarking_config=mark)
    scores = [detector(picture, return_dict=True).z_score for picture in pictures]
    assert scores[0].min() > 5
    assert abs(scores[1]).max() < 4


def test_a_watermark_adds_its_bias_to_colours_alone(model):
    mark = WatermarkingConfig(greenlist_ratio=0.5, bias=4.0)
    greens = []
    for _, logits, scores in steps_of(model, new=40, watermarking_config=mark):
        bias = (scores - logits).round(decimals=4)
        assert set(bias.tolist()) == {0.0, 4.0}
        greens.append(int((bias == 4).sum()))
    assert {7, 8} == set(greens)  # half of 17 ids, with the start token among them or not


def test_other_kinds_of_watermarks_paint_whole_pictures():
    model = make(vocab_size=65, n_positions=20)  # selfhash looks at the 40 likeliest ids
    torch.manual_seed(0)
    plain = model.generate(do_sample=True)
    for mark in (
        WatermarkingConfig(seeding_scheme="selfhash", bias=9.0),
        SynthIDTextWatermarkingConfig(ngram_len=5, keys=[654, 400, 836, 123, 340]),
    ):
        torch.manual_seed(0)
        ids = model.generate(do_sample=True, watermarking_config=mark)
        assert ids.shape == (1, 21)
        assert ids.tolist() != plain.tolist()
