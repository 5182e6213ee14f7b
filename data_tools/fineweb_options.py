"""The options of data_tools.fineweb, and which of them belong together."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from data_tools.recipe import Recipe
from minigpt_jax.runtime.files import expand_home, user_path

_PROGRAM = "python -m data_tools.fineweb"
_USAGE = f"""{_PROGRAM} --source SOURCE --out OUT [options]
       {_PROGRAM} --source SOURCE --parts FOLDER --part i/n [options]
       {_PROGRAM} --merge FOLDER --out OUT"""


def read_options() -> dict[str, Any]:
    """The options that were given, by name; the end of the program if they do not belong together.

    They have "merge" and "out", or "sources", "parts" and "part", or "sources" and "out".
    """
    parser = _parser()
    given = vars(parser.parse_args())
    if "merge" in given:
        needed, others = ["out"], sorted(given.keys() - {"merge", "out"})
        why = "--merge takes only --out, the parts hold all else"
    elif given.keys() & {"parts", "part"}:
        needed, others = ["sources", "parts", "part"], sorted(given.keys() & {"out"})
        why = "--out belongs to --merge, when all parts are there"
    else:
        needed, others, why = ["sources", "out"], [], ""
    if others:
        parser.error(f"not allowed here: {_written(parser, others)} ({why})")
    if missing := [name for name in needed if name not in given]:
        parser.error(f"missing: {_written(parser, missing)}")
    return given


def _written(parser: argparse.ArgumentParser, names: list[str]) -> str:
    """Options as they are written on the command line."""
    written = {action.dest: action.option_strings[-1] for action in parser._actions}
    return ", ".join(written[name] for name in names)


def part_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", the i-th of n parts, counted from 0."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found and len(found[2]) > 5:
        raise argparse.ArgumentTypeError("more than 99,999 parts")
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected i/n with i from 0 to n-1, as 0/8 and 7/8 of 8 parts"
        )
    return int(found[1]), int(found[2])


def _at_least(smallest: int) -> Callable[[str], int]:
    # argparse shows the inner function's name in its message: "invalid integer value".
    def integer(text: str) -> int:
        if (number := int(text)) < smallest:
            raise argparse.ArgumentTypeError(f"{number}, expected at least {smallest}")
        return number

    return integer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage=_USAGE,
        description="Turn documents into token shards.",
        # The defaults are those of Recipe.
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add(
        "--source",
        type=expand_home,
        dest="sources",
        action="append",
        help="file, folder, or Hugging Face Hub data set (owner/name or owner/name@revision); "
        "may be repeated",
    )
    add("--name", help="configuration of the Hub data set, e.g. sample-10BT")
    add("--out", type=user_path, help="folder for the shards")
    add("--parts", type=user_path, metavar="FOLDER", help="folder for parts, instead of --out")
    add(
        "--part",
        type=part_of,
        metavar="i/n",
        help="write only part i of n, of an n-th of the source files; i is from 0 to n-1, as "
        "SLURM_ARRAY_TASK_ID (--array=0-7) and JOB_COMPLETION_INDEX count",
    )
    add(
        "--merge",
        type=user_path,
        metavar="FOLDER",
        help="join the parts in FOLDER to the shards that one process would write",
    )
    add(
        "--text-column",
        dest="column",
        help=f"field that holds the text (default: {Recipe.column})",
    )
    add(
        "--val-every",
        type=_at_least(2),
        metavar="N",
        help=f"every Nth document is for validation (default: {Recipe.val_every})",
    )
    add(
        "--shard-tokens",
        type=_at_least(1),
        metavar="N",
        help=f"tokens per shard (default: {Recipe.shard_tokens})",
    )
    add(
        "--workers",
        type=_at_least(1),
        metavar="N",
        help="processes or threads that tokenise (default: one per core)",
    )
    add(
        "--no-fast",
        action="store_true",
        help="encode with tiktoken even where gigatoken is installed: the same ids, slower",
    )
    add(
        "--limit",
        type=_at_least(1),
        metavar="N",
        help="use only the first N documents (default: all)",
    )
    return parser
