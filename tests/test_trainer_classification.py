"""transformers' Trainer fits our classifier as its example script does, and what it saves is served by our tools.

The flow is that of transformers' examples/pytorch/image-classification/run_image_classification.py, call by call: Auto
classes, a data set with a transform, a collate function, metrics, `train`, `save_model`, `evaluate`. The one line that
differs: the processor gives `input_ids` where other models have `pixel_values`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imagegpt
from imagegpt.classifier import Classifier
from imagegpt.cli.main import main
from imagegpt.data.records import read_records
from imagegpt.data.sources import open_source
from registering import registered
from training_runs import lit_pictures

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
STEPS = 40


def generated(place: Path) -> tuple[list[Image.Image], list[str]]:
    """Dark cats and light dogs."""
    source = open_source(lit_pictures(place / "generated", 64))
    read = [(source.classes[int(record.label)], picture) for record, picture in read_records(source)]  # type: ignore
    return [picture for _, picture in read], [name for name, _ in read]  # type: ignore


def real(place: Path) -> tuple[list[Image.Image], list[str]]:
    """Aeroplanes, which are before the sky, and frogs, which are not."""
    if not (CIFAR / "train.parquet").exists():
        pytest.skip(f"{CIFAR} is not there")
    pytest.importorskip("pyarrow")
    source = open_source(CIFAR / "train.parquet", limit=700)
    wanted = {source.classes.index(name): name for name in ("airplane", "frog")}
    read = [(wanted.get(int(record.label)), picture) for record, picture in read_records(source)]  # type: ignore
    chosen = [(name, picture) for name, picture in read if name is not None]
    return [picture for _, picture in chosen], [name for name, _ in chosen]  # type: ignore


@pytest.mark.parametrize("pictures_of", [generated, real])
def test_the_example_script(tiny_folder, tmp_path, capsys, pictures_of):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    with registered():
        check_the_example_script(datasets, tiny_folder, tmp_path, capsys, pictures_of)


def check_the_example_script(datasets, tiny_folder, tmp_path, capsys, pictures_of):
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

    images, names = pictures_of(tmp_path)
    labels = sorted(set(names))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    data = datasets.Dataset.from_dict({"image": images, "label": names}, features=features)
    data = data.train_test_split(0.25, seed=0)
    label2id = {name: str(number) for number, name in enumerate(labels)}
    id2label = {str(number): name for number, name in enumerate(labels)}

    config = AutoConfig.from_pretrained(
        tiny_folder,
        num_labels=len(labels),
        label2id=label2id,
        id2label=id2label,
        finetuning_task="image-classification",
    )
    model = AutoModelForImageClassification.from_pretrained(tiny_folder, config=config, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(tiny_folder)
    assert isinstance(model, imagegpt.ImageGPTForImageClassification)

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in batch["image"]]
        return {**batch, "input_ids": processor(pictures, return_tensors="pt")["input_ids"]}

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([example["input_ids"] for example in examples])
        return {"input_ids": ids, "labels": torch.tensor([example["label"] for example in examples])}

    def compute_metrics(found: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(found.predictions, axis=1) == found.label_ids).mean())}

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        remove_unused_columns=False,
        max_steps=STEPS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=STEPS // 2,
        save_strategy="steps",
        save_steps=STEPS // 2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        seed=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=data["train"].with_transform(transform),
        eval_dataset=data["test"].with_transform(transform),
        compute_metrics=compute_metrics,
        processing_class=processor,
    )
    before = trainer.evaluate()
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    metrics = trainer.evaluate()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert metrics["eval_loss"] < before["eval_loss"]
    assert metrics["eval_accuracy"] > 0.7

    # What was saved, opened by others.
    out = tmp_path / "out"
    paths = []
    for number, row in enumerate(data["test"]):
        path = tmp_path / "judged" / labels[row["label"]] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
        paths.append(str(path))
    paths.sort()
    truth = np.array([labels.index(Path(path).parent.name) for path in paths])
    classifier = Classifier.from_pretrained(out, device="cpu")
    expected = classifier.predict(paths)
    assert classifier.classes == tuple(labels)
    assert (expected.argmax(1) == truth).mean() == pytest.approx(metrics["eval_accuracy"])
    loss = -np.log(expected[np.arange(len(truth)), truth]).mean()
    assert loss == pytest.approx(metrics["eval_loss"], abs=1e-4)

    told = transformers.pipeline("image-classification", model=str(out), device="cpu")(paths, top_k=2)
    found = [[{entry["label"]: entry["score"] for entry in one}[name] for name in labels] for one in told]  # type: ignore
    np.testing.assert_allclose(found, expected, atol=1e-5)

    capsys.readouterr()
    assert main(["classify", *paths, "--model", str(out), "--device", "cpu", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["images"]
    np.testing.assert_allclose([[entry["classes"][name] for name in labels] for entry in entries], expected, atol=1e-5)

    # And fine-tuned on: its classifier goes on where Trainer left it.
    run = ["--out", str(tmp_path / "run"), "--device", "cpu", "--augment", "none", "--batch", "4", "--lr", "1e-30"]
    data_of_run = ["--train", str(tmp_path / "judged"), "--validation", str(tmp_path / "judged"), "--steps", "1"]
    assert main(["finetune", "--model", str(out), *run, *data_of_run, "--generative", "0"]) == 0
    [note] = json.loads((tmp_path / "run" / "model" / "training.json").read_text())["notes"]
    assert "tells these classes already and goes on" in note
