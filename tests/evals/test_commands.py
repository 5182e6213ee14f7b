"""The command line of the evaluations: help without JAX, and wrong input ends in one line."""

import json

import pytest

from minigpt_jax.evals.__main__ import main
from tests.in_process import run_main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["poetry"], ["poetry"]),
        ([], ["required"]),
        (["hellaswag", "--run", "RUN", "--limit", "0"], ["'0'"]),
        (["hellaswag", "--run", "NONE"], ["no usable checkpoint"]),
        (["hellaswag", "--run", "RUN", "--source", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["bits", "--run", "RUN", "--source", "NONE"], ["manifest.json"]),
        (["answers", "--run", "RUN", "--source", "PAIRS"], ["not finetuned"]),
        (["answers", "--run", "RUN", "--source", "PAIRS", "--show", "-1"], ["'-1'"]),
        (
            ["lm-eval", "--run", "RUN", "--tasks", "none", "--include-path", "NONE"],
            ["no such folder"],
        ),
    ],
)
def test_wrong_input_ends_in_one_line(base_run, tmp_path, arguments, words):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "completion": "Because."}) + "\n")
    paths = {"RUN": base_run, "NONE": tmp_path / "none", "PAIRS": pairs}
    done = run_main(main, *(paths.get(argument, argument) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    *usage, last = done.stderr.strip().splitlines()
    assert all(word in last for word in words), done.stderr
    assert not usage or usage[0].startswith("usage:")
