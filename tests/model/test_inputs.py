"""Inputs and labels of shapes that do not fit: a sentence, and never an answer to another question."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from imagegpt.config import ImageGPTConfig
from imagegpt.model.heads import ImageGPTForCausalImageModeling as Causal
from imagegpt.model.heads import ImageGPTForImageClassification as Classifier
from imagegpt.model.modeling import ImageGPTModel

K, T = 16, 16
SHAPE = {"vocab_size": K + 1, "n_positions": T, "n_embd": 32, "n_layer": 2, "n_head": 2}


def make(kind=Causal, **options):
    torch.manual_seed(0)
    return kind(ImageGPTConfig(**SHAPE, initializer_range=0.3, **options)).eval()


def some_ids(rows=3, length=T):
    return torch.randint(K, (rows, length), generator=torch.Generator().manual_seed(1))


def behind_start(ids):
    return torch.cat([torch.full_like(ids[:, :1], K), ids[:, :-1]], 1)


# --- labels that are the next ids


def given_upper_half(ids, inputs, labels):
    labels[:, :8] = -100


def given_first(ids, inputs, labels):
    labels[:, 0] = -100


def one_noised(ids, inputs, labels):
    inputs[:, 5] = (inputs[:, 5] + 1) % K


@pytest.mark.parametrize("change", [given_upper_half, given_first, one_noised])
def test_next_ids_are_not_shifted_again(change):
    ids = some_ids()
    inputs, labels, model = behind_start(ids), ids.clone(), make()
    change(ids, inputs, labels)
    assert_close(model(inputs, labels=labels).loss, model(inputs, shift_labels=labels).loss)


def test_next_ids_of_rows_that_begin_with_padding():
    ids, model = some_ids(2, 12), make()
    inputs, labels, mask = behind_start(ids), ids.clone(), torch.ones_like(ids)
    inputs = torch.cat([torch.zeros_like(ids[:, :4]), inputs], 1)
    labels = torch.cat([torch.full_like(ids[:, :4], -100), labels], 1)
    mask = torch.cat([torch.zeros_like(ids[:, :4]), mask], 1)
    assert_close(model(inputs, attention_mask=mask, labels=labels).loss, model.image_loss(ids))


def shifted(model, inputs, labels):
    """As Hugging Face documents it."""
    logits = model(inputs).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())


@pytest.mark.parametrize("color", [None, 3])
@pytest.mark.parametrize("start", [False, True])
def test_labels_that_repeat_the_inputs_are_shifted(start, color):
    """Of a picture of one colour, where its next ids are its ids, too."""
    ids = some_ids() if color is None else torch.full((3, T), color)
    inputs, model = behind_start(ids) if start else ids, make()
    labels = inputs.masked_fill(inputs == K, -100)
    labels[:, 9] = -100
    assert_close(model(inputs, labels=labels).loss, shifted(model, inputs, labels))


@pytest.mark.parametrize("hidden", [0.3, 0.6])
def test_labels_of_noised_inputs_are_shifted(hidden):
    labels = some_ids(8)
    noise = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) < hidden
    inputs, model = labels.where(~noise, some_ids(8).flip(0)), make()
    assert_close(model(inputs, labels=labels).loss, shifted(model, inputs, labels))


# --- shapes


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
@pytest.mark.parametrize("shape", [(T, 3), (2, T), (3, T - 1), (3 * T,)])
def test_labels_of_another_shape(name, shape):
    labels = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"^{name} must have the inputs' shape, \(3, 16\), not \("):
        make()(some_ids(), **{name: labels})


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.zeros(5, dtype=torch.long)),
        ("single_label_classification", torch.zeros(3, 5, dtype=torch.long)),
        ("multi_label_classification", torch.ones(5, 3)),
        ("multi_label_classification", torch.ones(15)),
        ("regression", torch.ones(5, 3)),
    ],
)
def test_classes_of_another_shape(problem, labels):
    model = make(Classifier, num_labels=5, problem_type=problem)
    with pytest.raises(ValueError, match=r"labels (must have|of) (the )?shape \(3,.*, not \("):
        model(some_ids(), labels=labels)


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
@pytest.mark.parametrize("shape", [(3, T), (2, T), (T - 1,), (1, 1, T)])
def test_more_numbers_than_inputs(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} must have the shape \(1, 16\), not \("):
        make()(some_ids(1), **{name: torch.zeros(shape, dtype=torch.long)})


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
@torch.no_grad()
def test_numbers_for_all_rows_are_those_of_each(name):
    numbers, model = some_ids(1), make()
    each = model(some_ids(), **{name: numbers.expand(3, -1)}).logits
    assert_close(model(some_ids(), **{name: numbers}).logits, each)
    assert_close(model(some_ids(), **{name: numbers[0]}).logits, each)


@torch.no_grad()
def test_a_mask_that_is_too_long():
    model, ids = make(), some_ids()
    with pytest.raises(ValueError, match=r"attention_mask must have the shape \(3, 8\), not \(3, 9\)"):
        model(ids[:, :8], attention_mask=torch.ones(3, 9))
    past = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask must have the shape \(3, 6\), not \(3, 7\)"):
        model(ids[:, 4:6], past_key_values=past, attention_mask=torch.ones(3, 7))


@torch.no_grad()
def test_a_picture_with_its_start_and_what_else_goes_with_ids():
    model, ids = make(), some_ids()
    whole, loss = torch.cat([torch.full((3, 1), K), ids], 1), make().image_loss(ids)
    mask = torch.ones(T + 1, T + 1).tril().bool()[None, None].expand(3, 1, -1, -1)
    assert_close(model(whole, labels=whole, attention_mask=mask).loss, loss)
    assert_close(model(whole, labels=whole, attention_mask=torch.ones(3, T + 1)).loss, loss)
    assert_close(model(whole, labels=whole, position_ids=torch.arange(T + 1)).loss, loss)


@torch.no_grad()
def test_logits_in_another_order():
    model, ids = make(), some_ids()
    backwards = torch.arange(T - 1, -1, -1)
    assert_close(model(ids, labels=ids, logits_to_keep=backwards).loss, model(ids, labels=ids).loss)


def test_a_classifier_that_reads_sos_first_reads_no_embeddings():
    model = make(Classifier, num_labels=5, classifier_start=True)
    with pytest.raises(ValueError, match="input_ids alone"):
        model(inputs_embeds=model.transformer.wte(some_ids()))


# --- a model that can't be resized, no attention, no storage


def test_a_model_that_can_t_be_resized_is_as_it_was(monkeypatch):
    model, ids = make(), some_ids()
    expected = model(ids).logits
    with pytest.raises(ValueError, match=r"whole number, not 2\.5"):
        model.resize_token_embeddings(2.5)
    monkeypatch.setattr(torch, "cat", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        model.resize_token_embeddings(20)
    monkeypatch.undo()
    assert model.transformer.wte.weight.shape == (K + 1, 32) == (model.transformer.wte.num_embeddings, 32)
    assert_close(model(ids).logits, expected)


@pytest.mark.parametrize("part", [1.0, 0.9999999])
def test_all_attention_dropped(part):
    model, ids = make(attn_pdrop=part, embd_pdrop=0.0, resid_pdrop=0.0).train(), some_ids()
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert not model.transformer.h[0].attn.c_attn.weight.grad.any()  # nothing of it reaches the output


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("maps", [False, True])
def test_tensors_without_storage(training, maps):
    model = ImageGPTModel(ImageGPTConfig(**SHAPE)).to("meta").train(training)
    output = model(torch.zeros(1, 4, dtype=torch.long, device="meta"), output_attentions=maps)
    assert output.last_hidden_state.shape == (1, 4, 32)
    assert not maps or output.attentions[0].shape == (1, 2, 4, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.bool])
def test_ids_of_a_dtype_that_is_none(dtype):
    with pytest.raises(TypeError, match=r"int64 or int32, not torch\."):
        make()(some_ids().to(dtype))


@pytest.mark.parametrize("width", [1, 8])
def test_embeddings_of_another_width(width):
    with pytest.raises(ValueError, match=f"model's width, 32, not {width}"):
        make()(inputs_embeds=torch.zeros(3, 4, width))


def test_a_past_that_is_none():
    with pytest.raises(TypeError, match="past_key_values must be a cache or tuples of keys and values, not int"):
        make()(some_ids(), past_key_values=5)


@pytest.mark.parametrize("shape", [(3, 6), (2, 7)])
def test_an_encoder_s_mask_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"encoder_attention_mask must have the shape \(3, 7\), not \("):
        model = make(add_cross_attention=True)
        model(some_ids(), encoder_hidden_states=torch.zeros(3, 7, 32), encoder_attention_mask=torch.ones(shape))
