"""Turn a row of any known schema into a conversation: its tokens and its loss mask.

Known are `messages` (role/content), `conversations` (from/value), `prompt`/`completion`,
`instruction`/`input`/`output` and `question`/`answer`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt_jax.chat import BadConversation, Message, render
from minigpt_jax.tokenizer import Tokenizer

# Fields of dialogues, then of pairs, in the order in which they are looked for.
_DIALOGUES = ("messages", "conversations")
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
# All fields of a row that are read.
FIELDS = (*_DIALOGUES, *(field for pair in _PAIRS for field in pair), "input", "system")
# ShareGPT's names of roles. The chat template checks all others.
_ROLES = {"human": "user", "gpt": "assistant"}
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: `tokens` [n] uint16, `mask` [n] uint8 with 1 for a learned token."""

    tokens: np.ndarray
    mask: np.ndarray


def conversation_of(row: dict[str, Any], context: int, tokenizer: Tokenizer) -> Conversation:
    """The rendered conversation of a row.

    Raises BadConversation for a row of no known schema, for one without an answer, and for one that
    is longer than `context` tokens.
    """
    tokens, mask = render(messages_of(row), tokenizer)
    if not any(mask):
        raise BadConversation("nothing to learn", "found no answer of the assistant")
    if len(tokens) > context:
        raise BadConversation("too long", f"found {len(tokens)} tokens, expected at most {context}")
    return Conversation(np.array(tokens, np.uint16), np.array(mask, np.uint8))


def messages_of(row: dict[str, Any]) -> list[Message]:
    """The messages of a row of any known schema, without whitespace at their ends.

    A null counts as an absent field. A `system` field becomes the message before a pair; an `input`
    is added below its instruction. Raises BadConversation.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    for name in _DIALOGUES:
        if name in fields:
            return _messages_of_dialogue(name, fields[name])
    for question, answer in _PAIRS:
        if question in fields or answer in fields:
            return _messages_of_pair(fields, question, answer)
    known = [*_DIALOGUES, *("/".join(pair) for pair in _PAIRS)]
    found = ", ".join(map(str, fields)) or "nothing"
    raise BadConversation("field missing", f"found {found}, expected one of {', '.join(known)}")


def _messages_of_dialogue(name: str, turns: object) -> list[Message]:
    if not isinstance(turns, list):
        raise BadConversation("not a list", f"found {_shorten(turns)} in {name}")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            found = f"found {_shorten(turn)} in {name}"
            raise BadConversation(
                "not a dictionary", f"{found}, expected turns with a role and content"
            )
        role = turn.get("role", turn.get("from"))
        role = _ROLES.get(role, role) if isinstance(role, str) else _shorten(role)
        messages.append(_message(role, turn.get("content", turn.get("value"))))
    return messages


def _messages_of_pair(fields: dict[str, Any], question: str, answer: str) -> list[Message]:
    for field in (question, answer):
        if field not in fields:
            found = ", ".join(map(str, fields))
            raise BadConversation("field missing", f"found {found}, expected {field} too")
    completion = _message("assistant", fields[answer])
    prompt = _message("user", fields[question])
    if question == "instruction" and fields.get("input"):
        prompt["content"] += "\n\n" + _message("user", fields["input"])["content"]
    if fields.get("system"):
        return [_message("system", fields["system"]), prompt, completion]
    return [prompt, completion]


def _message(role: str, content: object) -> Message:
    if not isinstance(content, str):
        raise BadConversation("not a text", f"found {_shorten(content)} as content of the {role}")
    if not content.strip():
        reason = "empty answer" if role == "assistant" else "empty message"
        raise BadConversation(reason, f"the content of the {role} is blank")
    return {"role": role, "content": content.strip()}


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
