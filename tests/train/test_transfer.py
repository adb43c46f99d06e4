"""From a model on disk to the network that is fine-tuned, and to the model that comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import classifiers
from classifiers import CLASSES, GRID, MULTI, REGRESSION, SINGLE, T, change, configure
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.data.records import Source
from imagegpt.errors import InputError, MissingExtra
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.model.positions import interpolate_positions
from imagegpt.pipeline import ImageGPT
from imagegpt.train.checkpoints import Checkpoints
from imagegpt.train.dataset import Dataset
from imagegpt.train.finetune_recipe import FinetuneRecipe, Head
from imagegpt.train.labels import Labels
from imagegpt.train.optimizers import optimizers_of
from imagegpt.train.processes import Processes
from imagegpt.train.training import Training
from imagegpt.train.transfer import Pretrained, network_of
from reference import finetuning as reference

DEVICE = torch.device("cpu")
CPU = Processes(0, 1, DEVICE)
TWO = ("owl", "jay")
IDS = torch.from_numpy(classifiers.ids_of(5))
LAYERS = 3
NORMS = ("ln_1.weight", "ln_2.weight", "ln_f.weight", "ln_score.weight")
HEAD, SCORE, WPE = "lm_head.weight", "score.weight", "transformer.wpe.weight"


def source_model(folder: Path, *, classes=None, causal=True, draws=True, seed=0, prune=None, **numbers) -> Path:
    """A model of three blocks with large weights, each norm with its own."""
    from imagegpt.config import ImageGPTConfig

    sizes = {"vocab_size": 17, "n_positions": T, "n_embd": 32, "n_layer": LAYERS, "n_head": 2}
    config = ImageGPTConfig(**{**sizes, **numbers})
    if not causal:
        config.is_causal = False
    model = (ImageGPTForCausalImageModeling if draws else ImageGPTForImageClassification)(config)
    if prune:
        model.prune_heads(prune)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + ("ln_" in name))
    model.save_pretrained(folder)
    save_preprocessor(folder, PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3))), Framing(*GRID))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders that are only read."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "ar": source_model(folder / "ar"),
        "bert": source_model(folder / "bert", causal=False),
        "tied": source_model(folder / "tied", tie_word_embeddings=True),
        "pruned": source_model(folder / "pruned", prune={0: [1], 2: [0]}),
        "scaled": source_model(folder / "scaled", scale_attn_by_inverse_layer_idx=True, n_inner=48),
        "classifier": classifiers.make(folder / "classifier"),
        "mute": classifiers.make(folder / "mute", draws=False),
    }


def labels_of(classes=TWO, problem=SINGLE) -> Labels:
    return Labels(problem, tuple(classes), np.full(len(classes), 4), 4 * len(classes))


def begin(folder, classes=TWO, problem=SINGLE, *, grid=GRID, seed=0, **head):
    options = {"generative": 1.0, **head}
    return network_of(Pretrained.open(str(folder)), Head(**options), labels_of(classes, problem), grid, seed, DEVICE)


def weights_of(network) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in network.model.named_parameters()}


def stir(network, seed=7):
    """Give what is trained other numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)


def predicted(network):
    """Logits, and nats/token."""
    network.model.eval()
    with torch.no_grad():
        return network.objective(IDS)[:2]


def published(network, folder: Path) -> Path:
    """The model folder that a run would write, by what writes it."""
    source = Source("data", 1, lambda start, stop: iter(()))
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    dataset = Dataset(codec, Framing(*GRID), None, source, None)  # pyright: ignore[reportArgumentType]
    checkpoints = Checkpoints(folder, CPU, dataset, network, keep=1)
    folder.mkdir(parents=True)
    checkpoints.write_model(folder, checkpoints.gather(dict(network.model.named_parameters())), own=True)
    return folder


def opened(folder, kind=ImageGPTForImageClassification):
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"] and not told["unexpected_keys"], told
    return model.eval()


def logits_by_hand(folder):
    """From the files alone, in float64."""
    state = {name: weight.numpy() for name, weight in load_file(folder / "model.safetensors").items()}
    config = opened(folder).config
    causal = getattr(config, "is_causal", True)
    rows = [reference.inputs(state, row, causal) for row in IDS.numpy()]
    return np.stack([reference.class_logits(state, config.to_dict(), row, causal) for row in rows])


def logits_of_theirs(folder, starts):
    """By transformers' own class, which knows of no start: what it reads is moved by hand."""
    from transformers.models import imagegpt as theirs

    model = theirs.ImageGPTForImageClassification.from_pretrained(folder).eval()
    inputs = torch.cat([torch.full((len(IDS), 1), 16), IDS[:, :-1]], 1) if starts else IDS
    with torch.no_grad():
        return model(inputs).logits


def check_published(network, folder, theirs=True):
    """The model that is written says what the network in training says."""
    logits, _ = predicted(network)
    assert logits.std() > 0.05  # else nothing is compared
    written = published(network, folder)
    model = opened(written)
    with torch.no_grad():
        np.testing.assert_allclose(model(IDS).logits, logits, atol=2e-4)
    np.testing.assert_allclose(logits_by_hand(written), logits, atol=2e-4)
    if theirs:
        np.testing.assert_allclose(logits_of_theirs(written, model.config.classifier_start), logits, atol=2e-4)
    return written


# The start.


@pytest.mark.parametrize("name", ["ar", "bert", "pruned", "scaled", "classifier"])
@pytest.mark.parametrize("generative", [0.0, 1.0])
def test_weights_are_copied_and_the_classifier_begins_at_zero(models, name, generative):
    network = begin(models[name], generative=generative)
    stored = load_file(models[name] / "model.safetensors")
    found = weights_of(network)
    assert found.keys() == {*stored, SCORE}
    for key, weight in found.items():
        if key != SCORE:
            assert torch.equal(weight, stored[key]), key
    assert found[SCORE].shape == (2, 32) and not found[SCORE].any()
    assert network.notes == () and not network.other


def test_a_head_that_is_the_embedding_stays_it(models):
    network = begin(models["tied"])
    assert HEAD not in weights_of(network)
    assert network.config.tie_word_embeddings
    _, nats = predicted(network)
    plain = opened(models["tied"], ImageGPTForCausalImageModeling)
    with torch.no_grad():
        assert nats.mean().item() == pytest.approx(plain.image_loss(IDS).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["ar", "tied", "pruned", "scaled"])
def test_it_predicts_ids_as_the_model_did(models, name):
    _, nats = predicted(begin(models[name]))
    model = opened(models[name], ImageGPTForCausalImageModeling)
    with torch.no_grad():
        expected = [model.image_loss(row[None]).item() for row in IDS]
    assert nats.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "causal"), [("ar", True), ("bert", False)])
def test_the_configuration_is_a_classifiers(models, name, causal):
    config = begin(models[name], ("jay", "owl", "emu"), MULTI, dropout=0.25).config
    assert (config.id2label, config.label2id) == ({0: "jay", 1: "owl", 2: "emu"}, {"jay": 0, "owl": 1, "emu": 2})
    assert (config.num_labels, config.problem_type) == (3, MULTI)
    assert config.architectures == ["ImageGPTForImageClassification"]
    assert bool(config.classifier_start) == causal and getattr(config, "is_causal", True) == causal
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.25)
    assert (config.n_layer, config.n_positions, config.vocab_size) == (LAYERS, T, 17)


def test_the_models_dropout_is_not_the_runs(tmp_path):
    config = begin(source_model(tmp_path / "model", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("generative", [0.0, 1.0])
def test_a_classifier_of_the_same_classes_goes_on(models, generative):
    network = begin(models["classifier"], CLASSES, generative=generative)
    stored = load_file(models["classifier"] / "model.safetensors")
    assert torch.equal(weights_of(network)[SCORE], stored[SCORE])
    [note] = network.notes
    assert note.startswith("The classifier of ") and note.endswith(" tells these classes already and goes on.")
    with torch.no_grad():
        expected = opened_loosely(models["classifier"])(IDS).logits
    np.testing.assert_allclose(predicted(network)[0], expected, atol=1e-5)


def opened_loosely(folder):
    return ImageGPTForImageClassification.from_pretrained(folder).eval()


def test_a_classifier_whose_file_names_no_problem_goes_on_too(tmp_path):
    folder = classifiers.make(tmp_path / "model", problem=None)
    assert begin(folder, CLASSES).model.score.weight.any()


@pytest.mark.parametrize(
    ("classes", "problem", "head"),
    [
        (CLASSES[:-1], SINGLE, {}),
        ((*CLASSES[1:], CLASSES[0]), SINGLE, {}),  # in another order
        (("auk", *CLASSES[1:]), SINGLE, {}),
        (CLASSES, MULTI, {}),
        (CLASSES, REGRESSION, {}),
        (CLASSES, SINGLE, {"layer": 1}),  # it has never read these states
        (CLASSES, SINGLE, {"layer": 1, "generative": 0.0}),
        (CLASSES, SINGLE, {"start": "paper"}),
    ],
)
def test_a_classifier_of_anything_else_is_new(models, classes, problem, head):
    network = begin(models["classifier"], classes, problem, **head)
    assert network.model.score.weight.shape == (len(classes), 32)
    assert not network.model.score.weight.any()
    assert not any("goes on" in note for note in network.notes)


def test_the_grid_may_be_another(models):
    network = begin(models["ar"], grid=(4, 12))
    stored = load_file(models["ar"] / "model.safetensors")
    assert torch.equal(weights_of(network)[WPE], interpolate_positions(stored[WPE], GRID, (4, 12)))
    assert network.notes == ("The position embeddings are interpolated from 8 x 8 to 4 x 12.",)
    assert network.config.n_positions == 48
    others = {name: weight for name, weight in weights_of(network).items() if name not in (WPE, SCORE)}
    assert all(torch.equal(weight, stored[name]) for name, weight in others.items())


@pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned"])
@pytest.mark.parametrize("head", [{}, {"layer": 1}, {"generative": 0.0}, {"layer": 2, "generative": 0.0}])
@pytest.mark.parametrize("start", ["paper", "hf"])
def test_new_weights_have_the_models_shape_alone(models, name, head, start):
    network = begin(models[name], start=start, **head)
    again, other = (begin(models[name], start=start, seed=seed, **head) for seed in (0, 1))
    stored, first = load_file(models[name] / "model.safetensors"), weights_of(network)
    for key, weight in first.items():
        assert torch.equal(weight, weights_of(again)[key])
        if key.endswith(NORMS):
            assert (weight == 1).all(), key
        elif key.endswith("bias") or key == SCORE or (key == HEAD and start == "paper"):
            assert (weight == 0).all(), key
        else:
            assert weight.shape == stored[key].shape and not torch.equal(weight, stored[key]), key
            assert not torch.equal(weight, weights_of(other)[key]), key
    assert network.notes == (f"The weights are new, in the shape of {models[name]}.",)


@pytest.mark.parametrize("head", [{}, {"layer": 1}, {"generative": 0.0}])
@pytest.mark.parametrize("name", ["ar", "bert"])
def test_an_informed_start_knows_the_grid(models, name, head):
    network = begin(models[name], start="informed", **head)
    found = weights_of(network)
    assert found[HEAD].std() > 0 and not found[SCORE].any()
    assert all((weight == 0).all() for name, weight in found.items() if "c_proj" in name)
    assert predicted(network)[1].isfinite().all()


def test_a_model_that_can_not_draw_can_be_begun_anew(models):
    assert weights_of(begin(models["mute"], start="hf"))[HEAD].any()


# A head at a middle layer.


@pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned", "scaled"])
@pytest.mark.parametrize("layer", [1, 2])
def test_what_is_above_the_classifier_is_cut_off(models, name, layer, tmp_path):
    network = begin(models[name], layer=layer, generative=0.0)
    assert not hasattr(network.model, "lm_head")
    assert (network.config.n_layer, len(network.model.transformer.h)) == (layer, layer)
    assert network.notes == (f"The blocks above the {layer}. are left out: nothing would train them.",)
    assert not network.other
    drawn = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.model.score.weight.copy_(drawn)
    if name != "tied":  # the features that `imagegpt features` gives
        features = ImageGPT.from_pretrained(models[name]).features_of(IDS.numpy(), [layer], backend="torch")[layer]
        np.testing.assert_allclose(predicted(network)[0], features @ drawn.numpy().T, atol=1e-4)
    assert predicted(network)[1] is None
    stir(network)
    written = check_published(network, tmp_path / "out", theirs=name in ("ar", "scaled"))
    assert not json.loads((written / "config.json").read_text()).get("tie_word_embeddings")
    assert not (written / "training.safetensors").exists()


@pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned", "scaled"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_middle_layers_model_is_the_network_up_to_there(models, name, layer, tmp_path):
    network = begin(models[name], layer=layer, generative=0.5)
    assert network.config.n_layer == LAYERS and network.other
    with torch.no_grad():
        network.model.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    features = ImageGPT.from_pretrained(models[name]).features_of(IDS.numpy(), [layer], backend="torch")[layer]
    np.testing.assert_allclose(
        predicted(network)[0], features @ network.model.score.weight.detach().numpy().T, atol=1e-4
    )
    stir(network)
    written = check_published(network, tmp_path / "out", theirs=name in ("ar", "scaled"))
    state = load_file(written / "model.safetensors")
    assert not any(key.startswith(("ln_score", "lm_head", f"transformer.h.{layer}.")) for key in state)
    assert torch.equal(state["transformer.ln_f.weight"], network.model.ln_score.weight)
    # What goes on being trained is kept beside it.
    own = load_file(written / "training.safetensors")
    assert own.keys() == weights_of(network).keys()
    assert all(torch.equal(weight, own[key]) for key, weight in weights_of(network).items())
    assert network.config.n_layer == LAYERS  # the run's own is as it was


@pytest.mark.parametrize("layer", [None, LAYERS])
@pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned", "scaled"])
@pytest.mark.parametrize("generative", [0.0, 1.0])
def test_a_model_with_both_heads_classifies_and_predicts_ids(models, name, layer, generative, tmp_path):
    network = begin(models[name], layer=layer, generative=generative)
    assert not network.other
    stir(network)
    written = check_published(network, tmp_path / "out", theirs=name in ("ar", "scaled"))
    _, nats = predicted(network)
    model = opened(written, ImageGPTForCausalImageModeling)
    if name != "bert":
        with torch.no_grad():
            assert model.image_loss(IDS).item() == pytest.approx(nats.mean().item(), rel=1e-5)


def test_a_model_moved_to_another_grid_is_opened_there(models, tmp_path):
    network = begin(models["ar"], grid=(4, 16))
    stir(network)
    check_published(network, tmp_path / "out")


# Adapters.


ADAPTED = pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned"])


@ADAPTED
@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_change_nothing_at_first(models, name, rank):
    network, plain = begin(models[name], lora=rank), begin(models[name])
    for one in (network, plain):
        with torch.no_grad():
            one.model.score.weight.copy_(torch.ones(2, 32) * torch.arange(32))
    for found, expected in zip(predicted(network), predicted(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("head", [{}, {"layer": 1}, {"layer": 2, "generative": 0.0}])
def test_adapters_and_the_classifier_alone_are_trained(models, head):
    found = dict(begin(models["ar"], lora=3, **head).model.named_parameters())
    trained = {name for name, weight in found.items() if weight.requires_grad}
    blocks = head.get("layer", LAYERS) if "generative" in head else LAYERS
    adapted = [f"transformer.h.{layer}.{end}" for layer in range(blocks) for end in PRODUCTS]
    expected = {f"{name}.lora_{factor}.default.weight" for name in adapted for factor in "AB"} | {SCORE}
    assert trained == expected | ({"ln_score.weight"} if head == {"layer": 1} else set())
    assert found["transformer.h.0.mlp.c_fc.lora_A.default.weight"].shape == (3, 32)
    assert found["transformer.h.0.mlp.c_fc.lora_B.default.weight"].shape == (128, 3)


PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_adapters_follow_the_seed(models):
    found = []
    for seed in (0, 0, 1):
        torch.rand(len(found) + 1)  # whatever was drawn before
        weights = weights_of(begin(models["ar"], lora=3, seed=seed))
        found.append({name: weight for name, weight in weights.items() if "lora_A" in name})
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]) and not torch.equal(weight, found[2][name])
        bound = 1 / np.sqrt(weight.shape[1])  # PEFT's
        assert 0.7 * bound < weight.abs().max() <= bound
        assert len(weight.unique()) == weight.numel()
    first, second = (found[0][f"transformer.h.{layer}.mlp.c_fc.lora_A.default.weight"] for layer in (0, 1))
    assert not torch.equal(first, second)


@ADAPTED
@pytest.mark.parametrize("head", [{}, {"layer": 1}, {"layer": 2, "generative": 0.0}])
@pytest.mark.parametrize("scale", [(1, 16.0), (4, 2.0)])
def test_merged_adapters_are_the_adapted_network(models, name, head, scale, tmp_path):
    rank, alpha = scale
    network = begin(models[name], lora=rank, lora_alpha=alpha, **head)
    before = {key: weight.clone() for key, weight in weights_of(network).items() if "base_layer" in key}
    stir(network)
    unadapted = begin(models[name], **head)
    with torch.no_grad():
        unadapted.model.score.weight.copy_(network.model.score.weight)
    assert (predicted(network)[0] - predicted(unadapted)[0]).abs().max() > 0.1
    written = check_published(network, tmp_path / "out", theirs=name == "ar")
    state = load_file(written / "model.safetensors")
    assert not any("lora" in key or "base_layer" in key for key in state)
    cut = published(unadapted, tmp_path / "plain")
    assert state.keys() == load_file(cut / "model.safetensors").keys()
    own = load_file(written / "training.safetensors")
    assert all(torch.equal(weight, own[key]) for key, weight in before.items())
    assert own.keys() == weights_of(network).keys()
    # Only the products are others.
    stored = load_file(models[name] / "model.safetensors")
    others = (*(f"{product}.weight" for product in PRODUCTS), "ln_f.weight", SCORE)
    same = [key for key in state if not key.endswith(others)]
    assert len(same) >= 2 and all(torch.equal(state[key], stored[key]) for key in same)
    if not head:
        _, nats = predicted(network)
        model = opened(written, ImageGPTForCausalImageModeling)
        if name != "bert":
            with torch.no_grad():
                assert model.image_loss(IDS).item() == pytest.approx(nats.mean().item(), rel=1e-4)


def test_an_update_of_adapters_leaves_the_network_as_it_is(models):
    network = begin(models["ar"], lora=2)
    recipe = FinetuneRecipe.from_flat({"batch": 5, "lr": 0.1, "lora": 2}, "here")
    training = Training(network.model, recipe, CPU, network.objective, network.rate)
    before = {name: weight.clone() for name, weight in weights_of(network).items()}
    for position in range(2):
        gradient = training.gradient(IDS.numpy(), position, {"targets": np.array([0, 1, 0, 1, 1])})
        training.step(gradient, 1.0)
    for name, weight in weights_of(network).items():
        moved = not torch.equal(weight, before[name])
        assert moved == ("lora_" in name or name == SCORE), name


def test_adapters_need_peft(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match="peft"):
        begin(models["ar"], lora=2)


# What is trained, and how fast.


@pytest.mark.parametrize(
    ("head", "frozen"),
    [
        ({}, ()),
        ({"generative": 0.0}, (HEAD,)),
        ({"freeze": 1}, ("transformer.wte.", "transformer.wpe.", "transformer.h.0.")),
        ({"freeze": 2, "layer": 2}, ("transformer.wte.", "transformer.wpe.", "transformer.h.0.", "transformer.h.1.")),
        ({"freeze": 3, "generative": 0.0}, ("transformer.wte.", "transformer.wpe.", "transformer.h.", HEAD)),
        ({"freeze": 1, "layer": 1, "generative": 0.0}, ("transformer.wte.", "transformer.wpe.", "transformer.h.0.")),
        ({"freeze": 1, "start": "paper"}, ("transformer.wte.", "transformer.wpe.", "transformer.h.0.")),
    ],
)
def test_what_is_frozen_is_not_trained(models, head, frozen):
    for name, weight in begin(models["ar"], **head).model.named_parameters():
        assert weight.requires_grad != name.startswith(frozen), name


@pytest.mark.parametrize(
    "head", [{}, {"layer": 1}, {"generative": 0.0}, {"layer": 2, "generative": 0.0}, {"freeze": 1}]
)
@pytest.mark.parametrize("name", ["ar", "bert", "tied", "pruned"])
def test_a_loss_reaches_all_that_is_trained(models, name, head):
    """DDP waits for the gradient of every weight that is trained."""
    network = begin(models[name], **head)
    stir(network)
    mask = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0)) < 0.3 if name == "bert" else None
    network.objective(IDS, mask, torch.tensor([0, 1, 0, 1, 1])).sum().backward()
    for key, weight in network.model.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == weight.requires_grad, key


def rates_of(network, **options):
    """Highest step size by name, as the optimisers have them."""
    recipe = FinetuneRecipe.from_flat({"lr": 0.5, "muon_lr": 0.25, "weight_decay": 0.1, **options}, "here")
    parameters = dict(network.model.named_parameters())
    names = {id(weight): name for name, weight in parameters.items()}
    found = {}
    for optimizer in optimizers_of(parameters, recipe.optimization, torch.float32, network.rate):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                assert id(weight) in names and names[id(weight)] not in found
                found[names[id(weight)]] = group["peak"]
                assert group["lr"] == group["peak"]
                flat = weight.ndim == 1
                assert group["weight_decay"] == (0.0 if flat else 0.1), names[id(weight)]
    return found


def expected_rate(name, blocks, decay, head_rate):
    if name.startswith(("score", "ln_score")):
        return head_rate
    if "wte" in name or "wpe" in name:
        return decay ** (blocks + 1)
    if ".h." in name:
        return decay ** (blocks - int(name.split(".")[2]))
    return 1.0  # the last norm and the head that predicts ids


@pytest.mark.parametrize(
    ("head", "blocks"),
    [({}, 3), ({"layer": 2}, 3), ({"layer": 2, "generative": 0.0}, 2), ({"generative": 0.0}, 3), ({"freeze": 1}, 3)],
)
@pytest.mark.parametrize(("decay", "head_rate"), [(1.0, 1.0), (0.5, 1.0), (1.0, 10.0), (0.8, 4.0)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_sizes_fall_from_layer_to_layer(models, head, blocks, decay, head_rate, optimizer):
    network = begin(models["ar"], layer_decay=decay, head_rate=head_rate, **head)
    found = rates_of(network, optimizer=optimizer)
    trained = {name for name, weight in network.model.named_parameters() if weight.requires_grad}
    assert found.keys() == trained
    for name, rate in found.items():
        highest = 0.25 if optimizer == "muon" and ".h." in name and not name.endswith(("bias", *NORMS)) else 0.5
        assert rate == pytest.approx(highest * expected_rate(name, blocks, decay, head_rate)), name


def test_adapters_have_the_step_sizes_of_their_layers(models):
    found = rates_of(begin(models["ar"], lora=2, layer_decay=0.5, head_rate=3.0), optimizer="muon")
    assert found.pop(SCORE) == pytest.approx(1.5)
    for name, rate in found.items():  # by AdamW, muon being for whole matrices
        assert rate == pytest.approx(0.5 * 0.5 ** (LAYERS - int(name.split(".")[2]))), name


def test_the_criterion_is_as_asked(models):
    labels = Labels(SINGLE, TWO, np.array([6, 2]), 8)
    head = Head(class_weights="balanced", smoothing=0.1, generative=0.25)
    network = network_of(Pretrained.open(str(models["ar"])), head, labels, GRID, 0, DEVICE)
    logits, targets = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([0, 1])
    pairs = zip(logits.numpy(), targets.tolist(), strict=True)
    expected = [reference.class_loss(row, target, SINGLE, [2 / 3, 2.0], 0.1) for row, target in pairs]
    np.testing.assert_allclose(network.objective.criterion(logits, targets), expected, rtol=1e-5)
    assert network.objective.generative == 0.25


# What can't be.


def test_a_model_that_can_not_draw_is_for_classification_alone(models):
    with pytest.raises(InputError, match=r"mute has no head that predicts ids: give --generative 0\.$"):
        begin(models["mute"])
    network = begin(models["mute"], generative=0.0)
    assert HEAD not in weights_of(network)
    assert begin(models["mute"], CLASSES, generative=0.0).model.score.weight.any()


@pytest.mark.parametrize("layer", [0, LAYERS + 1])
def test_a_layer_that_is_not_there_is_told(models, layer):
    with pytest.raises(InputError, match=rf"^--layer must be 1 to 3, the blocks of .*ar, not {layer}\.$"):
        begin(models["ar"], layer=layer)


@pytest.mark.parametrize(("head", "most"), [({"freeze": 4}, 3), ({"freeze": 3, "layer": 2}, 2)])
def test_more_frozen_blocks_than_there_are_is_told(models, head, most):
    told = rf"^--freeze must be 0 to {most}, the blocks below the classifier, not {head['freeze']}\.$"
    with pytest.raises(InputError, match=told):
        begin(models["ar"], **head)


def test_an_informed_start_without_a_generative_loss_is_told(models):
    with pytest.raises(InputError, match=r"^--start informed needs the generative loss"):
        begin(models["ar"], start="informed", layer=1, generative=0.0)


def test_class_weights_that_do_not_fit_are_told(models):
    with pytest.raises(InputError, match=r"^--class-weights: 2 classes need"):
        begin(models["ar"], class_weights="1,2,3")


@pytest.fixture
def folder(models, tmp_path):
    return shutil.copytree(models["ar"], tmp_path / "model")


def test_a_quantised_model_is_told(folder):
    configure(folder, quantization_config={"quant_method": "torchao"})
    with pytest.raises(InputError, match=r"is quantised and can't be trained; take the model that it was made of\.$"):
        Pretrained.open(str(folder))


def test_a_palette_or_a_grid_that_does_not_fit_is_told(folder):
    save_preprocessor(folder, PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (12, 3))), Framing(*GRID))
    with pytest.raises(InputError, match=r"its codec is a palette of 12, and the model has 16 colours\.$"):
        Pretrained.open(str(folder))
    save_preprocessor(folder, PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3))), Framing(8, 6))
    with pytest.raises(InputError, match=r"a grid of 8 x 6 does not have the model's 64 positions\.$"):
        Pretrained.open(str(folder))


def test_missing_parts_are_told(folder, tmp_path):
    with pytest.raises(InputError, match="no model"):
        Pretrained.open(str(tmp_path / "nowhere"))
    change(folder, **{"transformer.h.1.mlp.c_fc.weight": None})
    with pytest.raises(InputError, match=r"lack transformer\.h\.1\.mlp\.c_fc\.weight"):
        begin(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        begin(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="palette of its 16 colours is unknown"):
        Pretrained.open(str(folder))


def test_the_folder_stays_as_it_is(folder):
    before = (folder / "model.safetensors").read_bytes()
    stir(begin(folder))
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_backbone_knows_its_grid_and_palette(models):
    backbone = Pretrained.open(str(models["ar"]))
    assert (backbone.name, backbone.folder, backbone.grid) == (str(models["ar"]), models["ar"], GRID)
    assert len(backbone.codec) == 16
    assert Pretrained.open("nano").grid == (32, 32)
