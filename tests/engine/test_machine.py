from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from imagegpt.engine import machine


@pytest.fixture
def host(monkeypatch):
    """A host with 1000 bytes free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))


@pytest.fixture
def group(tmp_path, monkeypatch, host):
    """Give this process a control group with these files."""

    def put(**files):
        for name, content in files.items():
            (tmp_path / f"memory.{name}").write_text(content)

    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return put


def test_without_a_group_the_host_s_memory_counts(host, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "nothing")
    assert machine.free_memory() == 1000


@pytest.mark.parametrize(
    ("limit", "current", "free"),
    [
        ("max\n", "77\n", 1000),
        ("900\n", "77\n", 823),
        ("5000\n", "77\n", 1000),
        ("900\n", "900\n", 0),
        ("900\n", "950\n", 0),
        ("what?\n", "950\n", 1000),
        ("900\n", "\n", 1000),
    ],
)
def test_a_group_s_limit_counts_too(group, limit, current, free):
    group(max=limit, current=current)
    assert machine.free_memory() == free


def test_a_group_that_does_not_tell_its_use_is_as_none(group):
    group(max="900\n")
    assert machine.free_memory() == 1000


def test_a_device_s_own_memory_counts(group, monkeypatch):
    group(max="900\n", current="77\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {"cuda:1": (55, 99)}[str(device)])
    assert machine.free_memory(torch.device("cuda:1")) == 55
    assert machine.free_memory(torch.device("cpu")) == machine.free_memory(torch.device("mps")) == 823


def test_this_machine_has_some_memory_free():
    assert 0 < machine.free_memory() <= psutil.virtual_memory().total


def test_bandwidth_is_what_a_machine_may_have():
    assert 1e8 < machine.bandwidth(size=1 << 24, repeats=2) < 1e13


def test_bandwidth_is_the_size_over_the_best_time(monkeypatch):
    moments = iter([0, 4, 10, 12, 20, 23])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(moments))
    assert machine.bandwidth(size=1 << 12, repeats=3) == (1 << 12) / 2
