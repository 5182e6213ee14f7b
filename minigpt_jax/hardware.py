"""What data sheets say about devices and what was measured, to plan a run and for its MFU."""

import re
from collections.abc import Mapping
from typing import NamedTuple

# Dense peak without sparsity, FLOP/s in bf16 (V100 and T4: fp16), of what JAX counts as one device.
# The names are words of JAX's `device_kind`; of several that fit, the first counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "GB300": 2500e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "RTX 6000 Ada": 364e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
    # Google calls them v5e, v5p and v6e.
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}

# Bytes per second of the memory of such devices; some come with two kinds of memory.
MEMORY_BANDWIDTH = {
    "A100.*80GB": 2.04e12,
    "A100": 1.56e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "H200": 4.8e12,
    "B200": 8.0e12,
    "B300": 8.0e12,
    "GB200": 8.0e12,
    "GB300": 8.0e12,
    "L40S": 0.864e12,
    "L4": 0.3e12,
    "A10G": 0.6e12,
    "A10": 0.6e12,
    "RTX 5090": 1.79e12,
    "RTX 4090": 1.01e12,
    "RTX 3090": 0.936e12,
    "RTX 6000 Ada": 0.96e12,
    "V100": 0.9e12,
    "T4": 0.32e12,
    "MI300X": 5.3e12,
}


class Accelerator(NamedTuple):
    """A device that a run can be planned for."""

    name: str  # in PEAK_FLOPS
    memory: float  # bytes

    @property
    def peak_flops(self) -> float:
        """FLOP/s in bf16."""
        return PEAK_FLOPS[self.name]


ACCELERATORS = {
    "a100-40gb": Accelerator("A100", 40e9),
    "a100-80gb": Accelerator("A100", 80e9),
    "h100": Accelerator("H100", 80e9),
    "h200": Accelerator("H200", 141e9),
    "b200": Accelerator("B200", 180e9),
    "l40s": Accelerator("L40S", 48e9),
    "l4": Accelerator("L4", 24e9),
    "a10g": Accelerator("A10G", 24e9),
    "rtx4090": Accelerator("RTX 4090", 24e9),
    "rtx3090": Accelerator("RTX 3090", 24e9),
}
# Every device of ACCELERATORS has this CUDA compute capability or a newer one.
MIN_COMPUTE_CAPABILITY = "8.0"
# The first digits of Ampere's compute capability: the first NVIDIA GPUs that multiply bfloat16.
AMPERE = 8


class Measurement(NamedTuple):
    """How fast one device trained GPT-2 124M with rows of 1,024 tokens."""

    dtype: str
    rows: int  # of a micro-batch
    tokens_per_second: int
    peak_flops: float  # FLOP/s: of the data sheet, for a CPU those of a large matmul at that time


# Only what docs/log.md holds, by the names of ACCELERATORS and "cpu".
MEASUREMENTS = {
    # "the training step on one H200", beside its rivals.
    "h200": Measurement("bfloat16", 32, 529_630, PEAK_FLOPS["H200"]),
    # "the update in place", beside the matmul of the same run.
    "cpu": Measurement("float32", 1, 123, 166e9),
}


class Device(NamedTuple):
    """What decides in which precision and by which kernels a device computes."""

    # "cpu", "gpu" or "tpu".
    platform: str
    # "9.0" on an H100, "gfx90a" on an AMD GPU, "" elsewhere.
    compute_capability: str = ""

    @property
    def generation(self) -> int | None:
        """The first digits of the compute capability, None if this is no NVIDIA GPU."""
        major = self.compute_capability.partition(".")[0]
        return int(major) if major.isdecimal() else None

    @property
    def is_ampere_or_newer(self) -> bool:
        """Whether this is an NVIDIA GPU that cuDNN's fused attention supports."""
        return self.generation is not None and self.generation >= AMPERE

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 is faster than float32: not on a CPU, and not on a V100 or T4."""
        is_older = self.generation is not None and self.generation < AMPERE
        return self.platform != "cpu" and not is_older


def this_device() -> Device:
    """The first device of this machine."""
    # Imported here, so that `python -m minigpt_jax.plan --help` does not wait for JAX.
    import jax

    device = jax.devices()[0]
    return Device(device.platform, str(getattr(device, "compute_capability", "")))


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s in bf16 of a device of JAX's `device_kind`; None where it is unknown (a CPU)."""
    name = _name_in(PEAK_FLOPS, device_kind)
    return PEAK_FLOPS[name] if name else None


def memory_bandwidth(device_kind: str) -> float | None:
    """Bytes per second of the memory of such a device, or None."""
    name = _name_in(MEMORY_BANDWIDTH, device_kind)
    return MEMORY_BANDWIDTH[name] if name else None


def is_accelerator(card: str, device_kind: str) -> bool:
    """Whether JAX's `device_kind` is the `card` of ACCELERATORS."""
    # "a100-40gb": JAX calls it "NVIDIA A100-SXM4-40GB".
    size = card.partition("-")[2].upper()
    name = _name_in(PEAK_FLOPS, device_kind)
    return ACCELERATORS[card].name == name and size in device_kind


def _name_in(table: Mapping[str, float], device_kind: str) -> str | None:
    """The first name of `table` that is in JAX's `device_kind`, as whole words."""
    return next((name for name in table if re.search(rf"\b{name}\b", device_kind)), None)


def resolve_compute_dtype(name: str = "auto", device: Device | None = None) -> str:
    """`name`, but for "auto": "bfloat16" where `device` multiplies it fast, else "float32".

    `device`: that of this machine by default.
    """
    if name != "auto":
        return name
    return "bfloat16" if (device or this_device()).has_bfloat16 else "float32"
