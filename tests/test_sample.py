"""`python sample.py` as a user meets it: a conversation, one answer, a file, and never a traceback.

The runs are not trained: their weights draw evenly from a few tokens, so that every answer is
known. The conversation in a real terminal is in test_sample_terminal.py.
"""

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigpt_jax import talk
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.program import exit_cleanly
from tests.harness import ROOT
from tests.known_answers import WORDS, make_chat_run, make_text_run

# For a second process, which imports JAX and may compile.
TIMEOUT = 300


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory) -> Path:
    return make_chat_run(tmp_path_factory.mktemp("chat") / "chat")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    return make_text_run(tmp_path_factory.mktemp("text") / "text")


@pytest.fixture
def program(monkeypatch, capsys):
    """The program in this process: arguments -> exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        with pytest.raises(SystemExit) as end:
            exit_cleanly(talk.main)
        return (end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def converse(program, monkeypatch):
    """A conversation in this process: (run, what is typed) -> exit code, stdout, stderr.

    An exception among the lines is raised by `input`, as by Ctrl-C and Ctrl-D.
    """

    def call(run: Path, *typed: str | type[BaseException]) -> tuple[int, str, str]:
        lines = iter(typed)

        def read_line(prompt: str) -> str:
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", read_line)
        return program("--run", str(run), "--max-new-tokens", "8")

    return call


def command(*arguments: str, **environment: str) -> dict:
    """The real program in a second process, as arguments of subprocess."""
    return {
        "args": [sys.executable, str(ROOT / "sample.py"), *arguments],
        "env": os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
    }


# ---- functions


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(**({"prompt": None, "file": None} | given))


def test_the_prompt_comes_from_the_argument_or_the_file(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("Grüße, 世界".encode())
    assert talk.read_prompt(options(prompt="Hi")) == "Hi"
    # An empty prompt is a prompt.
    assert talk.read_prompt(options(prompt="")) == ""
    assert talk.read_prompt(options(file=str(path))) == "Grüße, 世界"


def test_a_prompt_file_that_cannot_be_read_is_refused(tmp_path: Path):
    not_text = tmp_path / "prompt.txt"
    not_text.write_bytes(b"\xff\xfe\xfd")
    for bad in (tmp_path, tmp_path / "nowhere.txt", not_text):
        with pytest.raises(InputError, match=re.escape(f"--file {bad}: cannot be read")):
            talk.read_prompt(options(file=str(bad)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("The river", "The river"),
        ("The river\n", "The river"),
        ("The river\r\n", "The river"),
        ("\ufeffThe river", "The river"),
        ("\ufeffThe river\r\n", "The river"),
        # What is not at an end, or was meant, stays.
        ("one\r\ntwo\n\n", "one\ntwo\n"),
        ("  The river ", "  The river "),
        ("The\ufeff river", "The\ufeff river"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_a_file_and_standard_input_give_the_same_prompt(
    tmp_path: Path, monkeypatch, content: str, text: str
):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content.encode())
    assert talk.read_prompt(options(file=str(path))) == text
    for given in (options(file="-"), options()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert talk.read_prompt(given) == text


def test_standard_input_that_is_not_text_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    with pytest.raises(InputError, match="standard input: cannot be read"):
        talk.read_prompt(options())


def turn(role: str, size: int) -> dict:
    return {"role": role, "content": "x" * size}


def size(messages: list) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize("head", [[], [turn("system", 5)]], ids=["no system", "system"])
def test_the_oldest_turns_are_dropped_whole_until_the_rest_fits(head: list):
    turns = [turn(role, 10) for _ in range(4) for role in ("user", "assistant")]
    messages = [*head, *turns, turn("user", 7)]
    for limit in range(110):
        kept = talk.drop_oldest_turns(messages, limit, size)
        # The system prompt and the last question stay.
        assert kept[: len(head)] == head
        assert kept[-1] == messages[-1]
        # The rest is the end of the conversation, from a question on.
        rest = kept[len(head) :]
        assert rest == messages[len(messages) - len(rest) :]
        assert rest[0]["role"] == "user"
        assert size(kept) <= limit or len(rest) == 1
        # One more turn would not have fit.
        if len(kept) < len(messages):
            assert size([*head, *messages[len(messages) - len(rest) - 2 :]]) > limit
    # The caller's list has not changed.
    assert messages == [*head, *turns, turn("user", 7)]


# ---- one answer


def is_continued(prompt: str, out: str) -> bool:
    """Whether `out` is `prompt` with a continuation by the model of `text_run`."""
    continuation = out.removeprefix(prompt).removesuffix("\n")
    # Half of a character is shown as the replacement character.
    known = continuation != "" and set(continuation) <= {"龘", "\ufffd"}
    return out.startswith(prompt) and out.endswith("\n") and known


def test_one_prompt_is_continued_up_to_the_number_of_tokens(program, text_run: Path):
    asked = ["--run", str(text_run), "--prompt", "Once"]
    code, out, err = program(*asked, "--max-new-tokens", "6")
    assert code == 0
    assert is_continued("Once", out)
    assert f"{text_run}: " in err and "context 64" in err and err.count("\n") == 1
    assert program(*asked, "--max-new-tokens", "0")[:2] == (0, "Once\n")
    # The text ends with the context.
    code, longest, _ = program(*asked, "--max-new-tokens", "100000")
    assert code == 0
    assert len(longest) > len(out)


def test_samples_have_the_seeds_from_the_given_one_on(program, chat_run: Path):
    def answer(*arguments):
        code, out, _ = program(
            "--run", str(chat_run), "--prompt", "Weather?", "--max-new-tokens", "8", *arguments
        )
        assert code == 0
        return out

    three = answer("--num-samples", "3", "--seed", "4")
    samples = re.findall(r"--- sample (\d) \(length\)\n(.*)", three)
    assert [number for number, _ in samples] == ["1", "2", "3"]
    texts = [text for _, text in samples]
    assert len(set(texts)) == 3
    for seed, text in enumerate(texts, 4):
        assert len(text.split()) == 8
        assert set(text.split()) <= set(WORDS)
        assert answer("--seed", str(seed)) == text + "\n"
    stop = texts[0].split()[2]
    assert answer("--seed", "4", "--stop", stop) == texts[0].partition(stop)[0] + "\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--temperature", "-1"], ["temperature -1.0", "0 to 100"]),
        (["--temperature", "nan"], ["temperature nan", "0 to 100"]),
        (["--temperature", "inf"], ["temperature inf"]),
        (["--top-k", "0"], ["top-k 0", "1 to 50261"]),
        (["--top-k", "50262"], ["top-k 50262", "1 to 50261"]),
        (["--top-p", "0"], ["top-p 0", "above 0"]),
        (["--top-p", "1.5"], ["top-p 1.5", "0 to 1"]),
        (["--min-p", "-0.1"], ["min-p -0.1", "0 to 1"]),
        (["--repetition-penalty", "0"], ["repetition penalty 0.0"]),
        (["--seed", "-1"], ["seed -1"]),
        (["--max-new-tokens", "-1"], ["max-new-tokens -1"]),
        (["--num-samples", "0"], ["--num-samples 0", "1 or more"]),
        (["--file", "x.txt"], ["--prompt or --file, not both"]),
        (["--run", "/nowhere/at/all"], ["/nowhere/at/all", "no usable checkpoint"]),
        (["--prompt", ""], ["message is empty"]),
        (["--prompt", "word " * 17_000], ["the prompt has 17", "1 to 16384", "shorten"]),
    ],
)
def test_a_value_out_of_range_ends_in_one_line(
    program, chat_run: Path, arguments: list[str], expected: list[str]
):
    code, out, err = program("--run", str(chat_run), "--prompt", "Hi", *arguments)
    lines = err.splitlines()
    assert code == 2
    assert out == ""
    assert lines[-1].startswith("error: ")
    assert all(words in lines[-1] for words in expected), err
    # At most one more: the line that names the run.
    assert len(lines) <= 2


def test_a_value_that_is_not_a_number_ends_with_the_usage(program):
    code, _, err = program("--temperature", "warm")
    assert code == 2
    assert "usage" in err
    last = err.splitlines()[-1]
    assert "--temperature" in last and "'warm'" in last


def test_without_a_run_one_line_says_what_to_do(program, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = program("--prompt", "Hi")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: no trained run in runs/: train one first .*make demo.*\n", err)


def test_standard_input_is_the_prompt_of_the_newest_run(program, text_run: Path, monkeypatch):
    # As an ASCII locale has it.
    given = io.TextIOWrapper(io.BytesIO("Grüße\n".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", given)
    code, out, err = program("--runs", str(text_run.parent), "--max-new-tokens", "4")
    assert code == 0
    assert err.startswith(str(text_run))
    assert is_continued("Grüße", out)


def test_the_program_ends_silently_when_its_output_is_closed(chat_run: Path, tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("Weather?")
    how = command("--run", str(chat_run), "--file", str(path), "--max-new-tokens", "16000")
    process = subprocess.Popen(
        **how, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    assert process.stdout.read(1) == b" "
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=TIMEOUT) == 0
    # The line that names the run, and no more.
    assert err.count("\n") == 1 and err.startswith(str(chat_run))


# ---- a conversation


@pytest.mark.parametrize("end", ["/quit", KeyboardInterrupt, EOFError])
def test_quit_ctrl_c_and_ctrl_d_at_the_prompt_end_the_conversation(converse, text_run, end):
    code, out, err = converse(text_run, end)
    assert code == 0
    assert "/help lists the commands." in out
    assert "Traceback" not in err


def test_a_pretrained_model_completes_each_line(converse, text_run: Path):
    code, out, _ = converse(text_run, "Once", "Twice", "/quit")
    assert code == 0
    assert "This model was not finetuned: it completes your text." in out
    twice, once = out.splitlines()[:-3:-1]
    assert is_continued("Once", once + "\n") and is_continued("Twice", twice + "\n")


def test_a_message_that_does_not_fit_does_not_end_the_conversation(converse, text_run: Path):
    code, out, _ = converse(text_run, "word " * 100, "Once", "/quit")
    assert code == 0
    assert "(the prompt has 101 tokens, this model takes 1 to 64: shorten it)" in out
    assert is_continued("Once", out.splitlines()[-1] + "\n")


def test_a_question_that_is_asked_twice_gets_two_answers(converse, chat_run: Path):
    _, out, _ = converse(chat_run, "Weather?", "/reset", "Weather?", "/quit")
    first, _, second = out.partition("A new conversation begins.")
    assert first.splitlines()[-1].split() != second.split()
    assert set(second.split()) <= set(WORDS)
