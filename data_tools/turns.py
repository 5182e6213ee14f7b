"""Read one turn of a dialogue: its role, its text, and whether its answer is learned.

Every error names the field in which the turn stands.
"""

import math
import reprlib
from collections.abc import Iterable
from typing import Any

from data_tools.conversation_fields import (
    CONTENT,
    ROLE,
    ROLES,
    UNSUPPORTED_IN_TURN,
    WEIGHTS_OF_TURN,
    ZERO_OR_ONE,
)
from minigpt_jax.chat import BadConversation, Message

_SHOWN_CHARACTERS = 40
# Levels of lists and objects in which a value is looked for.
_LEVELS = 3


def filled(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with a value: not null, NaN, blank, or empty."""
    return {name: value for name, value in fields.items() if not _is_empty(value, _LEVELS)}


def _is_empty(value: object, levels: int) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list | dict):
        children = value.values() if isinstance(value, dict) else value
        return not value or (levels > 0 and all(_is_empty(c, levels - 1) for c in children))
    # pandas writes a missing number as NaN.
    return value is None or (isinstance(value, float) and math.isnan(value))


def expect_supported(fields: dict[str, Any], unsupported: Iterable[str]) -> None:
    """Raise BadConversation if `fields` has one of `unsupported`."""
    for name in unsupported:
        if name in fields:
            raise BadConversation(
                f"{name} not supported",
                f"found {shorten(fields[name])}, for which the chat template has no place: "
                "remove the field to train without it",
            )


def read_dialogue(name: str, turns: object) -> list[Message]:
    """The messages of the dialogue in the field `name`. Raises BadConversation."""
    return [
        read_turn(name, turn) for turn in expect_list(name, turns) if not _is_blank_system(turn)
    ]


def _is_blank_system(turn: object) -> bool:
    """Whether a turn is a system message without a text, which counts as absent like a field."""
    fields = filled(turn) if isinstance(turn, dict) else {}
    return roles_of([fields]) == ["system"] and not values_of(fields, CONTENT)


def expect_list(name: str, turns: object) -> list[Any]:
    """`turns`. Raises BadConversation if it is no list."""
    if not isinstance(turns, list):
        raise BadConversation("not a list", f"found {shorten(turns)} in {name}")
    return turns


def read_turn(name: str, turn: object) -> Message:
    """The message of one turn in the field `name`. Raises BadConversation."""
    if not isinstance(turn, dict):
        raise BadConversation(
            "not a dictionary",
            f"found {shorten(turn)} in {name}, expected turns with a role and content",
        )
    fields = filled(turn)
    expect_supported(fields, UNSUPPORTED_IN_TURN)
    roles = [_role(value) for value in values_of(fields, ROLE)]
    # A blank text is not among the fields, but a better message than none at all.
    texts = values_of(fields, CONTENT) or values_of(turn, CONTENT)
    if not roles or not texts:
        raise BadConversation(
            "turn without role or content",
            f"found {shorten(turn)} in {name}, expected role and content, or from and value",
        )
    role = _only(name, roles)
    message = make_message(
        name, role if isinstance(role, str) else shorten(role), _only(name, texts)
    )
    if message["role"] == "assistant" and not is_learned(fields, WEIGHTS_OF_TURN):
        message["weight"] = 0
    return message


def values_of(fields: dict[str, Any], names: Iterable[str]) -> list[Any]:
    """The values of those `names` that `fields` has."""
    return [fields[name] for name in names if name in fields]


def _only(name: str, values: list[Any]) -> Any:
    if any(value != values[0] for value in values):
        shown = " and ".join(map(shorten, values))
        raise BadConversation("two values in one turn", f"found {shown} in {name}, expected one")
    return values[0]


def roles_of(turns: list[Any]) -> list[Any]:
    """All roles in `turns`, by our names."""
    dictionaries = [turn for turn in turns if isinstance(turn, dict)]
    return [_role(value) for turn in dictionaries for value in values_of(turn, ROLE)]


def _role(value: object) -> object:
    return ROLES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def is_learned(fields: dict[str, Any], weights: dict[str, int]) -> bool:
    """Whether no weight in `fields` excludes an answer from training."""
    given = {name: fields[name] for name in weights if name in fields}
    for name, value in given.items():
        if not isinstance(value, str | int | float) or str(value).lower() not in ZERO_OR_ONE:
            raise BadConversation(
                "weight neither 0 nor 1", f"found {shorten(value)} in {name}, expected 0 or 1"
            )
    return all(ZERO_OR_ONE[str(value).lower()] == weights[name] for name, value in given.items())


def make_message(name: str, role: str, content: object) -> Message:
    """A message whose content stands in the field `name`. Raises BadConversation."""
    content = _join_text_parts(content)
    if not isinstance(content, str):
        raise BadConversation(
            "not a text", f"found {shorten(content)} in {name} as content of the {role}"
        )
    if not content.strip():
        reason = "empty answer" if role == "assistant" else "empty message"
        raise BadConversation(reason, f"the content of the {role} in {name} is blank")
    return {"role": role, "content": content.strip()}


def _join_text_parts(content: object) -> object:
    """The text of a content that is a list of {"type": "text", "text": ...}, as OpenAI's may be."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if len(texts) == len(parts) and kinds == {"text"} and all(isinstance(t, str) for t in texts):
        return "".join(map(str, texts))
    return content


def printable(name: str) -> str:
    """The name of a field in one line that any terminal can show."""
    is_clear = name.strip() and name.isprintable() and len(name) <= _SHOWN_CHARACTERS
    return name if is_clear else shorten(name)


def shorten(value: object) -> str:
    """`value` in at most 40 characters."""
    # Unlike repr, it has no difficulty with lists in lists in lists.
    text = reprlib.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
