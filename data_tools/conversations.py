"""Turn a row of any known schema into a conversation: its tokens and its loss mask.

conversation_fields.py has the tables of known fields. A field with a meaning for training is used,
or the row is refused. Every other field that holds something is named as not used.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data_tools.conversation_fields import (
    ADDED,
    ADDED_TO_PAIRS_ONLY,
    CONTENT,
    DIALOGUES,
    HISTORY,
    PAIRS,
    ROLE,
    SCHEMAS,
    SYSTEM,
    UNSUPPORTED,
    WEIGHTS_OF_ROW,
    WEIGHTS_OF_TURN,
    Schema,
)
from data_tools.turns import (
    expect_list,
    expect_supported,
    filled,
    is_learned,
    make_message,
    printable,
    read_dialogue,
    read_turn,
    roles_of,
    shorten,
)
from minigpt_jax.chat import BadConversation, Message, render
from minigpt_jax.tokenizer import Tokenizer


class Reading(NamedTuple):
    """The messages of a row, and its fields that were not used: "text", "messages[].name"."""

    messages: list[Message]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: `tokens` [n] uint16, `mask` [n] uint8 with 1 for a learned token.

    `unused` are the fields of its row that were not used.
    """

    tokens: np.ndarray
    mask: np.ndarray
    unused: tuple[str, ...] = ()


def conversation_of(row: dict[str, Any], context: int, tokenizer: Tokenizer) -> Conversation:
    """The rendered conversation of a row.

    Raises BadConversation as `read_row` does, for a row without an answer to learn, and for one
    that is longer than `context` tokens.
    """
    messages, unused = read_row(row)
    tokens, mask = render(messages, tokenizer)
    if not any(mask):
        raise BadConversation(
            "nothing to learn", "found no answer, or only such as a weight excludes"
        )
    if len(tokens) > context:
        raise BadConversation("too long", f"found {len(tokens)} tokens, expected at most {context}")
    return Conversation(np.array(tokens, np.uint16), np.array(mask, np.uint8), unused)


def read_row(row: dict[str, Any]) -> Reading:
    """The messages of a row of any known schema, without whitespace at their ends.

    A field without a value (null, NaN, blank, an empty list) counts as absent. Of several schemas
    that a row fits, the one with the most texts is read. Raises BadConversation for a row that fits
    none, for one that two schemas read differently, and for a value that cannot be used.
    """
    fields = filled(row)
    expect_supported(fields, UNSUPPORTED)
    schemas = _schemas_of(row, fields)
    readings = [_messages_of(schema, row, fields) for schema in schemas]
    if any(messages != readings[0] for messages in readings):
        names = " or ".join(map("/".join, schemas))
        raise BadConversation(
            f"ambiguous: {names}", "found different messages in them: remove what is not meant"
        )
    messages = _with_system_and_history(fields, readings[0])
    weights = _weights_of(fields)
    if not is_learned(weights, WEIGHTS_OF_ROW):
        _learn_nothing(messages)
    used = {*SYSTEM, *HISTORY, *weights, *(name for schema in schemas for name in schema)}
    if _is_pair(schemas[0]):
        used.update(ADDED)
    unused = {printable(name) for name in fields if name not in used}
    for name in used.intersection(fields):
        unused.update(_unknown_in_turns(name, fields[name]))
    return Reading(messages, tuple(sorted(unused)))


def _schemas_of(row: dict[str, Any], fields: dict[str, Any]) -> list[Schema]:
    """The schemas with a question and an answer in this row, and with the most texts."""
    complete = [schema for schema in SCHEMAS if _is_complete(schema, fields)]
    if complete:
        most = max(_texts(schema, fields) for schema in complete)
        return [schema for schema in complete if _texts(schema, fields) == most]
    # Reading the first schema whose fields are there tells what they lack.
    present = [schema for schema in SCHEMAS if all(row.get(name) is not None for name in schema)]
    if not present:
        found = ", ".join(map(printable, fields)) or "nothing"
        known = ", ".join((*DIALOGUES, *map("/".join, PAIRS)))
        raise BadConversation("field missing", f"found {found}, expected one of {known}")
    return present[:1]


def _is_pair(schema: Schema) -> bool:
    return len(schema) == 2


def _is_complete(schema: Schema, fields: dict[str, Any]) -> bool:
    if schema[0] not in fields or schema[-1] not in fields:
        return False
    if schema[0] not in DIALOGUES:
        return True
    turns = fields[schema[0]] if isinstance(fields[schema[0]], list) else []
    return "user" in roles_of(turns[-1:]) if _is_pair(schema) else "assistant" in roles_of(turns)


def _texts(schema: Schema, fields: dict[str, Any]) -> int:
    """How many texts a schema reads. Each turn of a dialogue is one."""
    names = (*schema, *ADDED) if _is_pair(schema) else schema
    values = [fields[name] for name in names if name in fields]
    return sum(len(value) if isinstance(value, list) else 1 for value in values)


def _messages_of(schema: Schema, row: dict[str, Any], fields: dict[str, Any]) -> list[Message]:
    if not _is_pair(schema):
        expect_supported(fields, ADDED_TO_PAIRS_ONLY)
        return read_dialogue(schema[0], row[schema[0]])
    question, answer = schema
    answers = _text_or_dialogue(answer, row[answer], "assistant")
    messages = _text_or_dialogue(question, row[question], "user")
    _learn_nothing(messages)
    last = messages[-1]
    if last["role"] != "user":
        expect_supported(fields, ADDED)
    added = [
        make_message(name, "user", fields[name])["content"] for name in ADDED if name in fields
    ]
    # Some data sets hold the same text in two of these fields.
    last["content"] = "\n\n".join(dict.fromkeys([last["content"], *added]))
    return messages + answers


def _text_or_dialogue(name: str, value: object, role: str) -> list[Message]:
    if value and isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return read_dialogue(name, value)
    return [make_message(name, role, value)]


def _history(fields: dict[str, Any]) -> list[Message]:
    """The turns before those of the schema: [question, answer] pairs, or a dialogue."""
    messages: list[Message] = []
    for name in HISTORY:
        for turn in expect_list(name, fields.get(name, [])):
            if isinstance(turn, list) and len(turn) == 2:
                messages += [
                    make_message(name, "user", turn[0]),
                    make_message(name, "assistant", turn[1]),
                ]
            else:
                messages.append(read_turn(name, turn))
    return messages


def _with_system_and_history(fields: dict[str, Any], messages: list[Message]) -> list[Message]:
    """`messages` behind the row's system message and its earlier turns.

    Messages that begin with a copy of these turns get them once. Raises BadConversation for two
    different system messages.
    """
    history_system, history = _split_system(_history(fields))
    system, turns = _split_system(messages)
    systems = [make_message(name, "system", fields[name]) for name in SYSTEM if name in fields]
    systems += history_system + system
    if any(other != systems[0] for other in systems):
        shown = " and ".join(shorten(other["content"]) for other in systems)
        raise BadConversation("two system messages", f"found {shown}, expected one")
    copies, others = turns[: len(history)], turns[len(history) :]
    if _without_weights(copies) == _without_weights(history):
        # A weight of 0 in either is kept.
        turns = [turn | copy for turn, copy in zip(history, copies, strict=True)] + others
    else:
        turns = history + turns
    return systems[:1] + turns


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    systems = 1 if messages and messages[0]["role"] == "system" else 0
    return messages[:systems], messages[systems:]


def _without_weights(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def _weights_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The weights of a row. A `label` that is neither true nor false is the name of a class.

    CSV files have texts for true and false.
    """
    return {
        name: fields[name]
        for name in WEIGHTS_OF_ROW
        if name in fields and (name != "label" or str(fields[name]).lower() in ("true", "false"))
    }


def _learn_nothing(messages: list[Message]) -> None:
    for message in messages:
        if message["role"] == "assistant":
            message["weight"] = 0


def _unknown_in_turns(name: str, value: object) -> set[str]:
    known = {*ROLE, *CONTENT, *WEIGHTS_OF_TURN}
    turns = value if isinstance(value, list) else []
    return {
        f"{name}[].{printable(field)}"
        for turn in turns
        if isinstance(turn, dict)
        for field in filled(turn)
        if field not in known
    }
