"""Talk to a trained model: minigpt sample, or python sample.py

Takes the newest run. A finetuned model chats, a pretrained one completes. With a prompt (--prompt,
--file or standard input) it answers once, without one it starts a conversation in the terminal.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigpt_jax import chat, load_run
from minigpt_jax.errors import InputError
from minigpt_jax.runs import newest_run
from minigpt_jax.runtime.files import expand_home, user_name

if TYPE_CHECKING:
    from minigpt_jax.generate import Generator
    from minigpt_jax.loaded_run import LoadedRun
    from minigpt_jax.sampling import SamplingParams

HELP = """/reset   start a new conversation       /save FILE   save this one to a text file
/help    show this text                 /quit        leave (or Ctrl-D)
Ctrl-C   stop an answer                 \\ at the end of a line: the message continues"""


class Session(NamedTuple):
    """A loaded run, and how to generate with it."""

    run: "LoadedRun"
    generator: "Generator"
    settings: "SamplingParams"
    max_new_tokens: int
    stop: Sequence[str]
    system: str


def main(program: str = "python sample.py") -> int:
    """Answer one prompt, or converse. `program` is what the user typed, for the usage."""
    options = parse_arguments(program)
    prompt = read_prompt(options)
    folder = Path(options.run) if options.run else newest_run(Path(options.runs))
    session = open_session(folder, options)
    if prompt is not None:
        answer_once(session, prompt)
    elif options.num_samples > 1:
        raise InputError("--num-samples needs a prompt (--prompt, --file or standard input)")
    else:
        converse(session)
    return 0


def parse_arguments(program: str) -> argparse.Namespace:
    """The command line. Raises InputError for options that contradict each other."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Chat with a finetuned run, or complete a text with a pretrained one.",
    )
    add = parser.add_argument
    add("--run", type=user_name, help="folder of a run (default: the newest one)")
    add("--runs", type=user_name, default="runs", help="folder of all runs (default: runs)")
    add("--prompt", help="answer or continue this once, then end")
    add(
        "--file",
        type=expand_home,
        help="the same with the text of a file; '-' is standard input",
    )
    add("--system", default="", help="system prompt of a conversation")
    add(
        "--num-samples",
        type=int,
        default=1,
        help="number of texts for one prompt, with seeds from --seed on",
    )
    add("--max-new-tokens", type=int, default=256, help="length of a text at most (default: 256)")
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0: always the most likely token (default: 0.8)",
    )
    add("--top-k", type=int, help="draw from the k most likely tokens only")
    add(
        "--top-p",
        type=float,
        default=0.95,
        help="draw from the fewest tokens whose probabilities reach p (default: 0.95)",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        help="drop tokens below this share of the highest probability (default: 0)",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens already in the text become less likely (default: 1)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (may be repeated)",
    )
    add("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    add(
        "--quantize",
        choices=["int8"],
        help="8-bit weights: faster on a CPU, slightly less exact",
    )
    options = parser.parse_args()
    if options.num_samples < 1:
        raise InputError(f"--num-samples {options.num_samples}: expected 1 or more")
    if options.prompt is not None and options.file:
        raise InputError("give --prompt or --file, not both")
    return options


def read_prompt(options: argparse.Namespace) -> str | None:
    """The text to answer once; None if there is none and standard input is a terminal."""
    if options.prompt is not None:
        return options.prompt
    if options.file and options.file != "-":
        try:
            return decode_prompt(Path(options.file).read_bytes())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--file {options.file}: cannot be read ({error})") from None
    if options.file == "-" or not sys.stdin.isatty():
        try:
            return decode_prompt(sys.stdin.buffer.read())
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: cannot be read ({error})") from None
    return None


def decode_prompt(content: bytes) -> str:
    """The text of a file: without a byte order mark and the last line end, and with "\\n" for CRLF.

    Editors add all three, and the model would take them for part of the text.
    """
    return content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")


def open_session(folder: Path, options: argparse.Namespace) -> Session:
    """Load the run in `folder`. Raises InputError for settings out of range."""
    # Imported here, so that --help and a wrong option do not wait for JAX.
    from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
    from minigpt_jax.sampling import sampling_params

    run = load_run(folder)
    enable_compilation_cache(folder.parent)
    print(
        f"{folder}: {run.config.parameters:,} parameters, context {run.config.context}",
        file=sys.stderr,
    )
    settings = sampling_params(
        options.num_samples,
        run.config,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    generator = run.generator(rows=options.num_samples, quantize=options.quantize)
    return Session(run, generator, settings, options.max_new_tokens, options.stop, options.system)


def answer_once(session: Session, prompt: str) -> None:
    """Print the answer to `prompt`, or `prompt` and its continuation; several samples as a list."""
    run, rows = session.run, session.generator.rows
    if run.can_chat:
        if not prompt:
            raise InputError("the message is empty: a conversation begins with one")
        messages = [*system_message(session), chat.Message(role="user", content=prompt)]
        ids = chat.prompt(messages, run.tokenizer)
        shown = ""
    else:
        ids = run.tokenizer.encode_document(prompt)
        shown = prompt
    pieces = stream(session, [ids] * rows)
    if rows == 1:
        print(shown, end="")
        for _, piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    for _ in pieces:
        pass
    for number, completion in enumerate(session.generator.completions, 1):
        print(f"--- sample {number} ({completion.finish_reason})\n{shown}{completion.text}")


def stream(session: Session, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, str]]:
    """(row, piece of text) of the continuations of `prompts`, as they are decoded."""
    return session.generator.stream(
        prompts, session.settings, max_new_tokens=session.max_new_tokens, stop=session.stop
    )


def converse(session: Session) -> None:
    """Read lines and answer them until /quit or Ctrl-D."""
    if session.run.can_chat:
        print("Chat; /help lists the commands.")
    else:
        print("This model was not finetuned: it completes your text. /help lists the commands.")
    respond = answer if session.run.can_chat else complete
    messages, shown = system_message(session), []  # shown: also turns that no longer fit
    turns = 0
    while (line := read_message()) is not None:
        command, _, argument = line.partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            messages, shown = system_message(session), []
            print("A new conversation begins.")
        elif command == "/save":
            save(system_message(session) + shown if shown else [], argument.strip())
        elif command.startswith("/"):
            print(HELP)
        elif line:
            # Each turn has a seed of its own: with one seed for all, a question that is asked
            # twice would get the same answer.
            settings = session.settings._replace(seed=session.settings.seed + turns)
            turns += 1
            try:
                messages = respond(session._replace(settings=settings), messages, line)
                shown += messages[-2:]
            except InputError as error:
                print(f"({error})")


def answer(session: Session, messages: list[chat.Message], line: str) -> list[chat.Message]:
    """Print the answer to `line`; returns the conversation with both.

    The oldest turns are dropped where the context could not hold them and an answer.
    """
    run = session.run
    room = min(session.max_new_tokens, run.config.context // 4)
    messages = drop_oldest_turns(
        [*messages, chat.Message(role="user", content=line)],
        run.config.context - room,
        lambda kept: len(chat.prompt(kept, run.tokenizer)),
    )
    text = show(session, chat.prompt(messages, run.tokenizer))
    return [*messages, chat.Message(role="assistant", content=text)]


def complete(session: Session, _: list[chat.Message], line: str) -> list[chat.Message]:
    """Print `line` and its continuation; returns both. A pretrained model gets no earlier lines."""
    print(line, end="")
    text = show(session, session.run.tokenizer.encode_document(line))
    return [chat.Message(role="user", content=line), chat.Message(role="assistant", content=text)]


def show(session: Session, ids: Sequence[int]) -> str:
    """Print the continuation of `ids` as it is decoded, until it ends or Ctrl-C; returns it."""
    text = ""
    with interruptible() as interrupted:
        for _, piece in stream(session, [ids]):
            print(piece, end="", flush=True)
            text += piece
            if interrupted():
                print(" [stopped]", end="")
                break
        empty = not text.strip() and not interrupted()
    print(" (the answer is empty)" if empty else "")
    return text


def drop_oldest_turns(
    messages: list[chat.Message], limit: int, size: Callable[[list[chat.Message]], int]
) -> list[chat.Message]:
    """`messages` without the oldest turns (question and answer) until `size` is within `limit`.

    The system message and the last question always stay.
    """
    head = 1 if messages[0]["role"] == "system" else 0
    while size(messages) > limit and len(messages) > head + 1:
        messages = messages[:head] + messages[head + 2 :]
    return messages


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of raising, which could leave the generator without its cache."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def read_message() -> str | None:
    """A message from the terminal; a line that ends in a backslash continues on the next one.

    None at the end (Ctrl-D or Ctrl-C).
    """
    try:
        line = input("\n> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("  ")
        return line.strip()
    except UnicodeDecodeError:
        print(f"(this was not {sys.stdin.encoding.upper()} text: please type it again)")
        return ""
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def save(messages: list[chat.Message], name: str) -> None:
    """Write the conversation to a new text file; print whether that worked."""
    if not name:
        print("A file name is missing: /save conversation.txt")
        return
    if not messages:
        print("nothing to save yet")
        return
    text = "\n\n".join(f"{m['role']}: {m['content'].strip()}" for m in messages) + "\n"
    try:
        with Path(name).open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        print(f"Saved to {name}.")
    except FileExistsError:
        print(f"{name} exists: choose another name")
    # ValueError: a name that no file can have.
    except (OSError, ValueError) as error:
        print(f"Could not be saved: {error}")


def system_message(session: Session) -> list[chat.Message]:
    """The messages that every conversation begins with: the system prompt, if there is one."""
    return [chat.Message(role="system", content=session.system)] if session.system else []
