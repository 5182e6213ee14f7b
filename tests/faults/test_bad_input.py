"""What a user can get wrong, in tables: each ends in one clear line that names it.

The tables are checked in this process; a few real commands prove the exit code, the line on stderr
and that there is no traceback. Run with `-s` to read the lines as a user would.
"""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax import talk
from minigpt_jax.errors import InputError
from minigpt_jax.preflight import check_inputs
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.token_stream import open_splits
from tests.faults.workspace import VOCAB, Workspace
from tests.harness import ENVIRONMENT, ROOT, arguments, command, train_here

# ---- configs: what is wrong, and a word of the message. This process has four devices.

CONFIGS: list[tuple[dict, str]] = [
    ({"model__wdith": 3}, "model.wdith"),
    ({"data__batch": "four"}, "data.batch"),
    ({"data__batch": 0}, "from 1 to"),
    ({"data__batch": -4}, "from 1 to"),
    ({"schedule__peak": "nan"}, "schedule.peak"),
    ({"schedule__peak": -1.0}, "from 0 to 10"),
    ({"optimizer__clip": 0.0}, "optimizer.clip"),
    ({"optimizer__eps": 0.0}, "optimizer.eps"),
    ({"optimizer__b1": 1.5}, "from 0 to 0.9999"),
    ({"horizon__steps": -5}, "horizon.steps"),
    ({"horizon__steps": 0}, "exactly one of steps, tokens and epochs"),
    ({"horizon__tokens": 1000}, "steps and tokens"),
    ({"schedule__warmup": 21}, "longer than the whole run of 20 steps"),
    ({"schedule__kind": "sine"}, "one of cosine, wsd, linear, constant"),
    ({"schedule__floor": 0.5}, "above schedule.peak"),
    ({"model__heads": 3}, "multiple of model.heads 3"),
    ({"model__dropout": "nan"}, "model.dropout"),
    ({"compute__dtype": "float16"}, "auto, float32, bfloat16"),
    ({"loss__chunk": 0}, "loss.chunk"),
    ({"save__keep": 0}, "save.keep"),
    ({"seed": -1}, "seed"),
    ({"name": "a/b"}, "plain folder name"),
    ({"mesh__data": 3}, "mesh data=3"),
    ({"mesh__data": 0}, "mesh"),
    ({"mesh__tensor": 2, "mesh__data": 4}, "does not fit"),
    ({"data__micro_batch": 3}, "micro"),
    ({"data__batch": 6}, "4"),
    ({"model__context": 10_000}, "a row needs 10001"),
    ({"data__folder": "/nowhere"}, "/nowhere"),
    ({"init_from": "/nowhere"}, "/nowhere"),
    ({"model__vocab_size": 100}, "vocabulary ends at 99"),
]
QUICKSTART = """
from configs.quickstart import get_config as quickstart
def get_config():
    c = quickstart().unlock()
"""
CONFIG_FILES: list[tuple[str, str]] = [
    ("", "wrong.py: has no get_config()"),
    ("x = 1", "wrong.py: has no get_config()"),
    ("def get_config(:", "wrong.py: failed when it was read: SyntaxError: invalid syntax"),
    ("raise RuntimeError('no')", "wrong.py: failed when it was read: RuntimeError: no"),
    ("def get_config(): raise SystemExit('no')", "failed when it was read: SystemExit: no"),
    ("def get_config(): return 3", "must return a ConfigDict, found int"),
    (f"{QUICKSTART}    c[3] = 4\n    return c", "the name of a field must be a text"),
    (f"{QUICKSTART}    c.data = {{1: 2}}\n    return c", "the name of a field must be a text"),
]


def overrides(changes: dict) -> str:
    return " ".join(
        f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()
    )


def expect_refusal(word: str, work: Callable[[], object]) -> None:
    """`work` must raise InputError with one line that has `word` in it."""
    with pytest.raises(InputError) as refused:
        work()
    message = str(refused.value)
    print(f"error: {message}")
    assert word in message and "\n" not in message


@pytest.mark.parametrize(
    ("changes", "word"), CONFIGS, ids=[overrides(changes) for changes, _ in CONFIGS]
)
def test_a_wrong_config_field_is_refused(workspace: Workspace, changes: dict, word: str):
    settings = workspace.settings("never") | changes
    expect_refusal(word, lambda: train_here(**settings))
    assert not (workspace.runs / "never" / "metrics.jsonl").exists()


def check_config_file(file: Path) -> None:
    # ml_collections loads a config file into one module name, on top of the file before.
    sys.modules.pop("config_config", None)
    with arguments("train.py", "--config", file):
        check_inputs(sys.argv)


@pytest.mark.parametrize(("content", "word"), CONFIG_FILES)
def test_a_wrong_config_file_is_refused(tmp_path: Path, content: str, word: str):
    file = tmp_path / "wrong.py"
    file.write_text(content)
    expect_refusal(word, lambda: check_config_file(file))


def test_a_missing_config_file_is_refused(tmp_path: Path):
    expect_refusal("none.py", lambda: check_config_file(tmp_path / "none.py"))


# ---- shards: what happened to one, and a word of the message

TRAIN_SHARD = "train_000000.npy"
IDS = np.arange(4000) % VOCAB


def save(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, array, allow_pickle=array.dtype == object)


def save_as_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.arange(9))


def cut(end: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:end])


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(0), "not a readable .npy"),
    "header only": (cut(128), "found 128 bytes, expected more"),
    "truncated": (cut(-100), "found 8028 bytes, expected more"),
    "trailing bytes": (lambda p: p.write_bytes(p.read_bytes() + b"xx"), "2 bytes after the array"),
    "an .npz": (save_as_archive, "not a readable .npy"),
    "pickled objects": (save(np.array([{}, None], dtype=object)), "not a readable .npy"),
    "two dimensions": (
        save(IDS.astype(np.uint16).reshape(2, -1)),
        "expected one dimension of uint16",
    ),
    "float32": (save(IDS.astype(np.float32)), "found <f4"),
    "int64": (save(IDS.astype(np.int64)), "found <i8"),
    "int16": (save(IDS.astype(np.int16)), "found <i2"),
    "big-endian": (save(IDS.astype(">u2")), "found >u2"),
    "an id of 512": (save(np.append(IDS[:-1], VOCAB).astype(np.uint16)), "holds id 512"),
    "shorter than in the manifest": (save(IDS[:100].astype(np.uint16)), "manifest.json has 4000"),
    "missing": (lambda p: p.unlink(), "missing"),
    "other content": (save(IDS[::-1].astype(np.uint16)), "sha256"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_damaged_shard_is_refused(workspace: Workspace, tmp_path: Path, case: str):
    damage, word = SHARDS[case]
    folder = Path(shutil.copytree(workspace.numbers, tmp_path / "numbers"))
    damage(folder / TRAIN_SHARD)
    expect_refusal(word, lambda: open_splits(str(folder), VOCAB, 32, packed=False))


# ---- other programs: their arguments, and a word of the line

SAMPLES: list[tuple[str, str]] = [
    ("--temperature -1", "temperature"),
    ("--temperature nan", "temperature"),
    ("--temperature inf", "temperature"),
    ("--top-k 0", "top-k"),
    ("--top-k 513", "512"),
    ("--top-p 0", "top-p"),
    ("--top-p 1.5", "top-p"),
    ("--max-new-tokens -1", "max-new-tokens"),
    ("--num-samples 0", "num"),
    ("--run /nowhere", "/nowhere"),
    ("--file /nowhere", "/nowhere"),
]
# TMP is the test's folder, NUMBERS the workspace's token shards.
TOOLS: list[tuple[str, str]] = [
    ("data_tools.fineweb --source /nowhere.parquet --out TMP/out", "/nowhere.parquet"),
    ("data_tools.fineweb --source TMP/broken.jsonl --out TMP/out --workers 1", "document"),
    (
        "data_tools.fineweb --source TMP/good.jsonl --out TMP/out --workers 1 --text-column body",
        "body",
    ),
    ("data_tools.instruct --source /nowhere.jsonl --out TMP/out", "/nowhere.jsonl"),
    ("data_tools.instruct --source TMP/broken.jsonl --out TMP/out --strict", "TMP/broken.jsonl"),
    ("data_tools.instruct --source TMP/good.jsonl --out TMP/out --context 1", "--context 1"),
    ("data_tools.instruct --source TMP/good.jsonl --out NUMBERS", "NUMBERS"),
    ("data_tools.index /nowhere", "/nowhere"),
    ("data_tools.index TMP", "no .npy file"),
]


def expect_error_line(code: object, out: str, err: str, word: str) -> None:
    """A program ended with code 2 and one line on stderr that has `word` in it."""
    lines = [line for line in err.splitlines() if not line.startswith(("usage:", "  "))]
    assert code == 2, out + err
    assert "Traceback" not in err + out
    assert "error: " in lines[-1] and word in lines[-1], err
    # A program that prints the model's name first prints two.
    assert len(lines) <= 2, err


@pytest.mark.parametrize(("wrong", "word"), SAMPLES, ids=[wrong for wrong, _ in SAMPLES])
def test_a_wrong_argument_of_sample_is_refused(workspace: Workspace, wrong: str, word: str, capsys):
    prompt = [] if "--file" in wrong else ["--prompt", "a"]
    with (
        arguments("sample.py", "--run", workspace.expected, *prompt, *wrong.split()),
        pytest.raises(SystemExit) as end,
    ):
        exit_cleanly(talk.main)
    output = capsys.readouterr()
    expect_error_line(end.value.code, output.out, output.err, word)
    print(output.err)


@pytest.mark.parametrize(("wrong", "word"), TOOLS, ids=[wrong for wrong, _ in TOOLS])
def test_a_wrong_argument_of_a_data_tool_is_refused(
    workspace: Workspace, tmp_path: Path, wrong: str, word: str, capsys
):
    (tmp_path / "broken.jsonl").write_text('{"text": \n{"prompt": 3}\n')
    row = {"text": "a", "prompt": "a", "completion": "b"}
    (tmp_path / "good.jsonl").write_text(json.dumps(row) + "\n")

    def with_paths(text: str) -> str:
        return text.replace("TMP", str(tmp_path)).replace("NUMBERS", str(workspace.numbers))

    module, *argv = with_paths(wrong).split()
    with arguments(module, *argv), pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    output = capsys.readouterr()
    expect_error_line(end.value.code, output.out, output.err, with_paths(word))
    print(output.err)


# ---- the real commands


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"model__wdith": 3}, "model.wdith"), ({"mesh__data": 3}, "mesh data=3")],
    ids=["before JAX is imported", "after"],
)
def test_train_ends_with_code_2_and_one_line(workspace: Workspace, changes: dict, word: str):
    program = command(**workspace.settings("never") | changes)
    expect_error_line(*run_without_input(program), word)


def test_a_data_tool_ends_with_code_2_and_one_line(tmp_path: Path):
    program = [sys.executable, "-m", "data_tools.index", str(tmp_path)]
    expect_error_line(*run_without_input(program), "no .npy file")


def run_without_input(program: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program."""
    done = subprocess.run(
        program,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
