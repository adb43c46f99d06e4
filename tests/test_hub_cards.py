"""Model cards: they say what the files say, and what people wrote stays."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from imagegpt import Classifier, ImageGPT
from imagegpt.checkpoint import fingerprint
from imagegpt.hub.transfer import make_card, save_card

ID = "me/tiny"


@pytest.fixture
def classifier(tiny_model, folder):
    """A model folder with a class head."""
    import torch

    from imagegpt.model.heads import ImageGPTForImageClassification

    torch.manual_seed(0)
    labels = {0: "cat", 1: "a|b <i>", 2: "dog"}
    config = type(tiny_model.config)(**{**tiny_model.config.to_dict(), "id2label": labels})
    ImageGPTForImageClassification(config).save_pretrained(folder)
    return folder


def told(folder, name, **record):
    (folder / name).write_text(json.dumps(record))


def test_a_card_says_what_the_files_say(folder):
    told(folder, "training.json", steps=7, seconds=3.14159, recipe={"lr": 0.25, "augment": "flip", "init": None})
    told(folder, "evaluation.json", pictures=12, top1=0.8123456789, confusion=[[1]], nothing=None)
    text, made = make_card(folder, ID)
    assert made
    for row in ("layers, width, heads | 2, 32, 2", "grid | 8 x 8", "lr | 0.25", "steps | 7", "top1 | 0.812346"):
        assert f"| {row} |" in text
    parameters = sum(p.numel() for p in ImageGPT.from_pretrained(folder).model.parameters())
    assert f"| parameters | {parameters:,} |" in text
    assert f"`{fingerprint(folder)}`" in text
    assert "None" not in text.partition("## Licence")[0] and "confusion" not in text
    data = ModelCard(text).data
    assert (data.get("library_name"), data.get("pipeline_tag"), data.get("license")) == (
        "imagegpt",
        "unconditional-image-generation",
        None,
    )


def run_code(text, folder):
    """What a card tells people to do, with the folder in the Hub's place."""
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 4
    exec(code.replace(f'"{ID}"', repr(str(folder))), {})


def test_the_code_of_a_card_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9), "red").save("photo.jpg")
    run_code(make_card(folder, ID)[0], folder)
    assert Image.open("sample.png").size == (8, 8)
    told(folder, "config.json", **json.loads((folder / "config.json").read_text()), is_causal=False)
    run_code(make_card(folder, ID)[0], folder)
    assert capsys.readouterr().out == "(1, 32)\n"


def test_the_code_of_a_classifiers_card_runs(classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9), "red").save("photo.jpg")
    run_code(make_card(classifier, ID)[0], classifier)
    assert "'cat'" in capsys.readouterr().out


def test_the_card_of_a_classifier(classifier):
    text, _ = make_card(classifier, ID)
    assert r"cat, a\|b \<i>, dog." in text
    assert ModelCard(text).data.get("pipeline_tag") == "image-classification"
    assert list(Classifier.from_pretrained(classifier).classes) == ["cat", "a|b <i>", "dog"]


def test_the_card_of_a_bidirectional_model(folder):
    config = json.loads((folder / "config.json").read_text())
    told(folder, "config.json", **config, is_causal=False)
    text, _ = make_card(folder, ID)
    assert "| bidirectional (BERT) |" in text
    assert "model.features(" in text


def test_figures_of_another_model_are_left_out(folder):
    told(folder, "evaluation.json", fingerprint="0" * 16, top1=0.99)
    told(folder, "evaluation-pets.json", fingerprint=fingerprint(folder), top1=0.5)
    with pytest.warns(UserWarning, match=r"evaluation\.json is left out: it is about another model"):
        text, _ = make_card(folder, ID)
    assert "| top1 | 0.5 |" in text and "0.99" not in text


def test_licences_are_told_or_left_out(folder):
    assert ModelCard(make_card(folder, ID, "mit")[0]).data.get("license") == "mit"
    (folder / "LICENSE").write_text("do what you like")
    data = ModelCard(make_card(folder, ID)[0]).data
    assert (data.get("license"), data.get("license_link")) == ("other", "LICENSE")


def test_a_card_of_ours_is_made_anew_and_keeps_its_licence(folder):
    save_card(folder, ID, "mit")
    told(folder, "evaluation.json", top1=0.25)
    text, made = save_card(folder, ID)
    assert made and "| top1 | 0.25 |" in text
    assert ModelCard(text).data.get("license") == "mit"
    assert (folder / "README.md").read_text() == text


@pytest.mark.parametrize("change", [lambda text: text.replace("# tiny", "# Tiny"), lambda text: "# Mine\n"])
def test_a_card_that_somebody_wrote_or_changed_is_kept(folder, change):
    text = change(save_card(folder, ID)[0])
    (folder / "README.md").write_text(text)
    assert save_card(folder, ID) == (text, False)
    assert (folder / "README.md").read_text() == text
