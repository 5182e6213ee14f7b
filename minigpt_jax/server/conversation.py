"""Messages as clients send them, turned into the conversations that the chat template has."""

from collections.abc import Sequence

from minigpt_jax import chat
from minigpt_jax.server.api_error import ApiError


def turns(messages: Sequence[dict]) -> list[chat.Message]:
    """At most one system message, then user and assistant in turn, from any order of messages.

    System messages are joined into one at the beginning, wherever they stand. Neighbours with the
    same role are joined, with an empty line between them, as the chat page does. Answers before the
    first question are left out, and so are messages without text, unless it is the question that is
    to be answered. Raises ApiError for a message without content that is not an answer.
    """
    system = []
    conversation: list[chat.Message] = []
    for number, message in enumerate(messages):
        role, text = _role(message), _text(message, number)
        if not text.strip() and (role != "user" or number < len(messages) - 1):
            continue
        if role == "system":
            system.append(text)
        elif conversation and conversation[-1]["role"] == role:
            conversation[-1]["content"] += f"\n\n{text}"
        elif conversation or role == "user":
            conversation.append(chat.Message(role=role, content=text))
    if not system:
        return conversation
    return [chat.Message(role="system", content="\n\n".join(system)), *conversation]


def _role(message: dict) -> str:
    """OpenAI's newer models call the system message "developer"."""
    return "system" if message["role"] == "developer" else message["role"]


def _text(message: dict, number: int) -> str:
    """The text of a message, which may come in parts. An answer may have none."""
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant":
            return ""
        field = f"messages[{number}].content"
        raise ApiError(400, f"{field}: is required, except for the assistant's", param=field)
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
