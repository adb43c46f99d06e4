"""The table of GPUs, and what is measured where it does not help."""

from __future__ import annotations

import pytest

from imagegpt.engine.accelerators import (
    ACCELERATORS,
    NAMES,
    PRECISIONS,
    accelerator,
    by_device_name,
    peak_flops,
)
from imagegpt.engine.machine import free_memory
from imagegpt.errors import InputError


def test_every_row_is_whole_and_says_where_it_is_from():
    for name, row in ACCELERATORS.items():
        assert row.name == name and row.source and row.words
        assert set(row.flops) <= set(PRECISIONS) and {"fp32", "fp16"} <= set(row.flops)
        assert 10**10 < row.memory < 10**12 and 10**11 < row.bandwidth < 10**13 and 10**10 < row.link < 10**12
        rates = [row.flops[kind] for kind in PRECISIONS if kind in row.flops]
        assert rates == sorted(rates)  # a narrower type is never slower


def test_figures_of_the_data_sheets():
    assert accelerator("h200").memory == 141e9
    assert accelerator("h100").rate("bf16") == 989e12  # 1,979 with sparsity
    assert accelerator("a100-80").rate("tf32") == 156e12
    assert accelerator("v100").rate("fp16") == 125e12
    assert accelerator("mi300x").bandwidth == 5.3e12


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("Tesla T4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce RTX 3060", None),
        ("NVIDIA L40", None),
    ],
)
def test_devices_are_known_by_what_torch_calls_them(told, name):
    found = by_device_name(told)
    assert (found and found.name) == name


def test_unknown_names_and_precisions_are_refused():
    with pytest.raises(InputError, match="known are a100-40, a100-80, b200"):
        accelerator("h9000")
    with pytest.raises(InputError, match="no fast bf16; it has fp32, fp16"):
        accelerator("v100").rate("bf16")


def test_the_cpu_is_this_machine():
    found = accelerator("cpu", "fp32", 64, 32)
    assert "cpu" in NAMES
    assert 0 < found.memory <= 1.5 * free_memory()
    assert found.rate("fp32") > 1e6
    with pytest.raises(InputError):
        found.rate("bf16")


class Cuda:
    type = "cuda"


@pytest.mark.parametrize(
    ("name", "precision", "expected"), [("NVIDIA H200", "bf16", 989e12), ("Tesla T4", "fp32", 8.1e12)]
)
def test_a_known_gpu_s_peak_is_the_table_s(name, precision, expected, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(Cuda(), precision) == expected


@pytest.mark.parametrize(("name", "precision"), [("NVIDIA GeForce RTX 3060", "fp16"), ("Tesla V100-SXM2-32GB", "bf16")])
def test_other_peaks_are_measured_on_the_device(name, precision, monkeypatch):
    import torch

    from imagegpt.engine import machine

    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(machine, "matmul_rate", lambda *given, **named: asked.append(given) or 7.0)
    device = Cuda()
    assert peak_flops(device, precision, 8, 16) == 7.0
    assert asked == [(8, 16, {"fp16": "float16", "bf16": "bfloat16"}[precision], device)]


def test_the_cpu_s_peak_is_measured():
    import torch

    assert peak_flops(torch.device("cpu"), "fp32", 64, 32) > 1e6
