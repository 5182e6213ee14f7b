"""Make training data out of Python's own documentation, so that both phases run without a network.

    python -m data_tools.python_docs --out data/python_docs --chat-out data/python_chat

Text: the documents of data_tools.docstrings. Conversations: the first sentence of the docstrings of
builtins and of well-known modules, as answers to several phrasings of a question. The same
installation always gives the same files.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
import builtins
import filecmp
import hashlib
import importlib
import inspect
import json
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_tools.conversations import conversation_of
from data_tools.docstrings import corpus
from data_tools.fineweb import prepare
from data_tools.folder_lock import lock
from data_tools.packing import expect_free, write_packed
from data_tools.progress_bar import ProgressBar
from data_tools.recipe import Recipe
from data_tools.resumable_shards import unfinished_source
from minigpt_jax.errors import InputError, RunError, os_error_text
from minigpt_jax.runtime.files import user_path, write_json
from minigpt_jax.token_stream import MANIFEST, read_manifest
from minigpt_jax.tokenizer import Tokenizer, load_tokenizer

# The text that the shards are made from, in the same folder.
DOCUMENTS = "documents.jsonl"
# The packed conversations as text, in the same folder:
# {"train": [{"prompt": ..., "completion": ...}, ...], "val": [...]}
QUESTIONS = "questions.json"

# Few and long documents would make the validation loss depend on chance. Even NumPy alone has far
# more than a thousand.
DOCUMENTS_VAL_EVERY = 20
# About one function in so many is held out.
QUESTIONS_VAL_EVERY = 10

TYPES = (str, list, dict, set, tuple, int, float)
MODULES = (
    *("collections", "functools", "itertools", "json", "math", "os.path"),
    *("pathlib", "random", "re", "shutil", "time"),
)
PHRASINGS = (
    "What does {} do?",
    "What is {} for?",
    "Explain {}.",
    "How do I use {}?",
    "Describe {} in one sentence.",
)
# Longer first sentences are left out: an answer of the demo has to end soon.
MAX_ANSWER_TOKENS = 40
MIN_ANSWER_WORDS = 3

# Modules written in C used to begin their docstrings with a signature: `join(iterable) -> str`
_SIGNATURE = re.compile(r"[\w.]+\(.*\)( *-+> .*)?")
# A text that begins with a word, not with code.
_PROSE = re.compile(r"[A-Za-z][A-Za-z'-]*[ ,;]")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z(\"'`])")


def write_documents(folder: Path, megabytes: float) -> Path:
    """Write about so many `megabytes` of documents to a jsonl file in `folder`; returns its path.

    The file is complete or absent. Raises InputError, and changes nothing, where `folder` belongs
    to another tool or holds another file of this name.
    """
    path = folder / DOCUMENTS
    is_continued = _expect_ours(folder)
    temporary = path.with_name(path.name + ".tmp")
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    with temporary.open("w", encoding="utf-8") as file, ProgressBar("B") as bar:
        for document in corpus():
            written = file.write(json.dumps({"text": document}) + "\n")
            size += written
            bar.advance(written)
            if size >= megabytes * 1e6:
                break
    # A run that was killed before its first progress file leaves the same documents.
    if path.exists() and not is_continued and not filecmp.cmp(temporary, path, shallow=False):
        temporary.unlink()
        raise InputError(_not_replaced(path))
    temporary.replace(path)
    return path


def _expect_ours(folder: Path) -> bool:
    """Whether `folder` holds an unfinished preparation of the documents.

    Raises InputError where it holds data of another tool or of unknown origin.
    """
    is_finished = (folder / MANIFEST).exists()
    source = str(read_manifest(folder).get("source")) if is_finished else unfinished_source(folder)
    if source is not None and DOCUMENTS not in source:
        raise InputError(
            f"{folder}: holds data made from [{source}], expected Python's documentation: "
            "choose another folder"
        )
    return source is not None and not is_finished


def _not_replaced(path: Path) -> str:
    return (
        f"{path}: exists and differs from what would be written: "
        "choose another folder, or delete the file"
    )


def write_questions(folder: Path, context: int) -> None:
    """Write the questions to `folder`, as text and as packed shards, unless it holds them already.

    Raises InputError where `folder` holds something else.
    """
    tokenizer = load_tokenizer()
    pairs = questions(tokenizer)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()[:12]
    source = f"questions about Python {version} ({digest})"
    if (folder / MANIFEST).exists() and read_manifest(folder).get("source") == source:
        print(f"{folder}: done before, from the same text")
        return
    expect_free(folder, overwrite=False)
    path = folder / QUESTIONS
    if path.exists() and not _holds(path, pairs):
        raise InputError(_not_replaced(path))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, pairs)
    splits = {
        split: [conversation_of(pair, context, tokenizer) for pair in own]
        for split, own in pairs.items()
    }
    for split, rows in write_packed(folder, splits, context, tokenizer, source).items():
        count = len(splits[split])
        print(
            f"{split:<12} {count:,} questions about {count // len(PHRASINGS):,} functions "
            f"in {rows:,} rows of {context} tokens"
        )


def _holds(path: Path, content: object) -> bool:
    try:
        return json.loads(path.read_bytes()) == content
    except ValueError:
        return False


def questions(tokenizer: Tokenizer) -> dict[str, list[dict[str, str]]]:
    """Split -> prompt/completion pairs. All questions about a function are in the same split."""
    short = {
        name: answer
        for name, answer in answers().items()
        if len(tokenizer.encode(answer)) <= MAX_ANSWER_TOKENS
    }
    pairs: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    # Conversations of equal length are packed in this order, so that neighbours are about different
    # functions.
    for phrasing in PHRASINGS:
        for name, answer in short.items():
            held_out = zlib.crc32(name.encode()) % QUESTIONS_VAL_EVERY == 0
            pair = {"prompt": phrasing.format(name), "completion": answer}
            pairs["val" if held_out else "train"].append(pair)
    return pairs


def answers() -> dict[str, str]:
    """Name -> first sentence of the docstring of every known object. No sentence twice."""
    found: dict[str, str] = {}
    for name, value in _known_objects():
        sentence = first_sentence(inspect.getdoc(value) or "")
        if sentence is not None and sentence not in found.values():
            found[name] = sentence
    return found


def first_sentence(docstring: str) -> str | None:
    """The first sentence after the signature, with a capital and a full stop.

    None where the docstring does not begin with a sentence.
    """
    lines = docstring.splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE.fullmatch(lines[0].strip())):
        lines = lines[1:]
    paragraph = " ".join("\n".join(lines).split("\n\n")[0].split())
    sentence = _SENTENCE_END.split(paragraph)[0].rstrip(".")
    is_too_short = len(sentence.split()) < MIN_ANSWER_WORDS
    is_heading = sentence.endswith(":") or " - " in sentence
    if is_too_short or is_heading or not _PROSE.match(sentence):
        return None
    return sentence[0].upper() + sentence[1:] + "."


def _known_objects() -> Iterator[tuple[str, object]]:
    """(name, object): the public builtins, methods of TYPES and content of MODULES."""
    yield from _public("", builtins, vars(builtins))
    for kind in TYPES:
        yield from _public(f"{kind.__name__}.", kind, vars(kind))
    for name in MODULES:
        module = importlib.import_module(name)
        yield from _public(f"{name}.", module, getattr(module, "__all__", vars(module)))


def _public(prefix: str, owner: object, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    """The classes and functions among `names`, without exceptions and constants."""
    for name in names:
        value = getattr(owner, name)
        if name.startswith("_") or name.isupper():
            continue
        if inspect.isclass(value):
            is_wanted = not issubclass(value, BaseException)
        else:
            is_wanted = inspect.isroutine(value)
        if is_wanted:
            yield prefix + name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.python_docs",
        description="Make training data out of this installation's docstrings.",
    )
    add = parser.add_argument
    add("--out", type=user_path, help="folder for the text")
    add(
        "--megabytes",
        type=float,
        default=math.inf,
        help="size of the text, NumPy's first (default: everything)",
    )
    add("--chat-out", type=user_path, help="folder for the questions and answers")
    add(
        "--context",
        type=int,
        default=256,
        help="row length of the questions and answers in tokens (default: 256)",
    )
    return parser


def main() -> None:
    """The command line: text, conversations or both."""
    args = _parser().parse_args()
    if not (args.out or args.chat_out):
        raise InputError("nothing to do: give --out, --chat-out or both")
    if not args.megabytes > 0:
        raise InputError(f"--megabytes {args.megabytes}: expected more than 0")
    try:
        if args.out:
            print(f"collecting docstrings into {args.out / DOCUMENTS}", flush=True)
            with lock(args.out):
                path = write_documents(args.out, args.megabytes)
                prepare(Recipe([str(path)], val_every=DOCUMENTS_VAL_EVERY), args.out)
        if args.chat_out:
            with lock(args.chat_out):
                write_questions(args.chat_out, args.context)
    except OSError as error:
        raise RunError(f"{os_error_text(error)}; then run the same command again") from None


if __name__ == "__main__":
    exit_cleanly(main)
