"""The command `minigpt`, also `python -m minigpt_jax`: one word for each program of the package.

A word is the main function of a module, which parses its own options. No such module is imported
before its word is known, so the list of words appears at once.
"""

import sys
from importlib import import_module

from minigpt_jax import __version__
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.program import begin_program, exit_cleanly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# Word: its module, and what the list of words says of it.
WORDS = {
    "sample": ("minigpt_jax.talk", "complete a text, or chat in the terminal"),
    "serve": ("minigpt_jax.server.__main__", "a chat page and an OpenAI-compatible API"),
    "score": ("minigpt_jax.evals.__main__", "bits per byte, HellaSwag, lm-eval, answers"),
    "report": ("minigpt_jax.report", "write the page of a run, report.html in its folder"),
    "export hf": ("minigpt_jax.interop.export_hf", "write a run in Hugging Face's format"),
    "export gguf": ("minigpt_jax.interop.export_gguf", "write a run as a GGUF file"),
    "import": ("minigpt_jax.interop.import_hf", "make a run from Hugging Face's format"),
}
# What these print is their result (see begin_program).
OUTPUT_NEEDED = ("sample", "score")
HELP = ("-h", "--help", "help")


def main() -> "NoReturn":
    """Run the word of the command line as a whole program."""
    begin_program(output_needed=sys.argv[1:2] in ([word] for word in OUTPUT_NEEDED))
    exit_cleanly(run_word)


def run_word() -> int | None:
    """Run the main function of the word, or list the words. Raises InputError for no such word."""
    arguments = sys.argv[1:]
    for word, (module, _) in WORDS.items():
        parts = word.split()
        if arguments[: len(parts)] == parts:
            sys.argv = [f"minigpt {word}", *arguments[len(parts) :]]
            return import_module(module).main(f"minigpt {word}")
    if arguments == ["--version"]:
        print(__version__)
        return 0
    # `minigpt export` lists what can follow.
    first = [] if not arguments or arguments[0] in HELP else arguments[:1]
    begun = [word for word in WORDS if word.split()[: len(first)] == first]
    if begun and all(argument in HELP for argument in arguments[len(first) :]):
        print_words(begun)
        return 0
    raise InputError(no_such_word(arguments))


def print_words(words: "Sequence[str]") -> None:
    """The list of `words`, one a line."""
    print("usage: minigpt WORD [options]\n")
    for word in words:
        print(f"  {word:<12} {WORDS[word][1]}")
    print("\nminigpt WORD --help lists its options. To train, see python train.py in a checkout.")


def no_such_word(arguments: "Sequence[str]") -> str:
    """What is wrong with a command line that begins with no word, and what was meant."""
    if arguments[0] == "train":
        return (
            "minigpt train: training needs the configs/ of a checkout: run there "
            "python train.py --config configs/quickstart.py"
        )
    from difflib import get_close_matches

    begun = [word for word in WORDS if word.split()[0] == arguments[0]]
    if begun and arguments[1].startswith("-"):
        return f"minigpt {arguments[0]}: expected one of {', '.join(begun)}"
    # The second one too: of "export huf" and of "exprot hf".
    for asked in (" ".join(arguments[:2]), arguments[0]):
        if nearest := get_close_matches(asked, WORDS, n=1):
            return f"minigpt {asked}: unknown (did you mean minigpt {nearest[0]}?)"
    return f"minigpt {arguments[0]}: unknown, expected one of {', '.join(WORDS)}"


if __name__ == "__main__":
    main()
