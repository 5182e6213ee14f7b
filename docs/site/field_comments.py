"""The comment above a field is its description in the API reference.

The fields of this project are explained by comments, which griffe, the parser of mkdocstrings, does
not read.
"""

from itertools import takewhile

import griffe


class FieldComments(griffe.Extension):
    """Gives each field and each constant without a docstring the comment right above it."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_) -> None:
        """Called by griffe for each of them, once it is a member of its class or module."""
        if attr.docstring is None and attr.lineno is not None:
            above = attr.lines_collection[attr.filepath][: attr.lineno - 1]
            stripped = (line.strip() for line in reversed(above))
            comment = list(takewhile(is_comment, stripped))
            if comment:
                text = "\n".join(line[1:].strip() for line in reversed(comment))
                attr.docstring = griffe.Docstring(text, parent=attr)


def is_comment(line: str) -> bool:
    """Whether a line of Python, without its indentation, is nothing but a comment."""
    return line.startswith("#")
