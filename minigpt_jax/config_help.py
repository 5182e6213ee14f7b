"""What `python train.py --help` prints: each field of a config, its values, default and reason.

The reasons are the comments of configs/pretrain.py, so that a field is explained in one place.
"""

import inspect
import re
import textwrap
from typing import Any

from minigpt_jax.config_fields import FIELDS, expected

USAGE = "usage: python train.py --config configs/pretrain.py [--config.section.field=value ...]"
_ASSIGNMENT = re.compile(r"c\.([\w.]+) = ")


def config_help() -> str:
    """The whole text. configs/ stands beside train.py, the only program that prints it."""
    from configs import pretrain

    # Whose fields no type checker can know.
    config: Any = pretrain.get_config()
    explained = reasons(inspect.getsource(pretrain))
    lines = [
        USAGE,
        "",
        "The fields of a config. The defaults are those of configs/pretrain.py; the other files of",
        "configs/ change some of them.",
        "",
    ]
    section_before = ""
    for name, allowed in FIELDS.items():
        section, _, field = name.rpartition(".")
        if section != section_before:
            lines += ["", *_wrapped(f"{section}: {explained[section]}", "")]
            section_before = section
        default = (config[section] if section else config)[field]
        lines.append(f"  --config.{name}  {expected(allowed)} (default: {default!r})")
        lines += _wrapped(explained[name], "      ")
    return "\n".join(lines)


def reasons(source: str) -> dict[str, str]:
    """{"section.field": comment} of the lines `c.section.field = ...` of a config file.

    The comment of a field or section is what stands right above it, "" where nothing does.
    """
    found = {}
    comment: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        if match := _ASSIGNMENT.match(line):
            found[match[1]] = " ".join(comment)
        comment = []
    return found


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 95, initial_indent=indent, subsequent_indent=indent)
