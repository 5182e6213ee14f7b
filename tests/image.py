"""The Dockerfile as data, and its steps in a folder and a virtual environment of their own.

A container runtime is not needed: /app, /runs and /data are folders in a temporary one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.harness import ENVIRONMENT, ROOT

FOLDERS = ("app", "runs", "data")
# As root only; the other folders are made without it.
AS_ROOT = "useradd "


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its word, and what follows on one line."""

    word: str
    rest: str

    def words(self) -> list[str]:
        """The program and the arguments of an instruction in exec form."""
        return json.loads(self.rest[self.rest.index("[") :])


def instructions() -> list[Instruction]:
    """The instructions of the Dockerfile, in order."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    whole = re.sub(r"\\\n", "", text)
    return [Instruction(*line.split(maxsplit=1)) for line in whole.splitlines() if line]


def only(word: str) -> Instruction:
    """The one instruction with this word."""
    (found,) = (instruction for instruction in instructions() if instruction.word == word)
    return found


def copied() -> list[str]:
    """What the COPY instructions copy, relative to the repository."""
    copies = (i.rest.split() for i in instructions() if i.word == "COPY")
    return [source for *sources, _ in copies for source in sources]


def variables() -> dict[str, str]:
    """What ENV and ARG set."""
    pairs = " ".join(i.rest for i in instructions() if i.word in ("ENV", "ARG"))
    return dict(pair.split("=", 1) for pair in pairs.split())


def inside(text: str, folder: Path) -> str:
    """`text` with the image's folders in `folder`."""
    return re.sub(rf"(?<![\w.])/({'|'.join(FOLDERS)})(?!\w)", rf"{folder}/\1", text)


def new_environment(folder: Path, python: str = "python3") -> dict[str, str]:
    """A virtual environment in `folder`, of `python` if it starts; variables that lead to it."""
    found = shutil.which(python)
    if not found or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        found = sys.executable
    subprocess.run([found, "-m", "venv", folder], check=True)
    clean = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    return clean | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


def build(folder: Path) -> dict[str, str]:
    """Do the steps of the Dockerfile in `folder`; returns the variables for its commands."""
    for name in FOLDERS:
        (folder / name).mkdir()
    base = only("FROM").rest.removesuffix("-slim").replace(":", "")
    environment = new_environment(folder / "venv", base) | variables()
    environment["HOME"] = str(folder)
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = folder / "app" / target
                if (ROOT / source).is_dir():
                    hidden = shutil.ignore_patterns("__pycache__", ".*")
                    shutil.copytree(ROOT / source, place, ignore=hidden)
                else:
                    shutil.copy(ROOT / source, place)
        elif word == "RUN" and not rest.startswith(AS_ROOT):
            subprocess.run(
                ["sh", "-c", inside(rest, folder)], cwd=folder / "app", env=environment, check=True
            )
    return environment
