"""`register()`: what transformers' Auto classes and pipelines build before it and after it.

It holds for a whole process, so whatever registers runs in a process of its own: `in_new_process` calls a function of
this file there and hands back what it returns.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import imagegpt

PICTURE = str(Path(__file__).parents[1] / "examples" / "chelsea.jpg")
LABELS = {0: "cat", 1: "rocket", 2: "neither"}

# What builds -> what it builds after register().
BUILT = {
    "AutoConfig": "imagegpt.ImageGPTConfig",
    "AutoFeatureExtractor": "imagegpt.ImageGPTFeatureExtractor",
    "AutoImageProcessor": "imagegpt.ImageGPTImageProcessor",
    "AutoModel": "imagegpt.ImageGPTModel",
    "AutoModelForCausalLM": "imagegpt.ImageGPTForCausalImageModeling",
    "AutoModelForImageClassification": "imagegpt.ImageGPTForImageClassification",
}

# Who wrote the file -> how it names its class.
NAMES: dict[str, dict[str, str]] = {
    "today": {"image_processor_type": "ImageGPTImageProcessor"},
    "today, for PIL": {"image_processor_type": "ImageGPTImageProcessorPil"},
    "4.57, for torchvision": {"image_processor_type": "ImageGPTImageProcessorFast"},
    "4.25, by the old class": {"image_processor_type": "ImageGPTFeatureExtractor"},
    "the Hub's": {"feature_extractor_type": "ImageGPTFeatureExtractor"},
    "no name": {},
}


def in_new_process(function: Any, *arguments: Any) -> Any:
    code = f"import json, test_registration as here; print(json.dumps(here.{function.__name__}(*{arguments!r})))"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# In the other process.


def kind(value: Any) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def built(folder: str, **arguments: Any) -> dict[str, str]:
    """What each Auto class makes of a folder: package and class, or the error."""
    told = {}
    for name in BUILT:
        try:
            told[name] = kind(getattr(transformers, name).from_pretrained(folder, **arguments))
        except Exception as error:
            told[name] = type(error).__name__
    return told


def built_of_codec(folder: str) -> dict[str, str]:
    imagegpt.register()
    return {name: kind(getattr(transformers, name).from_pretrained(folder)) for name in ("AutoConfig", "AutoModel")}


def built_without_registration(folder: str) -> dict[str, str]:
    for name in imagegpt.__all__:
        getattr(imagegpt, name)
    return built(folder)


def built_after_registration(folders: dict[str, str]) -> list[dict[str, dict[str, str]]]:
    """After one call of `register()`, and after another."""
    told = []
    for _ in range(2):
        imagegpt.register()
        told.append({name: built(folder) for name, folder in folders.items()})
    return told


def processors_by_backend(folder: str) -> dict[str, Any]:
    """As where a user asks for a backend, and where torchvision is installed, which is then the default."""
    from transformers.models.auto import image_processing_auto

    said = logging.handlers.BufferingHandler(100)
    logging.getLogger("transformers").addHandler(said)
    imagegpt.register()
    load = transformers.AutoImageProcessor.from_pretrained
    told = {backend: kind(load(folder, backend=backend)) for backend in ("pil", "torchvision", "transformers")}
    image_processing_auto.is_torchvision_available = lambda: True
    told["torchvision is installed"] = kind(load(folder))
    return {"built": told, "warnings": [record.getMessage() for record in said.buffer]}


def answers_of_pipelines(folders: dict[str, str]) -> dict[str, Any]:
    imagegpt.register()
    told = {}
    for name, folder in folders.items():
        classify = transformers.pipeline("image-classification", model=folder)
        extract = transformers.pipeline("image-feature-extraction", model=folder)
        pool = transformers.pipeline("image-feature-extraction", model=folder, pool=True)
        told[name] = {
            "built": [kind(part) for pipe in (classify, extract, pool) for part in (pipe.model, pipe.image_processor)],
            "classes": classify(PICTURE),
            "features": extract(PICTURE),
            "pooled": pool(PICTURE),
            "pooled by the call": extract(PICTURE, pool=True),
            "pooled tensor": pool(PICTURE, return_tensors=True).tolist(),
            "pooled, several": pool([PICTURE, PICTURE]),
        }
    return told


# In this process.


@pytest.fixture(scope="module")
def folders(tiny_model, tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """A classifier's folder, saved by us, and one with the same weights, saved by transformers' own classes."""
    from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

    ours, theirs = (tmp_path_factory.mktemp("saved") / name for name in ("ours", "theirs"))
    numbers = {**tiny_model.config.to_dict(), "id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    torch.manual_seed(0)
    model = imagegpt.ImageGPTForImageClassification(imagegpt.ImageGPTConfig(**numbers))
    model.transformer.load_state_dict(tiny_model.transformer.state_dict())
    model.save_pretrained(ours)
    processor = imagegpt.ImageGPTImageProcessor.from_pretrained(tiny_folder)
    processor.save_pretrained(ours)
    peer = transformers.ImageGPTForImageClassification(transformers.ImageGPTConfig(**numbers))
    peer.load_state_dict(model.state_dict())
    peer.save_pretrained(theirs)
    ImageGPTImageProcessorPil(clusters=processor.clusters, size=dict(processor.size)).save_pretrained(theirs)
    return {"ours": ours, "theirs": theirs}


@pytest.fixture(scope="module")
def renamed_folders(folders, tmp_path_factory) -> dict[str, Path]:
    """transformers' folder, its preprocessor's file as several releases write it."""
    copies = {}
    for author, entries in NAMES.items():
        copy = copies[author] = shutil.copytree(folders["theirs"], tmp_path_factory.mktemp("named") / "folder")
        file = copy / "preprocessor_config.json"
        config = json.loads(file.read_text())
        del config["image_processor_type"]
        file.write_text(json.dumps(config | entries))
    return copies


@pytest.fixture(scope="module")
def registered(tiny_folder, folders, renamed_folders) -> list[dict[str, dict[str, str]]]:
    named = {"generative": tiny_folder, **folders, **renamed_folders}
    return in_new_process(built_after_registration, {name: str(folder) for name, folder in named.items()})


@pytest.fixture(scope="module")
def answers(folders) -> dict[str, Any]:
    return in_new_process(answers_of_pipelines, {name: str(folder) for name, folder in folders.items()})


@pytest.fixture(scope="module")
def expected(folders) -> Any:
    """What transformers' classifier gives, called without pipelines and Auto classes."""
    ids = imagegpt.ImageGPTImageProcessor.from_pretrained(folders["ours"])(PICTURE, return_tensors="pt").input_ids
    peer = transformers.ImageGPTForImageClassification.from_pretrained(folders["theirs"])
    with torch.no_grad():
        return peer(ids, output_hidden_states=True)


def test_import_registers_nothing(folders):
    """transformers has no causal language model of this type, and no feature extractor any more."""
    told = in_new_process(built_without_registration, str(folders["ours"]))
    gone = {"AutoFeatureExtractor", "AutoModelForCausalLM"}
    assert {told.pop(name) for name in gone} == {"ValueError"}
    assert {name.partition(".")[0] for name in told.values()} == {"transformers"}


@pytest.mark.parametrize("folder", ["generative", "ours", "theirs", *NAMES])
def test_auto_classes_build_ours(registered, folder):
    assert registered[0][folder] == BUILT


def test_a_second_call_changes_nothing(registered):
    assert registered[1] == registered[0]


def test_every_backend_is_our_processor(folders):
    """But for the one that is named after transformers, which stays within reach."""
    told = in_new_process(processors_by_backend, str(folders["theirs"]))
    assert told["built"].pop("transformers") == "transformers.ImageGPTImageProcessorPil"
    assert set(told["built"].values()) == {BUILT["AutoImageProcessor"]}
    assert told["warnings"] == []


@pytest.mark.parametrize("folder", ["ours", "theirs"])
def test_pipelines_are_built_of_ours(answers, folder):
    heads = ("AutoModelForImageClassification", "AutoModel", "AutoModel")
    assert answers[folder]["built"] == [BUILT[part] for head in heads for part in (head, "AutoImageProcessor")]


@pytest.mark.parametrize("folder", ["ours", "theirs"])
def test_the_pipeline_classifies(answers, expected, folder):
    scores = {answer["label"]: answer["score"] for answer in answers[folder]["classes"]}
    probabilities = expected.logits[0].softmax(-1).tolist()
    assert scores == pytest.approx(dict(zip(LABELS.values(), probabilities, strict=True)), abs=1e-5)
    assert max(scores.values()) - min(scores.values()) > 0.01


@pytest.mark.parametrize("folder", ["ours", "theirs"])
def test_the_pipeline_gives_features_of_each_id(answers, expected, folder):
    np.testing.assert_allclose(answers[folder]["features"], expected.hidden_states[-1], atol=1e-4)


@pytest.mark.parametrize("folder", ["ours", "theirs"])
@pytest.mark.parametrize("call", ["pooled", "pooled by the call", "pooled tensor", "pooled, several"])
def test_the_pipeline_pools(answers, expected, folder, call):
    mean = expected.hidden_states[-1].mean(1)
    rows = [mean, mean] if "several" in call else mean
    np.testing.assert_allclose(answers[folder][call], np.asarray(rows), atol=1e-4)


def test_a_codec_is_built_too(tiny_vqvae, tmp_path):
    tiny_vqvae.save_pretrained(tmp_path)
    assert in_new_process(built_of_codec, str(tmp_path)) == {
        "AutoConfig": "imagegpt.VQVAEConfig",
        "AutoModel": "imagegpt.VQVAE",
    }
