"""The table of devices: JAX's name of a device finds its peak rate, and no other."""

import pytest

from minigpt_jax.hardware import (
    ACCELERATORS,
    PEAK_FLOPS,
    is_accelerator,
    memory_bandwidth,
    peak_flops,
)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA B300 SXM6 AC", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA GB300", 2500e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("AMD Instinct MI300X", 1307e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("cpu", None),
        ("", None),
        ("NVIDIA of the year 2100", None),
    ],
)
def test_the_peak_rate_is_that_of_the_device(kind: str, peak: float | None):
    assert peak_flops(kind) == peak


def test_each_device_of_the_table_is_found_by_its_own_name():
    assert {name: peak_flops(f"NVIDIA {name} SXM") for name in PEAK_FLOPS} == PEAK_FLOPS


@pytest.mark.parametrize(
    ("kind", "card"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("cpu", None),
        ("NVIDIA of the year 2100", None),
    ],
)
def test_a_device_is_the_card_of_its_name_and_size_and_no_other(kind: str, card: str | None):
    found = [name for name in ACCELERATORS if is_accelerator(name, kind)]
    assert found == ([card] if card else [])


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-80GB", 2.04e12),
        ("NVIDIA A100-SXM4-40GB", 1.56e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA L4", 0.3e12),
        ("cpu", None),
    ],
)
def test_the_bandwidth_is_that_of_the_device_and_its_kind_of_memory(kind, bandwidth):
    assert memory_bandwidth(kind) == bandwidth
