"""Two processes that divide a model compute what one does. They are started once, and look at every case."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_torch_greater_or_equal

from imagegpt import (
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from imagegpt.model import parallel
from imagegpt.model.parallel import DividedEmbedding, DividedHead, DividedInputs, DividedOutputs

SIZE = 2
NUMBERS = {
    "vocab_size": 17,
    "n_positions": 24,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
CASES = {
    "plain": {},
    "eager attention": {"attn_implementation": "eager"},
    "tied head": {"tie_word_embeddings": True},
    "cross-attention": {"add_cross_attention": True},
    "pruned heads": {"pruned_heads": {0: [0, 2], 1: []}},
    "another MLP": {"n_inner": 50, "activation_function": "relu"},
}
REFUSED = {
    "heads": ({"n_head": 1}, "layer 0 has 1 attention heads: tp_size must divide that, and 2 does not"),
    "pruned": ({"pruned_heads": {1: [3]}}, "layer 1 has 3 attention heads"),
    "MLP": ({"n_inner": 51}, r"h\.0\.mlp\.c_fc\.weight has 51 outputs"),
}
needs_processes = pytest.mark.skipif(
    not dist.is_available() or torch.backends.mps.is_available() or not is_torch_greater_or_equal("2.12"),
    reason="processes that meet on the CPU, with torch 2.12 or newer",
)


def whole_tensors(model, attribute="data"):
    """Each parameter's attribute, put together again where it is divided."""
    values = [getattr(parameter, attribute) for parameter in model.parameters()]
    return [(value.full_tensor() if hasattr(value, "full_tensor") else value).clone() for value in values]


def look(model):
    """All that is compared."""
    config = model.config
    ids = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(0))
    states = torch.randn(2, 5, config.n_embd, generator=torch.Generator().manual_seed(1))
    extra = {"encoder_hidden_states": states} if config.add_cross_attention else {}
    padding = torch.ones_like(ids)
    padding[1, :4] = 0
    seen = {}
    with torch.no_grad():
        seen["logits"] = model(ids, **extra).logits
        seen["padding"] = model(ids, attention_mask=padding, **extra).logits[padding == 1]
        seen["attentions"] = model(ids, output_attentions=True, **extra).attentions
        if not config.pruned_heads:
            heads = torch.linspace(0, 2, 2 * config.n_head).view(2, -1)
            seen["head mask"] = model(ids, head_mask=heads, **extra).logits
    seen |= paint(model, ids[:1, :3], {name: value[:1] for name, value in extra.items()})
    return seen | train(model, ids, extra)


def paint(model, ids, extra):
    greedy = {"max_new_tokens": 8, "do_sample": False, **extra}
    scored = model.generate(ids, return_dict_in_generate=True, output_scores=True, **greedy)
    torch.manual_seed(0)
    samples = model.generate(ids, max_new_tokens=8, do_sample=True, num_return_sequences=3, **extra)
    found = {"greedy": scored.sequences, "greedy scores": scored.scores, "samples": samples}
    found["beams"] = model.generate(ids, num_beams=3, **greedy)
    if not extra:  # a static cache has no place for an encoder's keys
        greedy["cache_implementation"] = "static"
        found["static cache"] = model.generate(ids, **greedy)
        found["static cache, in pieces"] = model.generate(ids, prefill_chunk_size=2, **greedy)
    return found


def train(model, ids, extra):
    model.train()
    found = {}
    for name in ("", " with checkpointing"):
        if name:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(ids, labels=ids, **extra).loss
        loss.backward()
        found |= {f"loss{name}": loss, f"gradients{name}": whole_tensors(model, "grad")}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    torch.optim.SGD(model.parameters(), 0.1).step()
    found["norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return found | {"after a step": whole_tensors(model)}


def worker(folder):
    """One of the processes: look at every case, divided and whole, and save what is seen."""
    from transformers.distributed import DistributedConfig

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=SIZE)
    divided = {"distributed_config": DistributedConfig(tp_size=SIZE)}
    seen = {}
    for case, numbers in CASES.items():
        options = {"attn_implementation": numbers.get("attn_implementation", "sdpa")}
        load = ImageGPTForCausalImageModeling.from_pretrained
        model = load(folder / case, **options, **divided)
        parts = {name: (p.numel(), p.to_local().numel()) for name, p in model.named_parameters()}
        seen[case] = look(model), look(load(folder / case, **options)), parts
        model.save_pretrained(folder / f"{case} saved")
        dist.barrier()
        again = load(folder / f"{case} saved", **options)
        seen[case, "saved"] = whole_tensors(model), whole_tensors(again)
    seen["others"] = others(folder, divided)
    seen["refused"] = {case: refusal(folder / case, divided) for case in REFUSED}
    torch.save(seen, folder / f"seen{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def others(folder, divided):
    """Other classes and other ways to ask, on the plain model: what the divided and the whole model give."""
    ids = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(0))
    plain, found = folder / "plain", {}
    for options in (divided, {}):
        trunk = ImageGPTModel.from_pretrained(plain, **options)(ids).last_hidden_state
        classifier = ImageGPTForImageClassification.from_pretrained(folder / "classifier", **options)
        classes = classifier(ids, labels=torch.tensor([0, 2]))
        classes.loss.backward()
        found.setdefault("trunk", []).append(trunk)
        found.setdefault("classes", []).append([classes.logits, *whole_tensors(classifier, "grad")])
    dropping = ImageGPTForCausalImageModeling.from_pretrained(plain, resid_pdrop=0.3, attn_pdrop=0.3, **divided).train()
    torch.manual_seed(0)
    found["loss with dropout"] = dropping(ids, labels=ids).loss
    auto = ImageGPTForCausalImageModeling.from_pretrained(plain, tp_plan="auto")
    whole = ImageGPTForCausalImageModeling.from_pretrained(plain)(ids).logits
    compiled = torch.compile(auto, backend="eager", fullgraph=True)
    found |= {"auto": [auto(ids).logits, whole], "compiled": [compiled(ids).logits, whole]}
    for name, call in {
        "prune": lambda: auto.prune_heads({0: [0]}),
        "range": lambda: auto(torch.tensor([[17]])),
        "negative": lambda: auto(torch.tensor([[-1]])),
    }.items():
        try:
            found[name] = call()
        except (IndexError, ValueError) as error:
            found[name] = str(error)
    return found


def refusal(folder, divided):
    try:
        ImageGPTForCausalImageModeling.from_pretrained(folder, **divided)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the processes saw, first the first one's."""
    folder = tmp_path_factory.mktemp("parallel")
    for case, numbers in {**CASES, **{case: numbers for case, (numbers, _) in REFUSED.items()}}.items():
        save(ImageGPTForCausalImageModeling, numbers, folder / case)
    save(ImageGPTForImageClassification, {"num_labels": 3}, folder / "classifier")
    processes = []
    for rank in range(SIZE):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, str(folder)]
        processes.append(
            subprocess.Popen(
                command, env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    told = [process.communicate(timeout=400)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(told)
    return [torch.load(folder / f"seen{rank}.pt", weights_only=False) for rank in range(SIZE)]


def save(kind, numbers, folder):
    torch.manual_seed(0)
    numbers = {name: value for name, value in numbers.items() if name != "attn_implementation"}
    model = kind(ImageGPTConfig(**{**NUMBERS, **numbers}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)


@needs_processes
@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(seen, case):
    for process in seen:
        divided, whole, _ = process[case]
        torch.testing.assert_close(divided, whole, atol=1e-5, rtol=1e-5)


@needs_processes
@pytest.mark.parametrize("case", CASES)
def test_a_divided_model_is_saved_whole(seen, case):
    for process in seen:
        divided, again = process[case, "saved"]
        assert len(divided) > 10
        assert all(torch.equal(*pair) for pair in zip(divided, again, strict=True))


@needs_processes
@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half_of_every_weight_of_the_blocks(seen, case):
    parts = seen[0][case][2]
    halves = [sizes for name, sizes in parts.items() if name.endswith(".weight") and ".ln_" not in f".{name}"]
    assert len(halves) >= 10
    assert all(part <= (whole + 32) / 2 for whole, part in halves if whole != 24 * 32)
    biases = [sizes for name, sizes in parts.items() if name.endswith(("c_attn.bias", "c_fc.bias", "q_attn.bias"))]
    assert all(2 * part == whole for whole, part in biases)


@needs_processes
@pytest.mark.parametrize("what", ["trunk", "classes", "auto", "compiled"])
def test_other_ways_to_have_a_divided_model_agree_too(seen, what):
    for process in seen:
        torch.testing.assert_close(*process["others"][what], atol=1e-5, rtol=1e-5)


@needs_processes
def test_processes_that_are_seeded_alike_drop_alike(seen):
    first, second = (process["others"]["loss with dropout"] for process in seen)
    assert first == second


@needs_processes
@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_divided_is_refused(seen, case):
    for process in seen:
        assert re.search(REFUSED[case][1], process["refused"][case])


@needs_processes
def test_divided_models_refuse_pruning_and_ids_that_are_not_there(seen):
    for process in seen:
        assert process["others"]["prune"] == "Prune heads before a model is divided among processes or quantised."
        assert process["others"]["range"] == "input_ids must be 0..16; these are 17..17."
        assert process["others"]["negative"] == "input_ids must be 0..16; these are -1..-1."


@pytest.mark.parametrize("style", [DividedOutputs(), DividedInputs()])
def test_layers_of_a_quantised_model_are_refused(style):
    with pytest.raises(ValueError, match=r"h\.0\.weight is no Conv1D's, .* a quantised model runs in one process"):
        style.validate_param(torch.nn.Linear(4, 4), "weight", SimpleNamespace(size=lambda: 2), "h.0.weight")


def test_packed_layers_need_a_torch_that_can_join_them(monkeypatch):
    style, layer, mesh = DividedOutputs(parts=3), Conv1D(12, 4), SimpleNamespace(size=lambda: 2)
    style.validate_param(layer, "weight", mesh)
    monkeypatch.setattr(parallel, "is_torch_greater_or_equal", lambda version: False)
    with pytest.raises(ValueError, match=r"^A model is divided by torch 2\.12 or newer; this is "):
        style.validate_param(layer, "weight", mesh)
    DividedOutputs().validate_param(layer, "weight", mesh)


@pytest.mark.parametrize("style", [DividedEmbedding(), DividedHead()])
def test_every_process_needs_a_row(style):
    for rows, processes, fits in ((17, 2, True), (5, 3, True), (5, 4, False), (3, 3, True), (3, 4, False)):
        table, mesh = torch.nn.Embedding(rows, 2), SimpleNamespace(size=lambda processes=processes: processes)
        if fits:
            style.validate_param(table, "weight", mesh, "wte.weight")
        else:
            with pytest.raises(ValueError, match=f"wte.weight: {rows} rows are too few for {processes} processes"):
                style.validate_param(table, "weight", mesh, "wte.weight")


@pytest.mark.parametrize("cross", [False, True])
def test_the_plan_names_every_parameter_once_and_nothing_else(cross):
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**NUMBERS, add_cross_attention=cross))
    modules = {name.replace(".0", ".*").replace(".1", ".*") for name, _ in model.named_modules()}
    owners = {name.rpartition(".")[0].replace(".0", ".*").replace(".1", ".*") for name, _ in model.named_parameters()}
    assert owners <= model.tp_plan.keys() <= modules


def test_the_plan_is_no_part_of_the_file(tmp_path):
    config = ImageGPTConfig(**NUMBERS, add_cross_attention=True)
    config.save_pretrained(tmp_path)
    assert "plan" not in (tmp_path / "config.json").read_text()
    assert ImageGPTConfig.from_pretrained(tmp_path).base_model_tp_plan == config.base_model_tp_plan


def test_models_without_cross_attention_have_no_plan_for_it():
    assert not [name for name in ImageGPTConfig(**NUMBERS).base_model_tp_plan if "cross" in name]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
