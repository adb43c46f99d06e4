"""What people do with transformers' models: adapters, offloading, compiling, exporting, Trainer, pipelines."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from faces import (
    LAYERS,
    SOS,
    Causal,
    Classifier,
    D,
    K,
    T,
    Trunk,
    assert_equal,
    assert_same_weights,
    each_face,
    labels_for,
    main_output,
    make,
    padding_mask,
    random_ids,
)
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.codec.processor import ImageGPTImageProcessor

# Libraries about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

LAYER_NAMES = ["c_attn", "c_proj", "c_fc"]


# Adapters.


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def losses_of_a_few_steps(model, ids, labels):
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(learning, lr=1e-2), []
    for _ in range(8):
        loss = model.train()(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize(("face", "task"), [(Causal, "CAUSAL_LM"), (Causal, None), (Classifier, "SEQ_CLS")])
def test_adapters_learn_alone_and_can_be_saved_loaded_and_merged(face, task, peft, tmp_path):
    model = make(face)
    base = copy.deepcopy(model)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=LAYER_NAMES, r=2))
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert sum("lora" in name for name in learning) == LAYERS * 4 * 2  # c_proj of the attention and of the MLP
    assert all("lora" in name or "score" in name for name in learning)
    losses = losses_of_a_few_steps(adapted, random_ids(4), labels_for(face, random_ids(4)))
    assert losses[-1] < losses[0] - 0.05
    logits = adapted(input_ids=random_ids()).logits
    assert (logits - base(random_ids()).logits).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert_equal(again(input_ids=random_ids()).logits, logits)
    merged = adapted.merge_and_unload()
    assert type(merged) is face
    assert_equal(merged(random_ids()).logits, logits)
    if face is Causal:
        assert merged.state_dict().keys() == base.state_dict().keys()


def test_a_model_takes_and_leaves_an_adapter_itself(peft, tmp_path):
    model, plain = make(Causal), make(Causal)(random_ids()).logits
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(target_modules=LAYER_NAMES, r=2, init_lora_weights=False))
    logits = model(random_ids()).logits
    assert (logits - plain).abs().max() > 1e-2
    model.disable_adapters()
    assert_equal(model(random_ids()).logits, plain)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    other = make(Causal)
    other.load_adapter(str(tmp_path))
    assert_equal(other(random_ids()).logits, logits)
    assert other.generate(do_sample=False).tolist() == model.generate(do_sample=False).tolist()


def test_learned_prompts_come_before_the_ids(peft):
    ids, mask = random_ids(2, T - 3), torch.ones(2, T - 3, dtype=torch.long)
    for kind in (peft.PromptTuningConfig, peft.PrefixTuningConfig):
        adapted = peft.get_peft_model(make(Causal), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
        output = adapted(input_ids=ids, attention_mask=mask, labels=ids)
        output.loss.backward()
        learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)
        assert (output.logits[:, -len(ids[0]) :] - make(Causal)(ids).logits).abs().max() > 1e-2


# Places of the weights.


PLACES = {"wte": "cpu", "wpe": "cpu", "drop": "cpu", "h.0": "cpu", "h.1": "disk", "ln_f": "cpu"}


@each_face
@torch.no_grad()
def test_a_device_map_puts_all_on_the_only_device(face, tmp_path):
    pytest.importorskip("accelerate")
    model = make(face)
    model.save_pretrained(tmp_path)
    for device_map in ("auto", "cpu", {"": "cpu"}):
        assert_same_weights(face.from_pretrained(tmp_path, device_map=device_map), model)


@each_face
@torch.no_grad()
def test_weights_may_stay_on_disk(face, tmp_path):
    pytest.importorskip("accelerate")
    model = make(face)
    model.save_pretrained(tmp_path / "model")
    places = PLACES if face is Trunk else {f"transformer.{name}": place for name, place in PLACES.items()}
    places |= {Trunk: {}, Causal: {"lm_head": "disk"}, Classifier: {"score": "disk"}}[face]
    loaded = face.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    away = {name for name, parameter in loaded.named_parameters() if parameter.is_meta}
    assert away == {
        name for name, _ in model.named_parameters() if "h.1." in name or "lm_head" in name or "score" in name
    }
    output, expected = (m(random_ids(), output_hidden_states=True) for m in (loaded, model))
    assert_equal(output.to_tuple(), expected.to_tuple())
    if face is Causal:
        assert loaded.generate(do_sample=False).tolist() == model.generate(do_sample=False).tolist()
    loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(face.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("share", [0.7, 0.9])
@torch.no_grad()
def test_too_little_memory_sends_whole_blocks_to_disk(share, tied, tmp_path):
    pytest.importorskip("accelerate")
    model = make(Causal, tie_word_embeddings=tied, n_layer=6)
    model.save_pretrained(tmp_path)
    memory = {"cpu": int(share * model.get_memory_footprint())}
    loaded = Causal.from_pretrained(tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "disk")
    away = [any(parameter.is_meta for parameter in block.parameters()) for block in loaded.transformer.h]
    assert any(away)
    for block in loaded.transformer.h:
        assert len({parameter.is_meta for parameter in block.parameters()}) == 1
    assert_equal(loaded(random_ids()).logits, model(random_ids()).logits)


@each_face
@torch.no_grad()
def test_a_whole_model_can_be_offloaded_after_it_was_made(face, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected = main_output(make(face)(random_ids()))
    for offload in (accelerate.cpu_offload, lambda m, **kw: accelerate.disk_offload(m, tmp_path, **kw)):
        model = make(face)
        offload(model, execution_device=torch.device("cpu"))
        assert all(parameter.is_meta for parameter in model.parameters())
        assert_equal(main_output(model(random_ids())), expected)


# Compiling and exporting.


def assert_compiles(model, backend, *calls):
    """Calls give in one graph what they give without; each is a dictionary of inputs."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for inputs in calls:
            assert_equal(compiled(**inputs).to_tuple(), model(**inputs).to_tuple(), atol=1e-4)


PADDED = {"input_ids": random_ids(), "attention_mask": padding_mask("...111111111", "11111111....")}


def test_the_forward_pass_is_one_graph():
    assert_compiles(make(Causal), "eager", {"input_ids": random_ids()}, PADDED)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@each_face
def test_compiled_models_give_the_same_numbers(face, implementation):
    model = make(face, attn_implementation=implementation)
    ids, options = random_ids(), [{}, {"use_cache": False}, {"output_hidden_states": True, "output_attentions": True}]
    calls = [{"input_ids": ids, **option} for option in options]
    calls += [PADDED, {"input_ids": random_ids(3, 7)}, {"inputs_embeds": model.get_input_embeddings()(ids)}]
    assert_compiles(model, "inductor", *calls)


@pytest.mark.slow
@pytest.mark.parametrize("face", [Causal, Classifier])
def test_compiled_training_gives_the_same_gradients(face):
    gradients = []
    for compiled in (False, True):
        model, ids = make(face).train(), random_ids()
        torch.compiler.reset()
        call = torch.compile(model, fullgraph=True) if compiled else model
        call(input_ids=ids, labels=labels_for(face, ids)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_equal(gradients[1], gradients[0], atol=1e-4)


@pytest.mark.slow
def test_generate_compiles_over_a_static_cache():
    model, start = make(Causal), random_ids(2, 4)
    expected = model.generate(start, do_sample=False).tolist()
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert model.generate(start, do_sample=False, cache_implementation="static").tolist() == expected


@pytest.mark.parametrize("with_mask", [False, True], ids=["ids", "ids and mask"])
@each_face
@torch.no_grad()
def test_an_exported_program_takes_any_batch_and_length(face, with_mask):
    def inputs(rows, length, hidden=slice(0, 0)):
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, hidden] = 0
        return {"input_ids": random_ids(rows, length), **({"attention_mask": mask} if with_mask else {})}

    model = make(face)
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=T)}
    example = inputs(2, T - 1, slice(0, 2))
    program = torch.export.export(model, (), example, dynamic_shapes=dict.fromkeys(example, sizes), strict=False)
    for size in [(2, T - 1), (5, 2), (3, T, slice(0, 4)), (4, 7, slice(5, 9))]:
        given = inputs(*size)
        assert_equal(main_output(program.module()(**given)), main_output(model(**given)))
    assert program.state_dict.keys() == model.state_dict().keys()
    assert not program.constants or all(value.numel() <= T for value in program.constants.values())  # no masks


@torch.no_grad()
def test_an_exported_program_can_be_saved_and_gives_its_past_as_plain_tensors(tmp_path):
    model = make(Causal)
    torch.export.save(torch.export.export(model, (random_ids(),), strict=False), tmp_path / "model.pt2")
    output = torch.export.load(tmp_path / "model.pt2").module()(random_ids())
    assert_equal(output.logits, model(random_ids()).logits)
    past = model(random_ids()).past_key_values
    assert_equal(output.past_key_values, [(layer.keys, layer.values) for layer in past.layers])


# Trainer.


@pytest.fixture
def trainer(tmp_path):
    """A function: a Trainer of six steps over eight pictures, and the data."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def make_trainer(face, **settings):
        ids = random_ids(8)
        data = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels_for(face, ids), strict=True)]
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "output_dir": str(tmp_path)}
        steps = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 4}
        rates = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "seed": 0}
        arguments = TrainingArguments(**quiet, **steps, **rates, **settings)
        return Trainer(make(face), arguments, train_dataset=data, eval_dataset=data), data

    return make_trainer


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("face", [Causal, Classifier])
def test_trainer_trains_saves_and_resumes(face, checkpointing, trainer, tmp_path):
    first, _ = trainer(face, gradient_checkpointing=checkpointing)
    first.train()
    losses = [entry["loss"] for entry in first.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert sum(losses[4:]) < 0.9 * sum(losses[:2])
    assert_same_weights(face.from_pretrained(tmp_path / "checkpoint-6"), first.model)
    resumed, _ = trainer(face, gradient_checkpointing=checkpointing)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, first.model.state_dict()[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("face", [Classifier, Causal])
def test_trainer_evaluates_and_predicts(face, trainer):
    made, data = trainer(face)
    ids = random_ids(8)
    expected = make(face)(ids, labels=labels_for(face, ids))
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    found = made.predict(data)
    assert found.metrics["test_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert_equal(torch.from_numpy(found.predictions), expected.logits.detach())
    assert found.label_ids.tolist() == labels_for(face, ids).tolist()


# transformers' Auto classes and pipelines.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the classes with a palette, for pictures of 3 x 4 ids."""
    palette = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (K, 3)))
    made = {}
    for face in (Trunk, Causal, Classifier):
        made[face] = tmp_path_factory.mktemp("folders") / face.__name__
        make(face).save_pretrained(made[face])
        save_preprocessor(made[face], palette, Framing(3, 4))
    return made


SCRIPT = """
import json, sys
import numpy as np
from PIL import Image
import transformers
from transformers import pipeline
import imagegpt

trunk, causal, classifier = sys.argv[1:]
told = {"before": type(transformers.AutoModel.from_pretrained(trunk)).__module__}
for _ in range(2):
    imagegpt.register()
faces = {"AutoConfig": trunk, "AutoModel": trunk, "AutoModelForCausalLM": causal,
         "AutoModelForImageClassification": classifier, "AutoImageProcessor": trunk}
for name, folder in faces.items():
    kind = type(getattr(transformers, name).from_pretrained(folder))
    told[name] = [kind.__module__, kind.__name__]
picture = Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9)
classify = pipeline("image-classification", model=classifier)
told["classes"] = classify(picture)
told["classes of two"] = classify([picture, picture])
extract = pipeline("image-feature-extraction", model=trunk)
told["features"] = extract(picture)
told["pooled"] = extract(picture, pool=True)
parts = [part for pipe in (classify, extract) for part in (pipe.model, pipe.image_processor)]
told["pipelines"] = [type(part).__module__ for part in parts]
print("\\n" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def registered(folders):
    """What a process of its own has told: registering holds for a whole process."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *folders.values()], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


PICTURE = Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9)


def test_nothing_is_registered_before_register_is_called(registered):
    assert registered["before"] == "transformers.models.imagegpt.modeling_imagegpt"


def test_the_auto_classes_give_our_classes(registered):
    assert registered["AutoConfig"] == ["imagegpt.config", "ImageGPTConfig"]
    assert registered["AutoModel"] == ["imagegpt.model.modeling", "ImageGPTModel"]
    assert registered["AutoModelForCausalLM"] == ["imagegpt.model.heads", "ImageGPTForCausalImageModeling"]
    assert registered["AutoModelForImageClassification"] == ["imagegpt.model.heads", "ImageGPTForImageClassification"]
    assert registered["AutoImageProcessor"] == ["imagegpt.codec.processor", "ImageGPTImageProcessor"]
    assert {module.split(".")[0] for module in registered["pipelines"]} == {"imagegpt"}


@torch.no_grad()
def test_the_classification_pipeline_gives_the_classes_of_the_model(registered, folders):
    inputs = ImageGPTImageProcessor.from_pretrained(folders[Classifier])(PICTURE, return_tensors="pt")
    scores = make(Classifier)(**inputs).logits[0].softmax(-1)
    expected = {f"LABEL_{i}": score.item() for i, score in enumerate(scores)}
    for found in (registered["classes"], *registered["classes of two"]):
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_the_feature_pipeline_gives_the_states_of_the_model_and_their_mean(registered, folders):
    inputs = ImageGPTImageProcessor.from_pretrained(folders[Trunk])(PICTURE, return_tensors="pt")
    states = make(Trunk)(**inputs).last_hidden_state
    assert states.shape == (1, T, D)
    assert_equal(torch.tensor(registered["features"]), states)
    assert_equal(torch.tensor(registered["pooled"]), states.mean(1))


@torch.no_grad()
def test_the_mean_of_the_states_leaves_out_padding():
    mask = padding_mask("...111111111", "1111111.....")
    output = make(Trunk)(random_ids(), attention_mask=mask)
    expected = [states[kept.bool()].mean(0) for states, kept in zip(output.last_hidden_state, mask, strict=True)]
    assert_equal(output.pooler_output, torch.stack(expected))
    assert (make(Trunk)(torch.full((1, 1), SOS)).pooler_output - expected[0]).abs().max() > 1e-2
