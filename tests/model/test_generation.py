"""`generate`: the ids that each strategy gives, from each kind of prompt, up to the last pixel."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import GenerationConfig
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

import by_hand
from by_hand import HEADS, LAYERS, SOS, K, T, left_padded, make, prompt


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


def generate(model, ids, new=None, **kwargs):
    return model.generate(ids, max_new_tokens=new, **{"do_sample": False, **kwargs})


# Strategies.


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_takes_the_likeliest_id_each_time(model, use_cache):
    assert (
        generate(model, prompt(), 20, use_cache=use_cache).tolist() == by_hand.greedy(model, prompt(), 20)[0].tolist()
    )


def test_a_bidirectional_model_is_refused(model):
    model.config.is_causal = False
    with pytest.raises(ValueError, match="BERT"):
        generate(model, prompt(), 2)


def top_k(logits, k):
    return logits.where(logits >= logits.sort(-1, descending=True).values[:, k - 1 : k], -math.inf)


def top_p(logits, p):
    """The likeliest ids, up to the one with which their mass reaches p."""
    probs = logits.softmax(-1)
    mass_of_likelier = ((probs[:, None] > probs[:, :, None]) * probs[:, None]).sum(-1)
    return logits.where(mass_of_likelier < p, -math.inf)


WARPS = [
    ({"top_k": 0}, lambda logits: logits),
    ({"temperature": 0.6}, lambda logits: logits / 0.6),
    ({"top_k": 3}, lambda logits: top_k(logits, 3)),
    ({"top_p": 0.8}, lambda logits: top_p(logits, 0.8)),
    ({"temperature": 2.0, "top_k": 8, "top_p": 0.7}, lambda logits: top_p(top_k(logits / 2, 8), 0.7)),
]


@pytest.mark.parametrize(("asked", "warp"), WARPS, ids=[str(asked) for asked, _ in WARPS])
def test_sampling_draws_from_the_warped_distribution(model, asked, warp):
    torch.manual_seed(3)
    expected = by_hand.sample(model, prompt(8), 20, warp)
    torch.manual_seed(3)
    assert generate(model, prompt(8), 20, do_sample=True, **asked).tolist() == expected.tolist()


def test_sampling_follows_torch_s_seed(model):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(generate(model, prompt(), 20, do_sample=True).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_finds_the_beams_that_a_search_by_hand_finds(model, use_cache):
    ids = generate(model, prompt(), 8, num_beams=4, num_return_sequences=3, use_cache=use_cache)
    expected = [row for start in prompt() for _, row in by_hand.beams(model, start[None], 8, 4)[:3]]
    assert ids.tolist() == expected
    assert ids[0].tolist() != generate(model, prompt(), 8)[0].tolist()  # a search that finds more than greedy does


def test_beam_sampling_starts_at_the_prompts_and_follows_the_seed(model):
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        rows.append(generate(model, prompt(), 20, num_beams=3, num_return_sequences=2, do_sample=True))
    assert rows[0].shape == (4, 27)
    assert (rows[0][:, :7] == prompt().repeat_interleave(2, 0)).all()
    assert rows[0].tolist() == rows[1].tolist() != rows[2].tolist()


def test_num_return_sequences_are_several_draws_for_each_prompt(model):
    torch.manual_seed(0)
    expected = by_hand.sample(model, prompt().repeat_interleave(3, 0), 20, lambda logits: logits)
    torch.manual_seed(0)
    assert generate(model, prompt(), 20, do_sample=True, num_return_sequences=3).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "asked",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_beams": 2, "force_words_ids": [[1, 2]]},
        {"dola_layers": "low"},
    ],
    ids=["contrastive search", "group beam search", "constrained beam search", "DoLa"],
)
def test_strategies_that_transformers_moved_to_the_hub_say_so(model, asked):
    with pytest.raises(ValueError, match=r"trust_remote_code=True.*transformers-community/"):
        generate(model, prompt(), 4, **asked)


def test_a_strategy_of_the_caller_s_own_gets_the_prepared_inputs(model):
    def repeat_the_last_id(model, input_ids, generation_config, **kwargs):
        return torch.cat([input_ids, input_ids[:, -1:].expand(-1, generation_config.max_length - 7)], 1)

    ids = generate(model, prompt(), custom_generate=repeat_the_last_id)
    assert ids.shape == (2, T + 1)
    assert (ids[:, 6:] == prompt()[:, -1:]).all()


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=str)
def test_transformers_own_imagegpt_gives_the_same_ids(model, asked):
    peer = Peer(PeerConfig(**{k: v for k, v in model.config.to_dict().items() if k in PeerConfig().to_dict()})).eval()
    assert not peer.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    rows = []
    for family in (peer, model):
        torch.manual_seed(0)
        rows.append(generate(family, prompt(), 30, **asked).tolist())
    assert rows[0] == rows[1]


# SOS is never an answer.


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_the_start_token_is_never_sampled(tie_word_embeddings):
    model = make(tie_word_embeddings=tie_word_embeddings)
    with torch.no_grad():
        model.transformer.wte.weight[SOS] *= 50  # as an output, it would win or lose by far
    torch.manual_seed(0)
    ids = model.generate(do_sample=True, num_return_sequences=8, temperature=3.0)
    assert (ids[:, 0] == SOS).all()
    assert sorted(set(ids[:, 1:].flatten().tolist())) == list(range(K))
    assert (generate(model, prompt(), num_beams=2)[:, 1:] < K).all()


# Prompts.


def test_pixel_values_is_the_old_name_of_the_prompt_and_warns(model):
    with pytest.warns(FutureWarning, match="input_ids"):
        ids = model.generate(pixel_values=prompt(), max_new_tokens=5, do_sample=False)
    assert ids.tolist() == generate(model, prompt(), 5).tolist()
    with pytest.raises(ValueError, match="old name"):
        model.generate(prompt(), pixel_values=prompt())


@pytest.mark.parametrize(
    "empty", [{"inputs": torch.zeros(3, 0, dtype=torch.long)}, {"attention_mask": torch.ones(3, 1)}]
)
def test_rows_without_an_id_start_with_the_start_token_each(model, empty):
    assert model.generate(**empty, do_sample=False).tolist() == generate(model, prompt(3, 0)).tolist()


def test_arguments_that_are_none_are_no_arguments(model):
    ids = model.generate(None, attention_mask=None, past_key_values=None, max_length=None, do_sample=False)
    assert ids.tolist() == generate(model, prompt(1, 0), T).tolist()


def test_a_prompt_without_a_batch_axis_is_refused(model):
    with pytest.raises(ValueError, match=r"\(batch, length\), not \(7,\)"):
        model.generate(prompt(1)[0])


def test_an_id_that_is_not_there_is_refused(model):
    with pytest.raises(IndexError, match=r"0\.\.16"):
        model.generate(prompt(1) + 1)


def test_a_bos_id_that_is_configured_starts_the_row(model):
    model.generation_config.bos_token_id = 3
    assert model.generate(do_sample=False, max_new_tokens=4)[0, 0] == 3


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_embeddings_stand_for_their_ids(model, asked):
    embeds = model.get_input_embeddings()(prompt()).detach()
    expected = generate(model, prompt(), 20, **asked)
    assert generate(model, prompt(), 20, inputs_embeds=embeds, **asked).tolist() == expected.tolist()
    assert generate(model, None, 20, inputs_embeds=embeds, **asked).tolist() == expected[:, 7:].tolist()
    assert generate(model, None, 20, inputs_embeds=-embeds, **asked).tolist() != expected[:, 7:].tolist()


def test_embeddings_too_are_completed_to_whole_pictures(model):
    embeds = model.get_input_embeddings()(prompt()).detach()
    assert generate(model, None, inputs_embeds=embeds).tolist() == generate(model, prompt())[:, 7:].tolist()


def test_the_last_token_type_is_that_of_all_new_ids(model):
    expected = prompt()
    for _ in range(10):
        kinds = torch.tensor([[1] * 5 + [2] * (expected.shape[1] - 5)] * 2)
        expected = by_hand.greedy(model, expected, 1, token_type_ids=kinds)[0]
    kinds = torch.tensor([[1] * 5 + [2] * 2] * 2)
    assert generate(model, prompt(), 10, token_type_ids=kinds).tolist() == expected.tolist()
    assert generate(model, prompt(), 10).tolist() != expected.tolist()


@pytest.mark.parametrize("asked", [{}, {"num_return_sequences": 2, "num_beams": 2}], ids=["greedy", "beam"])
def test_a_head_mask_acts_at_every_step(model, asked):
    head_mask = torch.tensor([[0.0, 1.0]] * LAYERS)
    got = generate(model, prompt(), 10, head_mask=head_mask, **asked).tolist()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight[: block.attn.head_dim] = 0  # what the first head's output is multiplied with
    assert head_mask.shape[1] == HEADS
    assert got == generate(model, prompt(), 10, **asked).tolist()


# Padding on the left.


@pytest.mark.parametrize(
    "asked", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
@pytest.mark.parametrize("filler", [0, SOS])
def test_rows_of_different_lengths_are_continued_as_each_alone(model, asked, filler):
    rows = [prompt(1, colors, seed=colors) for colors in (9, 2, 5)]
    ids, mask = left_padded(*rows, filler=filler)
    got = generate(model, ids, 30, attention_mask=mask, **asked)
    expected = [generate(model, row, 30, **asked)[0, row.shape[1] :].tolist() for row in rows]
    assert got[:, ids.shape[1] :].tolist() == expected


def test_logits_after_padding_are_those_without_it(model):
    rows = [prompt(1, colors, seed=colors) for colors in (9, 2)]
    ids, mask = left_padded(*rows)
    got = generate(model, ids, 30, attention_mask=mask, output_logits=True, return_dict_in_generate=True).logits
    expected = torch.cat([by_hand.greedy(model, row, 30)[1] for row in rows])
    torch.testing.assert_close(torch.stack(got, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_pad_id_in_the_prompt_stands_for_the_mask(model):
    model.generation_config.pad_token_id = SOS
    rows = [prompt(1, colors)[:, 1:] for colors in (6, 3)]  # no SOS in them
    ids, mask = left_padded(*rows, filler=SOS)
    assert generate(model, ids, 20).tolist() == generate(model, ids, 20, attention_mask=mask).tolist()


def test_padding_takes_no_positions_so_padded_pictures_may_be_whole(model):
    ids, mask = left_padded(prompt(1, 9), prompt(1, 2))
    ids, mask = (torch.nn.functional.pad(x, (3, 0)) for x in (ids, mask))
    got = generate(model, ids, attention_mask=mask)
    assert got.shape == (2, T + 1 + 3)  # as many as the longer row has positions for
    assert got[0, 3:].tolist() == generate(model, prompt(1, 9))[0].tolist()
    with pytest.raises(ValueError, match="at most 68 ids"):
        generate(model, ids, attention_mask=mask, max_length=T + 1 + 4)


# Lengths.


@pytest.mark.parametrize("length", [{"max_length": T + 2}, {"max_new_tokens": T - 5}], ids=str)
@pytest.mark.parametrize("place", ["call", "configuration", "model"])
def test_a_length_that_has_no_positions_is_refused_wherever_it_is_set(model, length, place):
    if place == "model":
        model.generation_config.update(**length)
    configuration = GenerationConfig(**length) if place == "configuration" else None
    with pytest.raises(ValueError, match=r"64 positions.*at most 65 ids.*ask for 66"):
        model.generate(prompt(), configuration, **(length if place == "call" else {}))


def test_embeddings_count_as_prompt(model):
    embeds = model.get_input_embeddings()(prompt()).detach()
    with pytest.raises(ValueError, match="ask for 66"):
        model.generate(inputs_embeds=embeds, max_new_tokens=T - 5)


def test_a_configuration_without_a_length_makes_whole_pictures_and_stays_as_it_is(model):
    configuration = GenerationConfig(do_sample=False)
    assert model.generate(prompt(), configuration).tolist() == generate(model, prompt()).tolist()
    assert configuration.max_length is None


def test_a_model_s_configuration_of_generation_is_saved_and_rules(model, tmp_path):
    beams, greedy = generate(model, prompt(), 9, num_beams=3).tolist(), generate(model, prompt(), 4).tolist()
    model.generation_config.update(max_new_tokens=9, num_beams=3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.generate(prompt()).tolist() == beams
    assert loaded.generate(prompt(), max_new_tokens=4, num_beams=1).tolist() == greedy


def test_a_prompt_that_is_a_whole_picture_has_nothing_to_be_added(model):
    with pytest.raises(ValueError, match="max_length"):
        model.generate(prompt(1, T))


def test_an_id_may_end_the_row(model):
    ids = generate(model, prompt(), 30)
    end = int(ids[0, 12])
    stopped = generate(model, prompt(), 30, eos_token_id=end, pad_token_id=3)
    for row, full in zip(stopped, ids, strict=True):
        last = full[7:].tolist().index(end) + 8 if end in full[7:] else len(full)
        assert row.tolist() == (full[:last].tolist() + [3] * len(full))[: stopped.shape[1]]
    assert stopped[0].tolist() != ids[0].tolist()


# Attention functions and precisions.


@pytest.mark.parametrize("asked", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_every_attention_function_gives_the_ids_of_sdpa(model, implementation, asked):
    ids, mask = left_padded(prompt(1, 6), prompt(1, 2))
    assert model.config._attn_implementation == "sdpa"
    expected = [generate(model, prompt(), 20).tolist(), generate(model, ids, 20, attention_mask=mask).tolist()]
    model.set_attn_implementation(implementation)
    # Not compiled: of masks with padding, torch 2.13 makes C++ that does not compile on the CPU.
    with torch.compiler.set_stance("force_eager"):
        got = [generate(model, prompt(), 20, **asked), generate(model, ids, 20, attention_mask=mask, **asked)]
    assert [rows.tolist() for rows in got] == expected


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{}, {"cache_implementation": "static"}], ids=str)
def test_compiled_flex_attention_gives_the_ids_of_sdpa(model, asked):
    expected = generate(model, prompt(), 20).tolist()
    model.set_attn_implementation("flex_attention")
    assert generate(model, prompt(), 20, **asked).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_half_precision_gives_logits_near_those_of_float32(model, dtype, asked):
    expected = by_hand.greedy(model, prompt(), 10)[1]
    got = generate(model.to(dtype), prompt(), 10, output_logits=True, return_dict_in_generate=True, **asked)
    assert got.past_key_values.layers[0].keys.dtype == dtype
    ids = by_hand.greedy(model.float(), prompt(), 10)[0]
    same = (got.sequences == ids).cumprod(-1)[:, 6:-1, None].bool()  # an id later on may differ: logits are close
    assert same.sum() > 10
    error = (torch.stack(got.logits, 1) - expected).abs() * same
    assert error.max() < 0.02 * expected.std() * (8 if dtype == torch.bfloat16 else 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_logits_under_autocast_are_those_of_one_call_under_it(model, kind):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = generate(model, prompt(), 20, cache_implementation=kind, output_logits=True, return_dict_in_generate=True)
        expected = model(got.sequences[:, :-1]).logits[:, 6:].float()
    error = (torch.stack(got.logits, 1) - expected).abs().max()
    assert error < 0.15 * expected.std()


def test_a_model_in_training_generates_with_its_cache_and_its_dropout(model):
    ids, reads = [], []
    model.transformer.register_forward_pre_hook(lambda _, args: reads.append(args[0].shape[1]))
    for _ in range(2):
        torch.manual_seed(0)
        ids.append(generate(model.train(), prompt(), 20).tolist())
    assert ids[0] == ids[1] != generate(model.eval(), prompt(), 20).tolist()
    assert model.config.attn_pdrop > 0
    assert reads[:20] == [7] + [1] * 19
