"""Collect the documentation that every Python installation carries: pydoc's topics and docstrings.

Sources are parsed, not run. Only the standard library's modules that are written in C are imported.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

# (heading, text) of a topic, a module, a class or a function.
Document = tuple[str, str]

# The package whose documents come first. A model that is trained for minutes learns one style, with
# half a million tokens of it, better than a few words of each of forty. NumPy is always installed,
# and its documentation has an even style.
FIRST_PACKAGE = "numpy"
# Tests, vendored copies and demos: little prose, and much of it twice.
SKIPPED_FOLDERS = (
    {"test", "tests", "testing", "idle_test"}
    | {"_vendor", "site-packages", "dist-packages"}
    | {"idlelib", "lib2to3", "turtledemo"}
)


def corpus() -> Iterator[str]:
    """Every document of this installation, none twice: those of FIRST_PACKAGE, then the others.

    The order within both parts looks random, but follows from the modules' names.
    """
    readers = _readers()

    def order(name: str) -> tuple[bool, bytes]:
        is_first = name.split(".")[0] == FIRST_PACKAGE
        return not is_first, hashlib.sha256(name.encode()).digest()

    seen: set[str] = set()
    for name in sorted(readers, key=order):
        for heading, text in readers[name]():
            if text not in seen:
                seen.add(text)
                yield f"{heading}\n\n{text}"


def _readers() -> dict[str, Callable[[], list[Document]]]:
    """The function that reads the documents of each topic and of each module."""
    readers: dict[str, Callable[[], list[Document]]] = {
        f"topic {name}": partial(_topic, name) for name in topics
    }
    for name in sorted(sys.stdlib_module_names):
        if not name.startswith("_") and _is_extension(name):
            readers[name] = partial(imported_documents, name)
    folders = dict.fromkeys(sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib"))
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if SKIPPED_FOLDERS.isdisjoint(parts):
                name = ".".join(parts).removesuffix(".__init__")
                readers[name] = partial(parsed_documents, name, path)
    return readers


def _topic(name: str) -> list[Document]:
    return [(f"Topic {name}", topics[name].strip())]


def _is_extension(name: str) -> bool:
    """Whether a module is written in C."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False
    return spec.origin == "built-in" or not (spec.origin or ".py").endswith((".py", "frozen"))


# ---- modules with a source in Python


def parsed_documents(name: str, path: Path) -> list[Document]:
    """The docstrings in the source file `path` of module `name`.

    The module and its functions come first, then every class and its methods. Empty for a file that
    this version of Python cannot parse.
    """
    try:
        with warnings.catch_warnings():
            # Such as warnings about invalid escapes in other people's strings.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []
    documents = _parsed(f"Module {name}", name, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            documents += _parsed(f"Class {name}.{node.name}", node.name, node)
    return documents


def _parsed(heading: str, name: str, node: ast.Module | ast.ClassDef) -> list[Document]:
    found = [(heading, ast.get_docstring(node))]
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = f"{name}.{child.name}({_argument_names(child.args)})"
            found.append((signature, ast.get_docstring(child)))
    return [(heading, text) for heading, text in found if text]


def _argument_names(arguments: ast.arguments) -> str:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return ", ".join(argument.arg for argument in every)


# ---- modules written in C


def imported_documents(name: str) -> list[Document]:
    """As `parsed_documents`, of a module without a source in Python: it is imported."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        # The C library that it needs is not on this machine.
        return []
    documents = _imported(f"Module {name}", name, module)
    for value in vars(module).values():
        if inspect.isclass(value):
            documents += _imported(f"Class {name}.{value.__name__}", value.__name__, value)
    return documents


def _imported(heading: str, name: str, value: object) -> list[Document]:
    found = [(heading, inspect.getdoc(value))]
    for key, child in vars(value).items():
        if inspect.isroutine(child):
            found.append((f"{name}.{key}()", inspect.getdoc(child)))
    return [(heading, text) for heading, text in found if text]
