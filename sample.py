"""Talk to a trained model: python sample.py

Takes the newest run. A finetuned model chats, a pretrained one completes; with a prompt (--prompt, --file or standard
input) it answers once, without one it converses in the terminal.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt_jax import chat, load_run
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.generate import Generator
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.runs import newest_run
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.sampling import SamplingParams, sampling_params
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT

HELP = """/reset   forget the conversation        /save FILE   write it to a text file
/help    this text                      /quit        leave (or Ctrl-D)
Ctrl-C   stop an answer                 \\ at the end of a line: the message goes on"""


def main() -> int:
    """Answer one prompt, or converse."""
    options = parse()
    # A terminal that cannot show a letter shows a question mark; it does not end the conversation.
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    prompt = given_prompt(options)
    folder = Path(options.run) if options.run else newest_run(Path(options.runs))
    run = load_run(folder)
    enable_compilation_cache(folder.parent)
    print(
        f"{folder}: {run.config.parameters:,} parameters, context {run.config.context}",
        file=sys.stderr,
    )
    draw = sampling_params(
        options.num_samples,
        run.config,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    writer = run.generator(rows=options.num_samples, quantize=options.quantize)
    if prompt is not None:
        answer_once(writer, run, prompt, draw, options)
    elif options.num_samples > 1:
        raise InputError("--num-samples needs a prompt (--prompt, --file or standard input)")
    else:
        converse(writer, run, draw, options)
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Chat with a finetuned run, or let a pretrained one complete a text."
    )
    parser.add_argument("--run", help="folder of a run (default: the newest one)")
    parser.add_argument("--runs", default="runs", help="where runs lie (default: runs)")
    parser.add_argument("--prompt", help="answer or continue this once, then end")
    parser.add_argument("--file", help="the same with the text of a file; '-' is standard input")
    parser.add_argument("--system", default="", help="system prompt of a conversation")
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        help="texts for one prompt, with seeds counting up from --seed",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the most likely token"
    )
    parser.add_argument("--top-k", type=int, help="draw from the k most likely tokens only")
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="draw from the fewest tokens whose probabilities reach p",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        help="drop tokens below this share of the most likely one's probability",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens already in the text become less likely",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (may be repeated)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="weights in eight bits: faster where reading them is the work, a little less exact",
    )
    options = parser.parse_args()
    if options.num_samples < 1:
        raise InputError(f"--num-samples {options.num_samples}: expected 1 or more")
    if options.prompt is not None and options.file:
        raise InputError("give --prompt or --file, not both")
    return options


def given_prompt(options: argparse.Namespace) -> str | None:
    """The text to answer once; None when a person sits at a terminal and has given none."""
    if options.prompt is not None:
        return options.prompt
    if options.file and options.file != "-":
        try:
            return Path(options.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--file {options.file}: cannot be read ({error})") from None
    if options.file == "-" or not sys.stdin.isatty():
        return sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    return None


def answer_once(
    writer: Generator,
    run: LoadedRun,
    prompt: str,
    draw: SamplingParams,
    options: argparse.Namespace,
) -> None:
    """Print the answer to `prompt`, or its continuation after itself; several samples one after another."""
    chats = run.config.vocab_size >= CHAT_VOCAB
    if chats:
        if not prompt:
            raise InputError("the message is empty: a conversation begins with one")
        ids, shown = (
            chat.prompt(
                [*system_message(options), {"role": "user", "content": prompt}], run.tokenizer
            ),
            "",
        )
    else:
        ids, shown = [END_OF_TEXT, *run.tokenizer.encode(prompt)], prompt
    pieces = writer.stream(
        [ids] * writer.rows, draw, max_new_tokens=options.max_new_tokens, stop=options.stop
    )
    if writer.rows == 1:
        print(shown, end="")
        for _, piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    for _ in pieces:
        pass
    for number, answer in enumerate(writer.completions, 1):
        print(f"--- sample {number} ({answer.reason})\n{shown}{answer.text}")


def converse(
    writer: Generator, run: LoadedRun, draw: SamplingParams, options: argparse.Namespace
) -> None:
    """Read lines and answer until /quit or Ctrl-D."""
    chats = run.config.vocab_size >= CHAT_VOCAB
    print(
        "Chat; /help lists the commands."
        if chats
        else "This model was not finetuned: it continues what you type. /help lists the commands."
    )
    messages, turns = system_message(options), 0
    while (line := read_message()) is not None:
        command, _, argument = line.partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            messages = system_message(options)
            print("The conversation is forgotten.")
        elif command == "/save":
            save(messages, argument.strip())
        elif command.startswith("/"):
            print(HELP)
        elif line:
            # Every answer has a seed of its own, or the same question would get the same answer for ever.
            turn = draw._replace(seed=draw.seed + turns)
            turns += 1
            try:
                messages = (
                    answer(writer, run, messages, line, turn, options)
                    if chats
                    else complete(writer, run, line, turn, options)
                )
            except InputError as error:
                print(f"({error})")


def answer(
    writer: Generator,
    run: LoadedRun,
    messages: list,
    line: str,
    draw: SamplingParams,
    options: argparse.Namespace,
) -> list:
    """Print the model's answer to `line`; returns the conversation with both, without turns that no longer fit."""
    messages = [*messages, chat.Message(role="user", content=line)]
    room = min(options.max_new_tokens, run.config.context // 4)
    messages = fitting(
        messages, run.config.context - room, lambda m: len(chat.prompt(m, run.tokenizer))
    )
    text = show(writer, chat.prompt(messages, run.tokenizer), draw, options)
    return [*messages, chat.Message(role="assistant", content=text)]


def complete(
    writer: Generator, run: LoadedRun, line: str, draw: SamplingParams, options: argparse.Namespace
) -> list:
    """Print `line` and what the model makes of it; a text has no history."""
    print(line, end="")
    text = show(writer, [END_OF_TEXT, *run.tokenizer.encode(line)], draw, options)
    return [chat.Message(role="user", content=line), chat.Message(role="assistant", content=text)]


def show(
    writer: Generator, ids: list[int], draw: SamplingParams, options: argparse.Namespace
) -> str:
    """Print the continuation of `ids` as it is written, until it ends or Ctrl-C; returns it."""
    written = ""
    with interruptible() as interrupted:
        for _, piece in writer.stream(
            [ids], draw, max_new_tokens=options.max_new_tokens, stop=options.stop
        ):
            print(piece, end="", flush=True)
            written += piece
            if interrupted():
                print(" [stopped]", end="")
                break
        silent = not written.strip() and not interrupted()
    print(" (the model ended without a word)" if silent else "")
    return written


def fitting(messages: list, limit: int, size: Callable[[list], int]) -> list:
    """The conversation without its oldest turns (a question and its answer, whole) until `size` is within `limit`."""
    head = 1 if messages[0]["role"] == "system" else 0
    while size(messages) > limit and len(messages) > head + 1:
        messages = messages[:head] + messages[head + 2 :]
    return messages


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of raising, which could hit the moment in which the cache changes hands."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def read_message() -> str | None:
    """A message from the terminal, joined over lines that end in a backslash; None at the end (Ctrl-D or Ctrl-C)."""
    try:
        line = input("\n> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("  ")
        return line.strip()
    except UnicodeDecodeError:
        print("(that was no UTF-8 text)")
        return ""
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def save(messages: list, name: str) -> None:
    """Write the conversation to a text file."""
    if not name:
        print("Say where: /save conversation.txt")
        return
    try:
        Path(name).write_text(
            "\n\n".join(f"{m['role']}: {m['content'].strip()}" for m in messages) + "\n",
            encoding="utf-8",
            errors="replace",
        )
        print(f"Saved to {name}.")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        print(f"Could not be saved: {error}")


def system_message(options: argparse.Namespace) -> list[chat.Message]:
    """The beginning of every conversation: the system prompt, if there is one."""
    return [chat.Message(role="system", content=options.system)] if options.system else []


if __name__ == "__main__":
    exit_cleanly(main)
