"""The folder of the fault tests: data, an uninterrupted run, and runs to damage copies of."""

import re
import shutil
import signal
import time
from functools import cached_property
from pathlib import Path

import numpy as np

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl, sha256
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import load_tokenizer
from tests.harness import final_arrays, history, made_once, run_train

HORIZON = 20
SAVE_EVERY = 3
VOCAB = 512
# A checkpoint of so few ids is written in no time.
SMALL = {
    "model__vocab_size": VOCAB,
    "model__embed": 16,
    "eval__samples": 0,
    "horizon__steps": HORIZON,
    "save__every": SAVE_EVERY,
    "eval__every": 7,
}
# What differs from the plain recipe: GPT-2 with AdamW.
RECIPES = {
    "plain": {},
    "modern": {"config": "configs/quickstart_modern.py"},
    "muon": {"optimizer__kind": "muon"},
}


def write_numbers(folder: Path, shard_tokens: int = 4000, tokens: int = 9000) -> Path:
    """Shards of ids below VOCAB, each close to the one before; several files per split."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", tokens), ("val", tokens // 10)):
        writer = ShardWriter(folder, split, shard_tokens=shard_tokens)
        ids = np.cumsum(draw.integers(1, 4, count)) % VOCAB
        writer.append(ids.astype(np.uint16))
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=VOCAB,
        context=None,
        source="numbers",
    )
    return folder


class Workspace:
    """Where faults happen to runs. What is in `shared` is made once for all test processes."""

    def __init__(self, folder: Path, shared: Path, recipe: str = "plain"):
        self.folder = folder
        self.recipe = recipe
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True)
        self._shared = shared / recipe
        numbers = made_once(shared / "numbers", lambda folder: write_numbers(folder / "tokens"))
        self.numbers = numbers / "tokens"
        self.expected = self._finished("expected")

    def settings(self, name: str, **changes) -> dict:
        """Arguments of harness.command for a run of this workspace."""
        settings = {"runs": self.runs, "name": name, "data__folder": self.numbers}
        return settings | SMALL | RECIPES[self.recipe] | changes

    def _finished(self, name: str, **changes) -> Path:
        """A run that nothing happens to."""

        def make(runs: Path) -> None:
            done = run_train(**self.settings(name, **{"runs": runs} | changes))
            assert done.returncode == 0, done.stdout

        return made_once(self._shared / name, make) / name

    @cached_property
    def seconds(self) -> float:
        """Wall time of an uninterrupted run whose programs are compiled."""
        start = time.monotonic()
        done = run_train(**self.settings("timed"))
        assert done.returncode == 0, done.stdout
        return time.monotonic() - start

    @cached_property
    def two_checkpoints(self) -> Path:
        """A run that was killed before its last save: its newest checkpoints are 15 and 18."""

        def make(runs: Path) -> None:
            done = run_train(
                **self.settings("two_checkpoints", runs=runs),
                environment={"MINIGPT_FAILPOINT": f"before_save@{HORIZON}:kill"},
            )
            assert done.returncode == -signal.SIGKILL, done.stdout
            assert checkpoint_steps(runs / "two_checkpoints")[-2:] == [15, 18]

        return made_once(self._shared / "two_checkpoints", make) / "two_checkpoints"

    @cached_property
    def every_checkpoint(self) -> Path:
        """A finished run that kept the checkpoint of every step."""
        return self._finished("every_checkpoint", save__every=1, save__keep=HORIZON)

    def copy(self, run: Path, name: str) -> Path:
        """A copy that a test may damage."""
        return Path(shutil.copytree(run, self.runs / name))

    def differences(self, run: Path) -> list[str]:
        """How a finished run differs from the uninterrupted one, and what it did not remove."""
        found = []
        if history(run) != history(self.expected):
            found.append("other losses or batches")
        if evaluated_steps(run) != evaluated_steps(self.expected):
            found.append("other evaluations")
        if final_arrays(run) != final_arrays(self.expected):
            found.append("other final arrays")
        leftovers = [p.name for p in (run / "checkpoints").iterdir() if not p.name.isdecimal()]
        leftovers += [p.name for p in run.glob("*.tmp")]
        if leftovers:
            found.append(f"left behind: {', '.join(leftovers)}")
        return found


def fingerprint(folder: Path) -> dict[str, tuple]:
    """Mode and SHA-256 of everything in `folder`: equal only if nothing was changed."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else sha256(path) if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def evaluated_steps(run: Path) -> list[int]:
    """The steps with an evaluation on record."""
    return [record["step"] for record in read_jsonl(run / "evaluations.jsonl")]


def resumed_step(output: str) -> int:
    """The step from which a run resumed, by its own output; 0 for fresh weights."""
    match = re.search(r"resumes from step (\d+)", output)
    return int(match[1]) if match else 0
