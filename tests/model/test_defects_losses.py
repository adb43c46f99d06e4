"""Table of defects: loss, full-image loss, gradient accumulation.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defects import OURS, TOLERANCE, K, T, defect, random_ids, with_start
from reference import network

IDS = random_ids(2, 12)


def log_probs(logits):
    """In float64, by the definition."""
    logits = logits.detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nll(model, ids):
    """The paper's loss: the mean over all ids of rows of T, after SOS, from logits in numpy and float64."""
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    losses = []
    for row in ids.numpy():
        inputs = np.concatenate([[K], row[:-1]])
        log_p = log_probs(torch.from_numpy(network.logits(state, model.config.to_dict(), inputs)))
        losses += [-log_p[t, row[t]] for t in range(len(row))]
    return np.mean(losses)


def shifted_loss(logits, counted):
    """The mean over (row, t, id): the loss of an id at position t."""
    log_p = log_probs(logits)
    return np.mean([-log_p[row, t, label] for row, t, label in counted])


# Loss.


@defect("loss", "the loss of a bfloat16 model is computed in bfloat16")
def test_loss_of_half_precision_is_computed_in_float32(family):
    output = family.make().bfloat16()(IDS, labels=IDS)
    assert output.logits.dtype == torch.bfloat16
    expected = shifted_loss(output.logits.float(), [(r, t, IDS[r, t + 1]) for r in range(2) for t in range(11)])
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@defect("loss", "padding is counted")
def test_padding_is_not_counted(family, side):
    model, ids, mask = family.make(), IDS.clone(), torch.ones_like(IDS)
    padding = slice(4) if side == "left" else slice(8, None)
    mask[1, padding] = ids[1, padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # the peer can't find them by itself: another row of the table
    output = model(ids, attention_mask=mask, position_ids=positions, labels=ids)
    counted = [(r, t, ids[r, t + 1]) for r in range(2) for t in range(11) if mask[r, t] and mask[r, t + 1]]
    assert len(counted) == 11 + 7
    assert output.loss.item() == pytest.approx(shifted_loss(output.logits, counted), rel=1e-5)


@defect("loss", "padding is counted")
def test_padding_in_a_batch_of_next_ids_is_not_counted(family):
    model, ids = family.make(), with_start(IDS)
    mask = torch.ones_like(IDS)
    mask[1, 8:] = ids[1, 8:] = 0
    output = model(ids[:, :-1], attention_mask=mask, labels=ids[:, 1:])
    counted = [(r, t, ids[r, t + 1]) for r in range(2) for t in range(12) if t < (12, 7)[r]]
    assert output.loss.item() == pytest.approx(shifted_loss(output.logits, counted), rel=1e-5)


@pytest.mark.parametrize("counted", [None, 0])
@defect("loss", "all labels ignored: NaN")
def test_all_labels_ignored(family, counted):
    model = family.make()
    items = {} if counted is None else {"num_items_in_batch": torch.tensor(counted)}  # as Trainer counts them
    loss = model(IDS, labels=torch.full_like(IDS, -100), **items).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in model.parameters())


@defect("loss", "SOS as a label is an IndexError", peer="IndexError: Target 16 is out of bounds")
def test_start_as_a_label_is_ignored(family):
    model, labels = family.make(), IDS.clone()
    labels[0, 5] = labels[1, 11] = K
    output = model(IDS, labels=labels)
    counted = [(r, t, labels[r, t + 1]) for r in range(2) for t in range(11) if labels[r, t + 1] != K]
    assert len(counted) == 20
    assert output.loss.item() == pytest.approx(shifted_loss(output.logits, counted), rel=1e-5)


@pytest.mark.parametrize("with_labels", [False, True])
@defect("loss", "shift_labels is ignored", peer="AssertionError|AttributeError: 'NoneType'")
def test_shift_labels(family, with_labels):
    model, targets = family.make(), random_ids(2, 12, seed=1)
    targets[0, :3] = -100
    output = model(IDS, shift_labels=targets, **({"labels": IDS} if with_labels else {}))
    counted = [(r, t, targets[r, t]) for r in range(2) for t in range(12) if targets[r, t] >= 0]
    assert output.loss.item() == pytest.approx(shifted_loss(output.logits, counted), rel=1e-5)


# Full-image loss.


@defect("full-image loss", "no call gives the loss of all T ids", peer="AttributeError: .*image_loss")
def test_image_loss(family):
    model, ids = family.make(), random_ids()
    assert model.image_loss(ids).item() == pytest.approx(nll(model, ids), rel=1e-5)


@defect("full-image loss", "T inputs give the loss of T - 1 ids")
def test_labels_that_are_the_next_ids(family):
    model, ids = family.make(), random_ids()
    loss = model(with_start(ids)[:, :-1], labels=ids).loss
    assert loss.item() == pytest.approx(nll(model, ids), rel=1e-5)


@defect("full-image loss", "SOS + T ids is an IndexError", peer="IndexError: index out of range in self")
def test_start_and_all_ids(family):
    model, ids = family.make(), random_ids()
    assert ids.shape[1] == model.config.n_positions
    whole = with_start(ids)
    assert model(whole, labels=whole).loss.item() == pytest.approx(nll(model, ids), rel=1e-5)


def test_the_documented_form_still_gives_the_loss_of_the_ids_after_the_first():
    model, ids = OURS.make(), random_ids()
    output = model(ids, labels=ids)
    counted = [(r, t, ids[r, t + 1]) for r in range(2) for t in range(T - 1)]
    assert output.loss.item() == pytest.approx(shifted_loss(output.logits, counted), rel=1e-5)


# Gradient accumulation.


def generative_rows(form):
    """Four rows; of the documented form some labels are ignored, a different number in each row."""
    ids = random_ids(4, T, seed=2)
    if form == "next ids":
        return [{"input_ids": with_start(row[None])[0, :-1], "labels": row} for row in ids]
    if form == "start and all ids":
        return [{"input_ids": row, "labels": row} for row in with_start(ids)]
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids]
    for number, row in enumerate(rows):
        row["labels"][: 5 * number] = -100
    return rows


def class_rows():
    return [{"input_ids": row, "labels": torch.tensor(n % 3)} for n, row in enumerate(random_ids(4, T, seed=2))]


def one_update(model, rows, batch, folder):
    """The loss that Trainer logs for one update on four rows, and the gradient it follows."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=4 // batch,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return loss, {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def by_hand(model, rows, targets):
    """Loss and gradient of the mean over all targets that count, without Trainer."""
    logits = model(torch.stack([row["input_ids"] for row in rows])[:, :T]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(got, expected):
    assert got[0] == pytest.approx(expected[0], abs=1e-4)  # Trainer rounds what it logs
    for name, gradient in expected[1].items():
        torch.testing.assert_close(got[1][name], gradient, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


STEPS = pytest.mark.parametrize("batch", [1, 2])


@STEPS
@defect("gradient accumulation", "4 x 1 gives 4 times the loss and gradient of a batch of 4")
def test_accumulating_a_generative_loss(family, batch, tmp_path):
    pytest.importorskip("accelerate")
    rows = generative_rows("documented")
    targets = torch.stack([row["labels"] for row in rows])[:, 1:]
    targets = torch.nn.functional.pad(targets, (0, 1), value=-100)
    expected = by_hand(family.make(), rows, targets)
    assert_same(one_update(family.make(), rows, batch, tmp_path), expected)


@STEPS
@defect("gradient accumulation", "4 x 1 gives 4 times the loss and gradient of a batch of 4")
def test_accumulating_a_class_loss(family, batch, tmp_path):
    pytest.importorskip("accelerate")
    rows = class_rows()
    expected = by_hand(family.make("classifier", num_labels=3), rows, torch.stack([row["labels"] for row in rows]))
    assert_same(one_update(family.make("classifier", num_labels=3), rows, batch, tmp_path), expected)


@pytest.mark.parametrize("batch", [1, 4])
@defect("gradient accumulation", "the loss of whole pictures: other ids, or none", peer="AssertionError|IndexError")
def test_trainer_follows_the_loss_of_whole_pictures(family, batch, tmp_path):
    pytest.importorskip("accelerate")
    rows = generative_rows("start and all ids")
    targets = torch.stack([row["labels"] for row in rows])[:, -T:]
    expected = by_hand(family.make(), rows, targets)
    assert_same(one_update(family.make(), rows, batch, tmp_path), expected)


def test_trainer_on_one_batch_of_four_is_the_control(tmp_path):
    pytest.importorskip("accelerate")
    rows = class_rows()
    labels = torch.stack([row["labels"] for row in rows])
    expected = by_hand(OURS.make("classifier", num_labels=3), rows, labels)
    assert_same(one_update(OURS.make("classifier", num_labels=3), rows, 4, tmp_path), expected)
