"""Making, saving and loading models as every transformers model is made, saved and loaded."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from faces import (
    CLASSES,
    FACES,
    LAYERS,
    NUMBERS,
    Causal,
    Classifier,
    D,
    T,
    Trunk,
    assert_equal,
    assert_same_weights,
    each_face,
    main_output,
    make,
    random_ids,
)
from imagegpt.config import ImageGPTConfig

HEAD = {Trunk: set(), Causal: {"lm_head.weight"}, Classifier: {"score.weight"}}
SAFE, OLD = "model.safetensors", "pytorch_model.bin"


def load(face, folder, **options):
    """The model, and what was missing, unexpected or mismatched."""
    return face.from_pretrained(folder, output_loading_info=True, **options)


def write_old(folder, state, **options):
    """As releases before safetensors wrote a model."""
    (folder / SAFE).unlink(missing_ok=True)
    torch.save(state, folder / OLD, **options)


@pytest.fixture
def messages():
    """What transformers logs."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


# There and back.


@each_face
@torch.no_grad()
def test_a_saved_model_loads_as_it_was_and_may_be_saved_again(face, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    files = {"config.json", SAFE} | ({"generation_config.json"} if face is Causal else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [face.__name__]
    for _ in range(2):
        loaded, info = load(face, tmp_path)
        assert not any(info.values()), info
        assert not loaded.training
        assert all(parameter.is_contiguous() for parameter in loaded.parameters())
        assert_same_weights(loaded, model)
        assert torch.equal(main_output(loaded(random_ids())), main_output(model(random_ids())))
        loaded.save_pretrained(tmp_path)


@each_face
def test_the_file_holds_the_published_names_and_nothing_else(face, tmp_path):
    make(face).save_pretrained(tmp_path)
    prefix = "" if face is Trunk else "transformer."
    parts = ["ln_1.weight", "ln_2.weight"]
    parts += [f"{layer}.{kind}" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
              for kind in ("weight", "bias")]  # fmt: skip
    names = {f"{prefix}h.{layer}.{part}" for layer in range(LAYERS) for part in parts}
    names |= {f"{prefix}{name}.weight" for name in ("wte", "wpe", "ln_f")}
    assert set(load_file(tmp_path / SAFE)) == names | HEAD[face]


@each_face
def test_large_models_are_saved_in_shards(face, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / f"{SAFE}.index.json").read_text())["weight_map"]
    assert set(index) == set(model.state_dict())
    assert set(index.values()) == {shard.name for shard in shards}
    assert_same_weights(face.from_pretrained(tmp_path), model)
    shards[1].unlink()
    with pytest.raises(OSError, match=shards[1].name):
        face.from_pretrained(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@each_face
def test_old_files_load(face, zipped, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    write_old(tmp_path, model.state_dict(), _use_new_zipfile_serialization=zipped)
    loaded, info = load(face, tmp_path)
    assert not any(info.values())
    assert_same_weights(loaded, model)


@each_face
def test_an_old_file_that_would_run_code_is_refused(face, tmp_path):
    class Attack:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "harm",))

    make(face).save_pretrained(tmp_path)
    write_old(tmp_path, {"wte.weight": Attack()})
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        face.from_pretrained(tmp_path)
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / OLD, weights_only=False)
    assert (tmp_path / "harm").exists()  # so the file is what it claims to be


@each_face
def test_weights_may_be_given_instead_of_a_folder(face):
    model = make(face)
    loaded = face.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same_weights(loaded, model)


# Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_face
def test_weights_come_in_the_dtype_that_is_asked_for_or_saved(face, dtype, tmp_path):
    model = make(face).to(dtype)
    model.save_pretrained(tmp_path)
    for asked in ("auto", dtype, str(dtype).removeprefix("torch.")):
        assert_same_weights(face.from_pretrained(tmp_path, dtype=asked), model)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    for other in (torch.bfloat16, torch.float32):
        loaded = face.from_pretrained(tmp_path, dtype=other)
        assert loaded.dtype == loaded.config.dtype == other
        assert {parameter.dtype for parameter in loaded.parameters()} == {other}
        assert torch.equal(loaded.base_model.wte.weight, model.base_model.wte.weight.to(other))


@each_face
def test_the_old_name_of_dtype_works(face, tmp_path):
    make(face).save_pretrained(tmp_path)
    assert face.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_face
@torch.no_grad()
def test_a_loaded_model_runs_in_half_precision(face, dtype, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    got = main_output(face.from_pretrained(tmp_path, dtype=dtype)(random_ids()))
    expected = main_output(model(random_ids()))
    assert got.dtype == dtype
    assert (got.float() - expected).norm() < (0.03 if dtype == torch.bfloat16 else 3e-3) * expected.norm()


# What a file lacks, and what it has too much.


@each_face
def test_weights_that_a_file_lacks_are_told_and_made_anew_and_the_others_kept(face, tmp_path, messages):
    model = make(face)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / SAFE)
    lost = {name for name in state if "h.1.mlp" in name or "h.0.ln_2" in name}
    assert len(lost) == 5
    kept = {name: value for name, value in state.items() if name not in lost}
    save_file(kept, tmp_path / SAFE, metadata={"format": "pt"})
    loaded, info = load(face, tmp_path)
    assert set(info["missing_keys"]) == lost
    assert all(name in "".join(messages) for name in ("ln_2", "mlp.c_fc"))
    got = loaded.state_dict()
    assert all(torch.equal(got[name], value) for name, value in kept.items())
    fresh = {name.split("h.")[1]: got[name] for name in lost}
    assert (fresh["0.ln_2.weight"] == 1).all()
    assert (fresh["1.mlp.c_fc.bias"] == 0).all()
    assert fresh["1.mlp.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert fresh["1.mlp.c_proj.weight"].std().item() == pytest.approx(0.01, rel=0.1)  # by sqrt(2 L) smaller


@each_face
def test_a_file_without_any_weight_lacks_all_of_them(face, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / SAFE, metadata={"format": "pt"})
    _, info = load(face, tmp_path)
    assert set(info["missing_keys"]) == set(model.state_dict())
    assert set(info["unexpected_keys"]) == {"other"}


@each_face
def test_weights_that_are_none_of_ours_are_told_except_old_masks(face, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / SAFE)
    prefix = "" if face is Trunk else "transformer."
    masks = {f"{prefix}h.{i}.attn.{name}": torch.ones(1) for i in range(LAYERS) for name in ("bias", "masked_bias")}
    others = {f"{prefix}h.0.{name}": torch.ones(1) for name in ("attn.c_attn.extra", "attn.old_bias", "mlp.bias")}
    save_file({**state, **masks, **others}, tmp_path / SAFE, metadata={"format": "pt"})
    loaded, info = load(face, tmp_path)
    assert set(info["unexpected_keys"]) == set(others)
    assert_same_weights(loaded, model)


@each_face
def test_a_weight_of_another_shape_is_an_error_or_on_request_made_anew(face, tmp_path):
    model = make(face)
    model.save_pretrained(tmp_path)
    other = ImageGPTConfig(**{**NUMBERS, "n_positions": T + 4})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        face.from_pretrained(tmp_path, config=other)
    loaded, info = load(face, tmp_path, config=other, ignore_mismatched_sizes=True)
    name = f"{'' if face is Trunk else 'transformer.'}wpe.weight"
    assert [tuple(entry) for entry in info["mismatched_keys"]] == [(name, (T, D), (T + 4, D))]
    got = loaded.state_dict()
    assert got.pop(name).std().item() == pytest.approx(0.02, rel=0.15)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in got.items())


def test_another_number_of_classes_makes_a_new_head_on_the_same_trunk(tmp_path):
    model = make(Classifier)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Classifier.from_pretrained(tmp_path, num_labels=42)
    loaded, info = load(Classifier, tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert [entry[0] for entry in info["mismatched_keys"]] == ["score.weight"]
    assert loaded(random_ids()).logits.shape == (2, 42)
    assert_same_weights(loaded.transformer, model.transformer)


# Between the classes.


@pytest.mark.parametrize("saved", FACES)
@each_face
@torch.no_grad()
def test_every_class_loads_the_trunk_of_every_other(face, saved, tmp_path):
    model = make(saved)
    model.save_pretrained(tmp_path)
    loaded, info = load(face, tmp_path)
    assert set(info["missing_keys"]) == HEAD[face] - HEAD[saved]
    # A fine-tuned network's files have both heads, so neither is told of as strange.
    assert set(info["unexpected_keys"]) == (HEAD[saved] if face is Trunk else set())
    assert_same_weights(loaded.base_model, model.base_model)
    states = [m.base_model(random_ids()).last_hidden_state for m in (loaded, model)]
    assert torch.equal(*states)
    if face is not saved and face is not Trunk:
        (head,) = HEAD[face]
        assert loaded.get_parameter(head).std().item() == pytest.approx(0.02, rel=0.4)


@each_face
def test_the_base_model_is_the_trunk(face):
    model = make(face)
    assert type(model.base_model) is Trunk
    assert model.base_model is (model if face is Trunk else model.transformer)


def test_classes_keep_their_names(tmp_path):
    names = {0: "cat", 1: "dog", 2: "frog"}
    make(Classifier, id2label=names, label2id={name: i for i, name in names.items()}).save_pretrained(tmp_path)
    config = Classifier.from_pretrained(tmp_path).config
    assert config.id2label == names
    assert config.label2id["frog"] == 2
    assert config.num_labels == CLASSES


# Making models.


@pytest.fixture
def seeded(monkeypatch):
    """New weights of a module do not depend on the order in which modules are made."""
    original = Trunk._init_weights

    def init_weights(self, module):
        torch.manual_seed(0)
        original(self, module)

    for face in FACES:
        monkeypatch.setattr(face, "_init_weights", init_weights)


@pytest.mark.parametrize("extra", [{}, {"add_cross_attention": True}, {"tie_word_embeddings": True}], ids=str)
@each_face
def test_weights_made_after_the_model_equal_those_made_with_it(face, extra, seeded):
    config = ImageGPTConfig(**NUMBERS, **extra)
    made = face(config)
    loaded = face.from_pretrained(None, config=config, state_dict={})
    with torch.device("meta"):
        empty = face(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(torch.nan)
    empty.init_weights()
    for other in (loaded, empty):
        assert_same_weights(other, made)
        assert_equal(main_output(other.eval()(random_ids())), main_output(made.eval()(random_ids())), atol=0)


@each_face
def test_loading_onto_the_meta_device_is_refused(face, tmp_path):
    make(face).save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        face.from_pretrained(tmp_path)


@each_face
def test_the_default_dtype_rules_new_models(face):
    for dtype in (torch.bfloat16, torch.float64):
        model = face._from_config(ImageGPTConfig(**NUMBERS), dtype=dtype).eval()
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert main_output(model(random_ids())).dtype == dtype


@torch.no_grad()
def test_float64_models_compute_in_float64():
    model = make(Causal).double()
    logits = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        logits[name] = model(random_ids()).logits
    assert logits["eager"].dtype == torch.float64
    assert_equal(logits["eager"], logits["sdpa"], atol=1e-12)


@each_face
def test_the_models_of_these_tests_are_small(face):
    assert make(face).num_parameters() < 50_000
