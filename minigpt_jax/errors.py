"""Errors that end a program with one clear line and an exit code instead of a traceback.

runtime/program.py prints them. Exit codes: 0 done, 1 the work failed (a full disk, a diverged run),
2 the input was wrong (a flag, a file, a row), 130 ended by Ctrl-C.
"""


class InputError(Exception):
    """The input cannot be used: what was found, what was expected, what to do."""


class RunError(Exception):
    """The input was right but the work failed: what is safe, and how to continue."""


class EvaluationStopped(Exception):
    """An evaluation ended early because the run was asked to stop; its results are incomplete."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
