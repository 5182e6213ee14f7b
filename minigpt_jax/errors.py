"""Errors that end a program with one clear line and an exit code instead of a traceback.

runtime/program.py prints them. Exit codes: 0 done, 1 the work failed (a full disk, a diverged run),
2 the input was wrong (a flag, a file, a row), 130 ended by Ctrl-C.
"""

import errno

_WAYS_OUT = {
    errno.EACCES: "check owner and permissions",
    errno.EPERM: "check owner and permissions",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many open files",
    errno.EROFS: "mount it for writing, or write elsewhere",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EIO: "check the disk or its connection",
    errno.ESTALE: "the file system of another machine has changed; mount it again",
    errno.ENOMEM: "end other programs",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
}


class InputError(Exception):
    """The input cannot be used: what was found, what was expected, what to do."""


class RunError(Exception):
    """The input was right but the work failed: what is safe, and how to continue."""


class DamageError(Exception):
    """A file that was written whole is lost, or the bytes that were read are not those written.

    Only a checksum or a parser can say that. What else prevents reading is the machine's fault and
    keeps its own error: the file may be as good as ever.
    """


class EvaluationStopped(Exception):
    """An evaluation ended early because the run was asked to stop; its results are incomplete."""


def on_one_line(text: str) -> str:
    """`text` with its line breaks and other control characters escaped: names may hold them."""
    return text.translate({code: repr(chr(code))[1:-1] for code in range(32)})


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def os_error_text(error: OSError) -> str:
    """An error of the operating system and what helps against it, in one line."""
    way_out = _WAYS_OUT.get(error.errno or 0)
    return f"{error}: {way_out}" if way_out else str(error)


def machine_fault(error: Exception) -> str | None:
    """What is wrong with the machine, and what to do; None for any other error."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError):
        return os_error_text(error)
    if isinstance(error, MemoryError):
        return f"the memory is full ({first_line(error)}): end other programs"
    if isinstance(error, ImportError):
        return (
            f"a library is missing or broken ({first_line(error)}): in the checkout, run "
            "make install or pip install ."
        )
    # By name, because most commands report wrong input before they import JAX.
    if "JaxRuntimeError" in kinds or "XlaRuntimeError" in kinds:
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                f"the memory of a device is full ({first_line(error)}): "
                "end the other programs that use it, or use less (a smaller micro-batch, --slots)"
            )
        return f"a device or its driver failed ({first_line(error)})"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "the system allows no more threads: raise the limit (ulimit -u)"
    return None
