"""How many GPUs there are, counted before JAX starts: how it starts depends on the number."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# What hides GPUs from a process. Slurm sets one of them, or all alike.
HIDING_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_GPU_PLATFORMS = {"cuda", "gpu", "rocm"}


class Gpus(NamedTuple):
    """Numbers of GPUs. 0 means none, or that they cannot be counted."""

    machine: int
    # Those that this process may use.
    visible: int


def count_gpus(environment: Mapping[str, str], root: Path = Path("/")) -> Gpus:
    """The NVIDIA GPUs of this machine, and those that `environment` does not hide.

    `root`: where /dev and /proc are. Other GPUs count only where `environment` lists them.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not _GPU_PLATFORMS & set(platforms.split(",")):
        return Gpus(0, 0)
    # A container has the device files of its own GPUs, while /proc may list all. A machine that
    # has just started has no device files until a program uses a GPU.
    machine = len(list((root / "dev").glob("nvidia[0-9]*")))
    machine = machine or len(list((root / "proc/driver/nvidia/gpus").glob("*")))
    listed = next((environment[name] for name in HIDING_VARIABLES if name in environment), None)
    if listed is None:
        # With --gpu-bind=none Slurm sets no list. A control group then hides what is not allotted.
        allotted = environment.get("SLURM_GPUS_ON_NODE", "")
        visible = int(allotted) if allotted.isdecimal() else machine
        return Gpus(machine, min(visible, machine) if machine else visible)
    if "MIG-" in listed:
        # A process can use one part of a divided GPU. The other parts are not counted.
        return Gpus(0, 1)
    return Gpus(machine, _usable(listed, machine))


def _usable(listed: str, machine: int) -> int:
    """How many of the GPUs in the list exist. As in CUDA, the first that does not ends the list."""
    for number, name in enumerate(listed.split(",")):
        name = name.strip()
        exists = name.isdecimal() and (int(name) < machine or not machine)
        if not exists and not name.startswith("GPU-"):
            return number
    return listed.count(",") + 1
