"""What a person meets who runs `python sample.py`: a conversation, one answer, a file, and no traceback whatever happens.

The runs here are untrained, but their last layer is set by hand to draw from a few known tokens, so that every answer is known.
"""

import argparse
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import sample
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB, load_tokenizer

ROOT = Path(__file__).parents[1]
WORDS = [" sun", " rain", " wind", " snow"]


def make_run(folder: Path, vocab_size: int, texts: list[str], context: int) -> Path:
    """A run whose model draws evenly from the tokens of `texts`, whatever it is asked."""
    config = GPTConfig(vocab_size=vocab_size, context=context, layers=1, heads=1, embed=8)
    params = nn.unbox(GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    tokens = [token for text in texts for token in load_tokenizer().encode(text)]
    # The last LayerNorm says (1, 0, 0, ...) at every position, so a token's logit is the first number of its row.
    params["ln_f"] = {"scale": jnp.zeros(8), "bias": jnp.zeros(8).at[0].set(1.0)}
    params["wte"] = params["wte"].at[:, 0].set(-100.0).at[jnp.array(tokens), 0].set(0.0)
    state = TrainState(jnp.int32(1), params, optax.sgd(0.1).init(params))
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(
        state, 1, {"model": asdict(config), "config": {}, "data": "", "validation_loss": None}
    )
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory) -> Path:
    """A finetuned one with room for answers that take their time."""
    return make_run(tmp_path_factory.mktemp("chat") / "chat", CHAT_VOCAB, WORDS, context=16_384)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    """A pretrained one, whose only letter is a Chinese one of two tokens."""
    return make_run(tmp_path_factory.mktemp("text") / "text", TEXT_VOCAB, ["龘"], context=64)


@pytest.fixture
def program(monkeypatch, capsys):
    """The program within this process, which has JAX already: arguments -> exit code, what it wrote and complained."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        with pytest.raises(SystemExit) as end:
            exit_cleanly(sample.main)
        return (end.value.code, *capsys.readouterr())

    return call


def command(*arguments: str, **environment: str) -> dict:
    """What starts the real program, for subprocess."""
    return {
        "args": [sys.executable, str(ROOT / "sample.py"), *arguments],
        "env": os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
    }


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(**({"prompt": None, "file": None, "system": ""} | given))


def words_of(text: str) -> list[str]:
    return text.split()


# ---- functions


def test_the_prompt_comes_from_the_argument_the_file_or_standard_input(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("Grüße, 世界".encode())
    assert sample.read_prompt(options(prompt="Hi")) == "Hi"
    assert sample.read_prompt(options(prompt="")) == ""  # an empty one is one
    assert sample.read_prompt(options(file=str(path))) == "Grüße, 世界"
    for bad in (tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(InputError, match=re.escape(f"--file {bad}: cannot be read")):
            sample.read_prompt(options(file=str(bad)))
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="cannot be read"):
        sample.read_prompt(options(file=str(path)))


def test_the_oldest_turns_go_whole_until_the_rest_fits():
    def turn(role, size):
        return {"role": role, "content": "x" * size}

    def size(messages):
        return sum(len(m["content"]) for m in messages)

    for head in ([], [turn("system", 5)]):
        talk = [
            *head,
            *(turn(role, 10) for _ in range(4) for role in ("user", "assistant")),
            turn("user", 7),
        ]
        for limit in range(0, 110):
            kept = sample.drop_oldest_turns(talk, limit, size)
            assert (
                kept[: len(head)] == head and kept[-1] == talk[-1]
            )  # the system prompt and the question stay
            rest = kept[len(head) :]
            assert (
                rest == talk[len(talk) - len(rest) :] and rest[0]["role"] == "user"
            )  # a suffix, from a question on
            assert size(kept) <= limit or len(rest) == 1
            if len(rest) < len(talk) - len(head):  # no more than necessary was dropped
                assert size([*head, *talk[len(talk) - len(rest) - 2 :]]) > limit
        assert len(talk) == 9 + len(head)  # the caller's list is as it was


def test_a_conversation_is_saved_as_text(tmp_path: Path, capsys):
    path = tmp_path / "talk.txt"
    sample.save(
        [
            {"role": "user", "content": "Grüße 世界\nzwei"},
            {"role": "assistant", "content": " Hello! "},
        ],
        str(path),
    )
    assert path.read_text(encoding="utf-8") == "user: Grüße 世界\nzwei\n\nassistant: Hello!\n"
    assert capsys.readouterr().out == f"Saved to {path}.\n"
    sample.save([], "")
    assert "A file name is missing: /save" in capsys.readouterr().out
    for name in (str(tmp_path), str(tmp_path / "no" / "such" / "folder"), "a\0b"):
        sample.save([], name)
        assert "Could not be saved" in capsys.readouterr().out
    sample.save(
        [{"role": "user", "content": "cut \udcff off"}], str(path)
    )  # what a terminal sends that is no UTF-8
    assert "cut" in path.read_text(encoding="utf-8")


# ---- one answer


def test_one_prompt_is_continued_and_the_length_is_kept(program, text_run: Path):
    code, out, err = program("--run", str(text_run), "--prompt", "Once", "--max-new-tokens", "6")
    assert code == 0 and out.startswith("Once") and out.endswith("\n")
    assert f"{text_run}: " in err and "context 64" in err and err.count("\n") == 1
    assert program("--run", str(text_run), "--prompt", "Once", "--max-new-tokens", "0")[:2] == (
        0,
        "Once\n",
    )
    longest = program(
        "--run", str(text_run), "--prompt", "Once", "--max-new-tokens", "100000"
    )  # ends with the context
    assert longest[0] == 0 and len(longest[1]) > len(out)


def test_a_seed_says_which_text_and_samples_count_up_from_it(program, chat_run: Path):
    def answers(*arguments):
        code, out, _ = program(
            "--run", str(chat_run), "--prompt", "Weather?", "--max-new-tokens", "8", *arguments
        )
        assert code == 0
        return out

    three = answers("--num-samples", "3", "--seed", "4")
    texts = re.findall(r"--- sample (\d) \(length\)\n(.*)", three)
    assert [number for number, _ in texts] == ["1", "2", "3"]
    for i, (_, text) in enumerate(texts):
        assert len(words_of(text)) == 8 and {" " + w for w in words_of(text)} <= set(WORDS)
        assert answers("--seed", str(4 + i)) == text + "\n"
    assert len({text for _, text in texts}) == 3
    assert (
        answers("--seed", "4", "--stop", words_of(texts[0][1])[2])
        == texts[0][1].partition(words_of(texts[0][1])[2])[0] + "\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
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
    program, chat_run: Path, arguments: list[str], words: list[str]
):
    code, out, err = program("--run", str(chat_run), "--prompt", "Hi", *arguments)
    complaint = err.splitlines()[-1]
    assert (
        code == 2
        and out == ""
        and complaint.startswith("error: ")
        and all(word in complaint for word in words)
    ), err
    assert len(err.splitlines()) <= 2  # at most the line that says which run it is


def test_a_value_that_is_no_number_ends_with_how_to_say_it(program):
    code, _, err = program("--temperature", "warm")
    assert (
        code == 2
        and "usage" in err
        and "--temperature" in err.splitlines()[-1]
        and "'warm'" in err.splitlines()[-1]
    )


def test_without_a_run_one_line_says_what_to_do(tmp_path: Path):
    done = subprocess.run(
        **command(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"error: no trained run in runs/: train one first .*make demo.*\n", done.stderr
    ), done.stderr


def test_standard_input_is_a_prompt_and_the_newest_run_the_model(text_run: Path, tmp_path: Path):
    """In an ASCII locale, where the answer cannot be shown and must not end the program."""
    how = command(
        "--runs",
        str(text_run.parent),
        "--max-new-tokens",
        "4",
        LC_ALL="C",
        LANG="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    done = subprocess.run(
        **how, cwd=tmp_path, input="Grüße".encode(), capture_output=True, timeout=120
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.stdout.startswith(b"Gr??e?") and done.stdout.isascii()
    assert done.stderr.startswith(str(text_run).encode())


def test_a_reader_that_leaves_early_ends_the_program_silently(chat_run: Path, tmp_path: Path):
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
    assert process.wait(timeout=120) == 0
    assert err.count("\n") == 1 and err.startswith(
        str(chat_run)
    )  # the line that says which run it is, and no more


# ---- the conversation, in a terminal


class Terminal:
    """The real program behind a pseudo-terminal that is its controlling one, so that Ctrl-C and Ctrl-D are keys."""

    # The shortest way to a controlling terminal that does not fork a process full of JAX's threads.
    OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"

    def __init__(self, *arguments: str, cwd: Path):
        self.side, child = pty.openpty()
        how = command(
            *arguments, TERM="dumb", PYTHONIOENCODING="utf-8:strict"
        )  # as in the usual locales
        how["args"] = [sys.executable, "-c", self.OWN, *how["args"][1:]]
        self.process = subprocess.Popen(
            **how, cwd=cwd, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        fcntl.fcntl(self.side, fcntl.F_SETFL, os.O_NONBLOCK)
        self.screen = ""

    def type(self, text: str | bytes) -> None:
        os.write(self.side, text if isinstance(text, bytes) else text.encode())

    def until(self, pattern: str, timeout: float = 90) -> str:
        """What appeared since the last call, up to and with `pattern`."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.screen)):
            assert time.monotonic() < deadline, (
                f"waited for {pattern!r}, saw {self.screen[-2000:]!r}"
            )
            if select.select([self.side], [], [], 0.2)[0]:
                try:
                    self.screen += (
                        os.read(self.side, 65536).decode(errors="replace").replace("\r\n", "\n")
                    )
                except OSError:  # the other side is closed
                    assert re.search(pattern, self.screen), (
                        f"ended before {pattern!r}: {self.screen[-2000:]!r}"
                    )
        seen, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return seen

    def end(self) -> int:
        code = self.process.wait(timeout=60)
        while select.select([self.side], [], [], 0.2)[0]:
            try:
                self.screen += os.read(self.side, 65536).decode(errors="replace")
            except OSError:
                break
        os.close(self.side)
        return code


PROMPT = r"\n> "


@pytest.fixture
def terminal(chat_run: Path, tmp_path: Path):
    opened = Terminal(
        "--run", str(chat_run), "--max-new-tokens", "16000", "--system", "Be brief.", cwd=tmp_path
    )
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.process.wait()


def test_a_conversation_from_the_first_line_to_ctrl_d(terminal: Terminal, tmp_path: Path):
    assert "Chat; /help lists the commands." in terminal.until(PROMPT)

    terminal.type("/help\n")
    shown = terminal.until(PROMPT)
    assert all(word in shown for word in ("/reset", "/save", "/quit", "Ctrl-C", "Ctrl-D"))

    # Ctrl-C stops an answer, which would go on for 16,000 words, and not the program.
    terminal.type("How is the weather?\n")
    terminal.until("(sun|rain|wind|snow) (sun|rain|wind|snow) ")
    terminal.type("\x03")
    assert "[stopped]" in terminal.until(PROMPT)
    assert terminal.process.poll() is None

    # A message over two lines.
    terminal.type("First line\\\n")
    terminal.until("  ")
    terminal.type("second line\n")
    terminal.until("(sun|rain|wind|snow) ")
    terminal.type("\x03")
    terminal.until(PROMPT)

    terminal.type("/save talk.txt\n")
    assert "Saved to talk.txt." in terminal.until(PROMPT)
    saved = (tmp_path / "talk.txt").read_text(encoding="utf-8").split("\n\n")
    assert [part.partition(":")[0] for part in saved] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert (
        saved[0] == "system: Be brief."
        and saved[1] == "user: How is the weather?"
        and saved[3] == "user: First line\nsecond line"
    )
    assert set(saved[2].removeprefix("assistant: ").split()) <= {w.strip() for w in WORDS}

    terminal.type("/save /nowhere/talk.txt\n")
    assert "Could not be saved" in terminal.until(PROMPT)

    terminal.type("/reset\n")
    assert "A new conversation begins." in terminal.until(PROMPT)
    terminal.type("/save empty.txt\n")
    terminal.until(PROMPT)
    assert (tmp_path / "empty.txt").read_text() == "system: Be brief.\n"

    # Nothing at all, and bytes that are no text: the conversation goes on.
    terminal.type("\n")
    terminal.until(PROMPT)
    terminal.type(b"\xff\xfe\n")
    assert "UTF-8" in terminal.until(PROMPT)

    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


def test_ctrl_c_at_the_prompt_and_quit_leave_too(terminal: Terminal):
    terminal.until(PROMPT)
    terminal.type("/quit\n")
    assert terminal.end() == 0 and "Traceback" not in terminal.screen
