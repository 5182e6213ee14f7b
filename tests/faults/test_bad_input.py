"""What a user can get wrong, all in one table: each ends in one clear line that names it, exit code 2, no traceback.

Run with `-s` to read them as a user would.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sample
from minigpt_jax.errors import exit_cleanly
from tests.faults.scenarios import Place
from tests.harness import ENVIRONMENT, ROOT, command

TRAIN_SHARD = "train_000000.npy"


# ---- config: what is wrong, and a word that the line must have

CONFIGS: list[tuple[dict, str]] = [
    ({"model__wdith": 3}, "model.wdith"),
    ({"data__batch": "four"}, "data.batch"),
    ({"data__batch": 0}, "from 1 to"),
    ({"data__batch": -4}, "from 1 to"),
    ({"schedule__peak": "nan"}, "schedule.peak"),
    ({"schedule__peak": -1.0}, "from 0 to 10"),
    ({"optimizer__clip": 0.0}, "optimizer.clip"),
    ({"optimizer__eps": 0.0}, "optimizer.eps"),
    ({"optimizer__b1": 1.5}, "from 0 to 1"),
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
    ({"data__batch": 6, "devices": 4}, "4"),
    ({"model__context": 10_000}, "a row needs 10001"),
    ({"data__folder": "/nowhere"}, "/nowhere"),
    ({"init_from": "/nowhere"}, "/nowhere"),
    ({"model__vocab_size": 100}, "vocabulary ends at 99"),
]


def resave(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, array, allow_pickle=array.dtype == object)


def as_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.arange(9))


IDS = np.arange(4000) % 512
SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "not a readable .npy"),
    "header only": (
        lambda p: p.write_bytes(p.read_bytes()[:128]),
        "found 128 bytes, expected more",
    ),
    "truncated": (
        lambda p: p.write_bytes(p.read_bytes()[:-100]),
        "found 8028 bytes, expected more",
    ),
    "trailing bytes": (lambda p: p.write_bytes(p.read_bytes() + b"xx"), "2 bytes after the array"),
    "an .npz": (as_archive, "not a readable .npy"),
    "pickled objects": (resave(np.array([{}, None], dtype=object)), "not a readable .npy"),
    "two dimensions": (
        resave(IDS.astype(np.uint16).reshape(2, -1)),
        "expected one dimension of uint16",
    ),
    "float32": (resave(IDS.astype(np.float32)), "found <f4"),
    "int64": (resave(IDS.astype(np.int64)), "found <i8"),
    "int16": (resave(IDS.astype(np.int16)), "found <i2"),
    "big-endian": (resave(IDS.astype(">u2")), "found >u2"),
    "an id of 512": (resave(np.append(IDS[:-1], 512).astype(np.uint16)), "holds id 512"),
    "shorter than the manifest says": (
        resave(IDS[:100].astype(np.uint16)),
        "manifest.json says 4000",
    ),
    "missing": (lambda p: p.unlink(), "missing"),
    "other content": (resave(IDS[::-1].astype(np.uint16)), "sha256"),
}

SAMPLES: list[tuple[list[str], str]] = [
    (["--temperature", "-1"], "temperature"),
    (["--temperature", "nan"], "temperature"),
    (["--temperature", "inf"], "temperature"),
    (["--top-k", "0"], "top-k"),
    (["--top-k", "513"], "512"),
    (["--top-p", "0"], "top-p"),
    (["--top-p", "1.5"], "top-p"),
    (["--max-new-tokens", "-1"], "max-new-tokens"),
    (["--num-samples", "0"], "num"),
    (["--run", "/nowhere"], "/nowhere"),
    (["--file", "/nowhere"], "/nowhere"),
]

TOOLS: list[tuple[list[str], str]] = [
    (["data_tools.fineweb", "--source", "/nowhere.parquet", "--out", "OUT"], "/nowhere.parquet"),
    (["data_tools.fineweb", "--source", "BROKEN.jsonl", "--out", "OUT"], "document"),
    (
        ["data_tools.fineweb", "--source", "GOOD.jsonl", "--out", "OUT", "--text-column", "body"],
        "body",
    ),
    (["data_tools.instruct", "--source", "/nowhere.jsonl", "--out", "OUT"], "/nowhere.jsonl"),
    (
        ["data_tools.instruct", "--source", "BROKEN.jsonl", "--out", "OUT", "--strict"],
        "BROKEN.jsonl",
    ),
    (
        ["data_tools.instruct", "--source", "GOOD.jsonl", "--out", "OUT", "--context", "1"],
        "--context 1",
    ),
    (["data_tools.instruct", "--source", "GOOD.jsonl", "--out", "NUMBERS"], "NUMBERS"),
    (["data_tools.index", "/nowhere"], "/nowhere"),
    (["data_tools.index", "."], "no .npy file"),
]


def refused(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture, shown: str, devices: int = 1
) -> None:
    """Run it: it must refuse in one line."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT | flags,
        input="",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line_of_refusal(done.returncode, done.stdout, done.stderr, word, capsys, shown)


def line_of_refusal(
    code: object, out: str, err: str, word: str, capsys: pytest.CaptureFixture, shown: str
) -> None:
    """Check the line, and show it."""
    lines = [line for line in err.splitlines() if not line.startswith(("usage:", "  "))]
    with capsys.disabled():
        print(f"\n{shown}\n    {lines[-1] if lines else out}", end="")
    assert code == 2, out + err
    assert "Traceback" not in err + out
    assert "error: " in lines[-1] and word in lines[-1], err
    assert len(lines) <= 2, err  # the line itself; a program that names its model first says two


@pytest.mark.parametrize(
    ("wrong", "word"),
    CONFIGS,
    ids=lambda value: (
        "_".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_config(place: Place, wrong: dict, word: str, capsys):
    shown = " ".join(f"--config.{name.replace('__', '.')}={value}" for name, value in wrong.items())
    settings = place.settings("never") | wrong
    refused(
        command(**{k: v for k, v in settings.items() if k != "devices"}),
        word,
        capsys,
        shown,
        devices=wrong.get("devices", 1),
    )
    assert not (place.runs / "never" / "metrics.jsonl").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "wrong.py: has no get_config()"),
        ("x = 1", "wrong.py: has no get_config()"),
        ("def get_config(:", "wrong.py: failed when it was read: SyntaxError: invalid syntax"),
        ("raise RuntimeError('no')", "wrong.py: failed when it was read: RuntimeError: no"),
        ("def get_config(): return 3", "must return a ConfigDict, found int"),
    ],
)
def test_config_file(tmp_path: Path, content: str, word: str, capsys):
    (tmp_path / "wrong.py").write_text(content)
    refused(
        [sys.executable, "train.py", "--config", str(tmp_path / "wrong.py")],
        word,
        capsys,
        f"a config file that holds {content!r}",
    )


def test_no_config_file(tmp_path: Path, capsys):
    refused(
        [sys.executable, "train.py", "--config", str(tmp_path / "none.py")],
        "none.py",
        capsys,
        "a config file that is not there",
    )


@pytest.mark.parametrize("what", SHARDS)
def test_shard(place: Place, tmp_path: Path, what: str, capsys):
    damage, word = SHARDS[what]
    folder = Path(shutil.copytree(place.numbers, tmp_path / "numbers"))
    damage(folder / TRAIN_SHARD)
    refused(
        command(**place.settings("never") | {"data__folder": folder}),
        word,
        capsys,
        f"a shard: {what}",
    )


@pytest.mark.parametrize("wrong", SAMPLES, ids=lambda value: " ".join(value[0]))
def test_sampling(place: Place, wrong: tuple[list[str], str], capsys, monkeypatch):
    """In this process, which has JAX already: what it says and how it ends is all that counts here."""
    prompt = [] if "--file" in wrong[0] else ["--prompt", "a"]
    monkeypatch.setattr(
        sys, "argv", ["sample.py", "--run", str(place.expected), *prompt, *wrong[0]]
    )
    with pytest.raises(SystemExit) as end:
        exit_cleanly(sample.main)
    said = capsys.readouterr()
    line_of_refusal(
        end.value.code, said.out, said.err, wrong[1], capsys, f"sample.py {' '.join(wrong[0])}"
    )


@pytest.mark.parametrize("wrong", TOOLS, ids=lambda value: " ".join(value[0]))
def test_tool(place: Place, tmp_path: Path, wrong: tuple[list[str], str], capsys):
    (tmp_path / "BROKEN.jsonl").write_text('{"text": \n{"prompt": 3}\n')
    (tmp_path / "GOOD.jsonl").write_text(
        json.dumps({"text": "a", "prompt": "a", "completion": "b"}) + "\n"
    )
    names = {"OUT": tmp_path / "out", "NUMBERS": place.numbers} | {
        name: tmp_path / name for name in ("BROKEN.jsonl", "GOOD.jsonl")
    }
    arguments = [
        str(names.get(argument, tmp_path if argument == "." else argument)) for argument in wrong[0]
    ]
    word = str(names.get(wrong[1], wrong[1]))
    refused([sys.executable, "-m", *arguments], word, capsys, " ".join(wrong[0]))
