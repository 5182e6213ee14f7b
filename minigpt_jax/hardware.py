"""What the vendors' data sheets say about devices, for planning a run and for its MFU."""

import re
from typing import NamedTuple

# Dense peak without sparsity, FLOP/s in bf16 (V100 and T4: fp16). The names are words of JAX's
# `device_kind`.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


class Accelerator(NamedTuple):
    """A device that a run can be planned for."""

    memory: float  # bytes
    peak_flops: float  # FLOP/s in bf16


ACCELERATORS = {
    "a100-40gb": Accelerator(40e9, PEAK_FLOPS["A100"]),
    "a100-80gb": Accelerator(80e9, PEAK_FLOPS["A100"]),
    "h100": Accelerator(80e9, PEAK_FLOPS["H100"]),
    "h200": Accelerator(141e9, PEAK_FLOPS["H200"]),
    "b200": Accelerator(180e9, PEAK_FLOPS["B200"]),
    "l40s": Accelerator(48e9, PEAK_FLOPS["L40S"]),
    "l4": Accelerator(24e9, PEAK_FLOPS["L4"]),
    "a10g": Accelerator(24e9, PEAK_FLOPS["A10G"]),
    "rtx4090": Accelerator(24e9, PEAK_FLOPS["RTX 4090"]),
    "rtx3090": Accelerator(24e9, PEAK_FLOPS["RTX 3090"]),
}
# Every device of ACCELERATORS has this CUDA compute capability or a newer one.
MIN_COMPUTE_CAPABILITY = "8.0"


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s in bf16 of a device of JAX's `device_kind`; None where it is unknown (a CPU)."""
    for name, peak in PEAK_FLOPS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return peak
    return None
