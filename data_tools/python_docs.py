"""Make training data out of the documentation that every Python installation carries, so that both phases run offline.

    python -m data_tools.python_docs --out data/python_docs --chat-out data/python_chat

Text: pydoc's topics and the docstrings of the standard library and of the installed packages; a document is a topic, or what one
module, class or function says. Conversations: what the docstrings of the builtins and of the best-known modules say, asked for in
several ways. Sources are parsed, not run; imported are only standard modules that are written in C or asked about. The same
installation gives the same files.
"""

import argparse
import ast
import builtins
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

from tqdm import tqdm

from data_tools.fineweb import prepare
from data_tools.instruct import conversation_of, expect_free, write_packed
from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.runtime.files import write_json
from minigpt_jax.token_stream import MANIFEST, read_manifest
from minigpt_jax.tokenizer import Tokenizer, load_tokenizer

DOCUMENTS = "documents.jsonl"  # beside the shards: the text they are made from
QUESTIONS = "questions.json"  # beside the packed conversations, as text: {"train": [{"prompt", "completion"}, ...], "val": [...]}

Document = tuple[str, str]  # what a topic, a module, a class or a function says: (heading, text)

# Whose documents come first. A model that learns for minutes learns one voice, and half a million tokens of it, better than a
# few words of each of forty; NumPy is always there and speaks evenly.
_FIRST = "numpy"
# Tests, vendored copies and demos: little prose, and much of it twice.
_SKIPPED = {
    "test",
    "tests",
    "testing",
    "_vendor",
    "idlelib",
    "idle_test",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
}
# Documents. Few and long ones would make the validation loss a matter of luck; even NumPy's are far over a thousand.
_VAL_EVERY = 20

_ASKED_TYPES = (str, list, dict, set, tuple, int, float)
_ASKED_MODULES = (
    "collections",
    "functools",
    "itertools",
    "json",
    "math",
    "os.path",
    "pathlib",
    "random",
    "re",
    "shutil",
    "time",
)
_PHRASINGS = (
    "What does {} do?",
    "What is {} for?",
    "Explain {}.",
    "How do I use {}?",
    "Describe {} in one sentence.",
)
_ANSWER_TOKENS = (
    40  # longer first sentences are not asked for: an answer of the demo has to end soon
)
_SIGNATURE = re.compile(
    r"[\w.]+\(.*\)( *-+> .*)?"
)  # the old habit of C modules: `join(iterable) -> str`
_PROSE = re.compile(r"[A-Za-z][A-Za-z'-]*[ ,;]")  # begins with a word, not with code
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z(\"'`])")


def corpus() -> Iterator[str]:
    """Every document, those of NumPy first; otherwise in an order that looks random but is fixed by the modules' names. No text twice."""
    sources: dict[str, Callable[[], list[Document]]] = {
        f"topic {name}": partial(_topic, name) for name in topics
    }
    for name in sorted(sys.stdlib_module_names):
        if not name.startswith("_") and _is_extension(name):
            sources[name] = partial(imported_documents, name)
    for folder in dict.fromkeys(
        sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")
    ):
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if _SKIPPED.isdisjoint(parts):
                name = ".".join(parts).removesuffix(".__init__")
                sources[name] = partial(parsed_documents, name, path)
    said: set[str] = set()
    for name in sorted(
        sources,
        key=lambda name: (name.split(".")[0] != _FIRST, hashlib.sha256(name.encode()).digest()),
    ):
        for heading, text in sources[name]():
            if text not in said:
                said.add(text)
                yield f"{heading}\n\n{text}"


def parsed_documents(name: str, path: Path) -> list[Document]:
    """What the source file `path` of module `name` says: the module and its functions, then every class and its methods."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of other people's escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []  # a template or a file for another version: no source of ours
    documents = _parsed(f"Module {name}", name, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            documents += _parsed(f"Class {name}.{node.name}", node.name, node)
    return documents


def imported_documents(name: str) -> list[Document]:
    """The same of a module that has no source in Python: imported and asked."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return []  # its C library is not on this machine
    documents = _imported(f"Module {name}", name, module)
    for value in vars(module).values():
        if inspect.isclass(value):
            documents += _imported(f"Class {name}.{value.__name__}", value.__name__, value)
    return documents


def _parsed(heading: str, name: str, node: ast.Module | ast.ClassDef) -> list[Document]:
    found = [(heading, ast.get_docstring(node))]
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [
                argument.arg
                for argument in (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)
            ]
            found.append((f"{name}.{child.name}({', '.join(arguments)})", ast.get_docstring(child)))
    return [(heading, text) for heading, text in found if text]


def _imported(heading: str, name: str, value: object) -> list[Document]:
    found = [(heading, inspect.getdoc(value))]
    found += [
        (f"{name}.{key}()", inspect.getdoc(child))
        for key, child in vars(value).items()
        if inspect.isroutine(child)
    ]
    return [(heading, text) for heading, text in found if text]


def _topic(name: str) -> list[Document]:
    return [(f"Topic {name}", topics[name].strip())]


def _is_extension(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and (
        spec.origin == "built-in" or not (spec.origin or ".py").endswith((".py", "frozen"))
    )


def answers() -> dict[str, str]:
    """Name -> first sentence of the docstring, for builtins, methods of the basic types and the best-known modules. No answer twice."""
    found: dict[str, str] = {}
    for name, value in _asked():
        sentence = first_sentence(inspect.getdoc(value) or "")
        if sentence is not None and sentence not in found.values():
            found[name] = sentence
    return found


def first_sentence(docstring: str) -> str | None:
    """The first sentence after the signature lines, as a sentence: capital, full stop. None where there is no such thing."""
    lines = docstring.splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE.fullmatch(lines[0].strip())):
        lines = lines[1:]
    paragraph = " ".join("\n".join(lines).split("\n\n")[0].split())
    sentence = _SENTENCE_END.split(paragraph)[0].rstrip(".")
    if (
        len(sentence.split()) < 3
        or not _PROSE.match(sentence)
        or sentence.endswith(":")
        or " - " in sentence
    ):
        return None
    return sentence[0].upper() + sentence[1:] + "."


def questions(tokenizer: Tokenizer) -> dict[str, list[dict[str, str]]]:
    """Split -> prompt/completion pairs. A function is in "train" or in "val" in all its phrasings; every tenth or so is held out."""
    short = {
        name: answer
        for name, answer in answers().items()
        if len(tokenizer.encode(answer)) <= _ANSWER_TOKENS
    }
    pairs: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    # Phrasing by phrasing, so that conversations of equal length, which are packed together, are about different functions.
    for phrasing in _PHRASINGS:
        for name, answer in short.items():
            split = "val" if zlib.crc32(name.encode()) % 10 == 0 else "train"
            pairs[split].append({"prompt": phrasing.format(name), "completion": answer})
    return pairs


def _asked() -> Iterator[tuple[str, object]]:
    yield from _public("", builtins, vars(builtins))
    for kind in _ASKED_TYPES:
        yield from _public(f"{kind.__name__}.", kind, vars(kind))
    for name in _ASKED_MODULES:
        module = importlib.import_module(name)
        yield from _public(f"{name}.", module, getattr(module, "__all__", vars(module)))


def _public(prefix: str, owner: object, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    for name in names:
        value = getattr(owner, name)
        exception = inspect.isclass(value) and issubclass(value, BaseException)
        if (
            not name.startswith("_")
            and not name.isupper()
            and not exception
            and (inspect.isclass(value) or inspect.isroutine(value))
        ):
            yield prefix + name, value


def write_documents(folder: Path, megabytes: float) -> Path:
    """Write documents up to about so many `megabytes` of text to a jsonl file in `folder`, complete or not at all; returns its path."""
    path, size = folder / DOCUMENTS, 0
    temporary = path.with_name(path.name + ".tmp")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        temporary.open("w", encoding="utf-8") as file,
        tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
    ):
        for document in corpus():
            written = file.write(json.dumps({"text": document}) + "\n")
            size += written
            bar.update(written)
            if size >= megabytes * 1e6:
                break
    temporary.replace(path)
    return path


def prepare_chat(folder: Path, context: int) -> None:
    """Write the questions as text and as packed shards to `folder`, unless it holds them already. Raises InputError where it holds something else."""
    tokenizer = load_tokenizer()
    pairs = questions(tokenizer)
    source = f"questions about Python {sys.version_info.major}.{sys.version_info.minor} ({hashlib.sha256(repr(pairs).encode()).hexdigest()[:12]})"
    if (folder / MANIFEST).exists() and read_manifest(folder)["source"] == source:
        print(f"{folder}: done before, from the same text")
        return
    expect_free(folder, overwrite=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / QUESTIONS, pairs)
    splits = {
        split: [conversation_of(pair, context, tokenizer) for pair in pairs[split]]
        for split in pairs
    }
    rows = write_packed(folder, splits, context, tokenizer, source)
    for split, count in rows.items():
        functions = len(splits[split]) // len(_PHRASINGS)
        print(
            f"{split:<12} {len(splits[split]):,} questions about {functions:,} functions in {count:,} rows of {context} tokens"
        )


def main() -> None:
    """The command line: text, conversations or both."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.python_docs",
        description="Make training data out of this installation's docstrings.",
    )
    parser.add_argument("--out", type=Path, help="folder for the text")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=math.inf,
        help="text to take, NumPy's first (default: all there is)",
    )
    parser.add_argument("--chat-out", type=Path, help="folder for the questions and answers")
    parser.add_argument(
        "--context",
        type=int,
        default=256,
        help="row length of the questions and answers in tokens (default: 256)",
    )
    args = parser.parse_args()
    if not (args.out or args.chat_out):
        raise InputError("nothing to do: give --out, --chat-out or both")
    if not args.megabytes > 0:
        raise InputError(f"--megabytes {args.megabytes}: expected more than 0")
    try:
        if args.out:
            print(f"collecting docstrings into {args.out / DOCUMENTS}", flush=True)
            prepare(
                [str(write_documents(args.out, args.megabytes))], args.out, val_every=_VAL_EVERY
            )
        if args.chat_out:
            prepare_chat(args.chat_out, args.context)
    except OSError as error:
        raise RunError(f"{error}: make room and run the same command again") from None


if __name__ == "__main__":
    exit_cleanly(main)
