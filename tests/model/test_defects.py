"""Table of defects: that every row has its checks; keywords, errors, caches, what is gone, pipelines.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from defects import OURS, ROWS, TOLERANCE, K, T, defect, fails_on_peer, random_ids, with_start

assert_close = torch.testing.assert_close
FACES = pytest.mark.parametrize("face", ["trunk", "causal", "classifier"])


def test_every_row_has_checks_in_its_file():
    tests = Path(__file__).parents[1]
    for row, file in ROWS.items():
        if file is not None:
            assert re.search(rf'@defect\(\s*"{re.escape(row)}"', (tests / file).read_text()), f"{row}: none in {file}"


@pytest.mark.parametrize(
    ("check", "outcome", "said"),
    [
        (lambda: exec("assert 1 == 2"), None, ""),
        (lambda: pytest.fail("as told"), None, ""),
        (lambda: None, pytest.skip.Exception, "fixed in transformers .*: the claim"),
        (lambda: 1 / 0, pytest.fail.Exception, "fails otherwise than by .*: the claim"),
    ],
    ids=["fails as told", "fails by pytest.fail", "passes", "fails otherwise"],
)
def test_what_becomes_of_a_check_on_the_peer(check, outcome, said):
    if outcome is None:
        fails_on_peer(check, "row: the claim", "AssertionError|Failed")
        return
    with pytest.raises(outcome, match=said):
        fails_on_peer(check, "row: the claim", "AssertionError|Failed")


def first(output):
    """Logits or states."""
    return output.logits if "logits" in output else output.last_hidden_state


# Keywords.


@FACES
@defect("keywords", "misspelt ones are silently swallowed", peer="Failed: DID NOT RAISE")
def test_a_misspelt_keyword_is_a_type_error(family, face):
    with pytest.raises(TypeError, match="'atention_mask'"):
        family.make(face)(random_ids(), atention_mask=torch.ones(2, T))


@pytest.mark.parametrize("kept", [1, 5, torch.tensor([0, 3, 4])], ids=["1", "5", "indices"])
@defect("keywords", "logits_to_keep is ignored")
@torch.no_grad()
def test_logits_to_keep(family, kept):
    model, ids = family.make(), random_ids()
    expected = model(ids).logits[:, kept if isinstance(kept, torch.Tensor) else slice(-kept, None)]
    assert_close(model(ids, logits_to_keep=kept).logits, expected, **TOLERANCE)


@FACES
@defect("keywords", "head_mask is silently ignored")
@torch.no_grad()
def test_head_mask(family, face):
    model, ids = family.make(face), random_ids()
    head_mask = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    got = first(model(ids, head_mask=head_mask))
    for block, factors in zip(model.base_model.h, head_mask, strict=True):
        # A head's factor may as well be on the rows of the projection that read it.
        block.attn.c_proj.weight.mul_(factors.repeat_interleave(16)[:, None])
    assert_close(got, first(model(ids)), **TOLERANCE)


# Errors.


@FACES
@defect("errors", "too long: index out of range in self", peer="IndexError: index out of range in self")
def test_too_many_ids(family, face):
    model = family.make(face)
    with pytest.raises(ValueError, match=r"25 ids .* 24 positions"):
        model(random_ids(2, T + 1))


@pytest.mark.parametrize("bad", [K + 1, -1])
@FACES
@defect("errors", "a bad id: index out of range in self", peer="AssertionError: Regex pattern did not match")
def test_a_bad_id(family, face, bad):
    ids = random_ids(2, 5)
    ids[1, 2] = bad
    low, high = int(ids.min()), int(ids.max())
    with pytest.raises(IndexError, match=rf"input_ids must be 0\.\.16; these are {low}\.\.{high}"):
        family.make(face)(ids)


@FACES
@defect("errors", "1-D input loses its batch axis", peer="Failed: DID NOT RAISE|RuntimeError: mat1 and mat2")
def test_one_axis(family, face):
    with pytest.raises(ValueError, match=r"\(batch, length\), not \(5,\)"):
        family.make(face)(random_ids(1, 5)[0])


@FACES
@defect("errors", "an empty batch crashes", peer="RuntimeError: cannot reshape tensor of 0 elements")
def test_an_empty_batch(family, face):
    with pytest.raises(ValueError, match=r"empty: its shape is \(0, 5\)"):
        family.make(face)(random_ids(0, 5))


# Caches.


@FACES
@defect("caches", "built while training")
def test_no_cache_while_training(family, face):
    assert family.make(face).train()(random_ids()).past_key_values is None


def tuples_of(cache):
    return tuple((layer.keys, layer.values) for layer in cache.layers)


@defect("caches", "tuple caches are refused", peer="AttributeError: 'tuple' object has no attribute")
@torch.no_grad()
def test_a_cache_of_tuples_is_read_and_comes_back_as_tuples(family):
    model, ids = family.make(), random_ids()
    expected = model(ids)
    past = tuples_of(model(ids[:, :9]).past_key_values)
    logits = []
    for start, end in [(9, 15), (15, T)]:
        output = model(ids[:, start:end], past_key_values=past)
        past = output.past_key_values
        logits.append(output.logits)
    assert_close(torch.cat(logits, 1), expected.logits[:, 9:], **TOLERANCE)
    assert type(past) is type(past[0]) is tuple
    for mine, theirs in zip(past, tuples_of(expected.past_key_values), strict=True):
        assert_close(mine, theirs, **TOLERANCE)


@defect("caches", "tuple caches are refused", peer="UnboundLocalError|AttributeError")
@torch.no_grad()
def test_a_cache_of_tuples_with_an_encoder(family):
    model, ids = family.make(add_cross_attention=True), random_ids()
    encoder = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(0))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model(ids[:, :9], encoder_hidden_states=encoder, past_key_values=cache)
    parts = zip(tuples_of(cache.self_attention_cache), tuples_of(cache.cross_attention_cache), strict=True)
    past = tuple(own + other for own, other in parts)
    output = model(ids[:, 9:], encoder_hidden_states=encoder, past_key_values=past)
    assert_close(output.logits, model(ids, encoder_hidden_states=encoder).logits[:, 9:], **TOLERANCE)
    assert [[tensor.shape[2] for tensor in layer] for layer in output.past_key_values] == [[T, T, 11, 11]] * 2


@defect("caches", "tuple caches are refused", peer="ValueError: Passing a tuple of `past_key_values`")
@torch.no_grad()
def test_generate_from_a_cache_of_tuples(family):
    model, start = family.make(), with_start(random_ids(2, 9))
    expected = model.generate(start, max_length=20, do_sample=False)
    past = tuples_of(model(start[:, :-1]).past_key_values)
    assert model.generate(start, past_key_values=past, max_length=20, do_sample=False).equal(expected)


@defect("caches", "the plain export fails on its cache object", peer="RuntimeError: .*DynamicCache")
@torch.no_grad()
def test_an_export_gives_plain_tensors(family):
    model, ids = family.make(), random_ids()
    got = torch.export.export(model, (ids,)).module()(ids)
    past = got["past_key_values"]
    assert type(past) is type(past[0]) is tuple
    expected = model(ids)
    assert_close(got["logits"], expected.logits, **TOLERANCE)
    for mine, theirs in zip(past, tuples_of(expected.past_key_values), strict=True):
        assert_close(mine, theirs, **TOLERANCE)


# Gone from the current release.


@defect("gone from the current release", "ImageGPTForCausalLM", peer="AttributeError: .*ImageGPTForCausalLM")
def test_the_first_name_of_the_generative_model(family):
    assert family.package.ImageGPTForCausalLM is family.causal


@defect("gone from the current release", "prune_heads", peer="AttributeError: .*prune_heads")
@torch.no_grad()
def test_prune_heads(family, tmp_path):
    model, ids = family.make(), random_ids()
    head_mask = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected, weights = model(ids, head_mask=head_mask).logits, model.num_parameters()
    model.prune_heads({0: [0], 1: [1]})
    assert_close(model(ids).logits, expected, **TOLERANCE)
    assert weights - model.num_parameters() == 2 * (3 * 16 * 32 + 3 * 16 + 16 * 32)
    model.save_pretrained(tmp_path)
    assert_close(family.causal.from_pretrained(tmp_path).eval()(ids).logits, expected, **TOLERANCE)


@FACES
@defect("gone from the current release", "pixel_values=", peer="ValueError: You have to specify either input_ids")
@torch.no_grad()
def test_pixel_values_is_the_old_name_of_input_ids(family, face):
    model, ids = family.make(face), random_ids()
    with warnings.catch_warnings(record=True) as said:
        got = model(pixel_values=ids)
    assert_close(first(got), first(model(ids)))
    assert [entry.category for entry in said] == [FutureWarning]


@defect("gone from the current release", "pixel_values=", peer="ValueError: .*'pixel_values'")
def test_generate_takes_pixel_values(family):
    model, start = family.make(), with_start(random_ids(2, 9))
    with warnings.catch_warnings(record=True) as said:
        got = model.generate(pixel_values=start, max_length=20, do_sample=False)
    assert got.equal(model.generate(start, max_length=20, do_sample=False))
    assert FutureWarning in [entry.category for entry in said]


# Pipelines.


@pytest.fixture
def auto_classes(monkeypatch):
    """transformers' Auto classes, whose registrations a test may change: they are put back afterwards."""
    from transformers.models.auto import configuration_auto, image_processing_auto, modeling_auto

    mappings = [configuration_auto.CONFIG_MAPPING, image_processing_auto.IMAGE_PROCESSOR_MAPPING]
    names = ("MODEL_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING")
    for mapping in [*mappings, *(getattr(modeling_auto, name) for name in names)]:
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


@defect("pipelines", "image-feature-extraction with pool=True fails", peer="ValueError: No pooled output was returned")
@torch.no_grad()
def test_pooled_features(family, auto_classes, tmp_path):
    from transformers import pipeline

    if family is OURS:
        family.package.register()
    trunk = family.make("trunk")
    trunk.save_pretrained(tmp_path)
    clusters = np.random.default_rng(0).uniform(-1, 1, (K, 3))
    processor = family.processor(clusters=clusters, size={"height": 4, "width": 6})
    processor.save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    assert type(extract.model) is family.trunk
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    states = trunk(processor(image, return_tensors="pt")["input_ids"]).last_hidden_state
    assert_close(torch.tensor(extract(image)), states, **TOLERANCE)
    # The paper's features: the mean over the sequence.
    assert_close(torch.tensor(extract(image, pool=True)), states.mean(1), **TOLERANCE)
