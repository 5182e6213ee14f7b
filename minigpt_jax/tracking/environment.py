"""Describe what a process runs on, so that a run can be repeated: environment.json of a run."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
CHECKOUT = Path(__file__).parents[2]
# Seconds after which a git command counts as failed.
GIT_TIMEOUT = 10


def describe_environment() -> dict:
    """Start time, command line, versions, devices and the commit of the code, ready for JSON."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "code": describe_code(CHECKOUT),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def describe_code(checkout: Path) -> dict:
    """Commit of a git checkout, and whether tracked files differ from it; None outside of git."""
    commit = None
    modified = None
    # Git also searches the parent folders: for an installed package it would find the commit of
    # another project.
    if (checkout / ".git").exists():
        commit = _git(checkout, "rev-parse", "HEAD")
    if commit:
        changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
        modified = None if changes is None else bool(changes)
    return {"commit": commit, "modified": modified}


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None if git is missing or does not trust the checkout."""
    # Without optional locks, the command does not disturb a git command that the user runs.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # Some distributions ship packages without their metadata.
        return None
