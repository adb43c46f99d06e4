"""The log of a run: lines that a kill or a resumed run leave right, and trackers."""

from __future__ import annotations

import json
import sys
import types

import pytest

from imagegpt.errors import MissingExtra
from imagegpt.train.journal import LOG, Journal, read_journal


def written(folder, *steps):
    journal = Journal(folder, None, {})
    for step in steps:
        journal.write(step, kind="train", loss=step / 8)
    return journal


def steps(folder):
    return [record["step"] for record in read_journal(folder / LOG)]


def test_each_record_is_a_line_of_json(tmp_path):
    journal = Journal(tmp_path, None, {})
    journal.write(1, kind="train", loss=0.1)
    journal.write(1, kind="validation", codec="palette of 16", nats_per_token=2.5)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines == read_journal(tmp_path / LOG)
    assert lines == [
        {"step": 1, "kind": "train", "loss": 0.1},
        {"step": 1, "kind": "validation", "codec": "palette of 16", "nats_per_token": 2.5},
    ]


def test_records_are_on_the_disk_at_once_and_a_new_journal_adds_to_them(tmp_path):
    written(tmp_path, 1, 2)
    assert steps(tmp_path) == [1, 2]
    written(tmp_path, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_rewind_leaves_out_later_records(tmp_path):
    journal = written(tmp_path, 5, 10, 10, 15, 20)
    journal.rewind(10)
    assert steps(tmp_path) == [5, 10, 10]
    journal.write(15, kind="train")
    assert steps(tmp_path) == [5, 10, 10, 15]
    assert read_journal(tmp_path / LOG)[0] == {"step": 5, "kind": "train", "loss": 0.625}


def test_rewind_leaves_out_a_line_that_a_kill_cut_off(tmp_path):
    journal = written(tmp_path, 1, 2)
    for cut in ('{"step": 2, "loss": 1.', '{"step": 2', "{"):
        with (tmp_path / LOG).open("a") as file:
            file.write(cut)
        assert steps(tmp_path) == [1, 2]
        journal.rewind(2)
        journal.write(2, kind="again")
        assert steps(tmp_path) == [1, 2, 2]
        journal.rewind(1)
        journal.write(2)


def test_lines_that_are_no_records_are_left_out(tmp_path):
    (tmp_path / LOG).write_text('7\n[1]\n{"loss": 1}\n{"step": "x"}\n\n{"step": 3}\n')
    assert read_journal(tmp_path / LOG) == [{"step": 3}]


def test_a_journal_that_is_not_there_yet_is_rewound(tmp_path):
    Journal(tmp_path, None, {}).rewind(0)
    assert not (tmp_path / LOG).exists()


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_missing_tracker_names_the_extra(tmp_path, monkeypatch, tracker):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(MissingExtra) as told:
        Journal(tmp_path, tracker, {})
    assert str(told.value) == f'--tracker {tracker} needs {tracker}: pip install "imagegpt[track]".'


RECORD = {"kind": "train", "loss": 0.5, "count": 3, "codec": "palette"}
NUMBERS = {"loss": 0.5, "count": 3.0}


def test_numbers_reach_tensorboard(tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append(("folder", folder, purge_step))

        def add_text(self, name, text):
            told.append((name, json.loads(text)))

        def add_scalar(self, name, value, step):
            told.append((step, name, value))

        def flush(self):
            told.append("flush")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Journal(tmp_path, "tensorboard", {"lr": 0.1}, step=6).write(7, **RECORD)
    start = [("folder", str(tmp_path / "tensorboard"), 7), ("recipe", {"lr": 0.1})]
    assert told == [*start, *((7, name, value) for name, value in NUMBERS.items()), "flush"]
    assert read_journal(tmp_path / LOG) == [{"step": 7, **RECORD}]


def test_numbers_reach_trackio(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(log=lambda numbers, step: told.append((step, numbers)))
    module = types.ModuleType("trackio")
    module.init = lambda **settings: told.append(settings) or run
    monkeypatch.setitem(sys.modules, "trackio", module)
    Journal(tmp_path, "trackio", {"lr": 0.1}).write(7, **RECORD)
    start = {"project": "imagegpt", "name": tmp_path.name, "config": {"lr": 0.1}, "resume": "allow"}
    assert told == [start, (7, NUMBERS)]
    assert read_journal(tmp_path / LOG) == [{"step": 7, **RECORD}]
