"""The chat template: turns a conversation into ids, for training, the terminal and the server.

    <|endoftext|> <|system|>text<|end|> <|user|>text<|end|> <|assistant|>text<|end|> ...

(without the spaces). One function returns the tokens and the loss mask together. The mask is 1 on
an answer and its `<|end|>`, so that the model learns to stop, and 0 on everything else. An answer
of weight 0 is context for those after it.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from minigpt_jax.errors import InputError
from minigpt_jax.tokenizer import ASSISTANT, END, END_OF_TEXT, SYSTEM, USER, Tokenizer

_MARKERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class Message(TypedDict):
    """A message with the role "user" or "assistant", or "system" for the first one.

    `weight` is 0 for an answer that is not to be learned. Other answers have weight 1.
    """

    role: str
    content: str
    weight: NotRequired[int]


class BadConversation(InputError):
    """Messages that do not fit the template.

    `reason` is fixed text without details, so that callers can count errors by reason.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation, and a loss mask with 1 or 0 for each id.

    Raises BadConversation for an unknown role and for roles out of order.
    """
    _check(messages)
    tokens, mask = [END_OF_TEXT], [0]
    for message in messages:
        # A text such as "<|end|>" is encoded as plain text: no message can add a special token.
        content = tokenizer.encode(message["content"])
        weight = message.get("weight", 1) if message["role"] == "assistant" else 0
        tokens += [_MARKERS[message["role"]], *content, END]
        mask += [0] + [weight] * (len(content) + 1)
    return tokens, mask


def prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Token ids up to and including `<|assistant|>`, where generation starts.

    They are a prefix of `render` of the conversation with its answer. Raises BadConversation as
    `render` does, and unless the last message is the user's.
    """
    if not messages or messages[-1]["role"] != "user":
        raise BadConversation("role order", "the last message before an answer must be the user's")
    return render(messages, tokenizer)[0] + [ASSISTANT]


def _check(messages: Sequence[Message]) -> None:
    roles = [message["role"] for message in messages]
    for role in roles:
        if role not in _MARKERS:
            raise BadConversation(
                "unknown role", f"found {role!r:.40}, expected one of {', '.join(_MARKERS)}"
            )
    first_turn = 1 if roles[:1] == ["system"] else 0
    if len(roles) == first_turn:
        raise BadConversation("role order", "found no message of the user's")
    for i, role in enumerate(roles[first_turn:]):
        if role != ("user", "assistant")[i % 2]:
            raise BadConversation(
                "role order",
                f"found {role} as message {first_turn + i + 1}, "
                "expected an optional system message, then user and assistant in turn",
            )
