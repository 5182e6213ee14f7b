"""OpenAI's response formats: chat completions and completions, complete or as stream events."""

import itertools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from minigpt_jax.server.api_error import encode_json
from minigpt_jax.server.request import Delta, Token
from minigpt_jax.tokenizer import END_OF_TEXT, Tokenizer

# Stands for the log-probability of a token that cannot be drawn: JSON has no infinity.
_MIN_LOGPROB = -9999.0
_DONE = b"data: [DONE]\n\n"


def sse_event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


def sse_comment(text: str) -> bytes:
    """A comment between server-sent events, which clients ignore."""
    return f": {text}\n\n".encode()


@dataclass
class Choice:
    """One complete answer, collected from its deltas."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    num_generated: int = 0
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.num_generated += delta.num_generated
        self.finish_reason = delta.finish_reason


class ResponseFormat:
    """The JSON of one response. All events of a stream carry the same id."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, *, chat: bool, logprobs: bool, include_usage: bool
    ):
        """`include_usage`: end a stream with the token counts."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._model = model
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def body(self, choices: Sequence[Choice], prompt_tokens: int) -> dict:
        """The response that is not streamed."""
        completion_tokens = sum(choice.num_generated for choice in choices)
        return {
            **self._header("chat.completion"),
            "choices": [self._choice(i, choice) for i, choice in enumerate(choices)],
            "usage": _usage(prompt_tokens, completion_tokens),
        }

    def first_events(self, num_choices: int) -> list[bytes]:
        """Events before any text: in a chat, the role of the author."""
        if not self._chat:
            return []
        content = {"delta": {"role": "assistant", "content": ""}}
        return [self._event(i, content, None, None) for i in range(num_choices)]

    def delta_events(self, index: int, delta: Delta, offset: int) -> list[bytes]:
        """Events that add `delta` to choice `index`, whose earlier tokens have `offset` characters.

        A chat sends the finish reason in an event of its own.
        """
        events = []
        if delta.text or delta.tokens:
            logprobs = self._logprobs_of(delta.tokens, offset)
            if self._chat:
                content = {"delta": {"content": delta.text}}
                events.append(self._event(index, content, logprobs, None))
            else:
                content = {"text": delta.text}
                events.append(self._event(index, content, logprobs, delta.finish_reason))
        if delta.finish_reason and (self._chat or not events):
            content = {"delta": {}} if self._chat else {"text": ""}
            events.append(self._event(index, content, None, delta.finish_reason))
        return events

    def final_events(self, prompt_tokens: int, completion_tokens: int) -> list[bytes]:
        """Events after all text."""
        if not self._include_usage:
            return [_DONE]
        usage = {
            **self._header("chat.completion.chunk"),
            "choices": [],
            "usage": _usage(prompt_tokens, completion_tokens),
        }
        return [sse_event(encode_json(usage)), _DONE]

    def num_characters(self, tokens: Sequence[Token]) -> int:
        """Characters that begin in `tokens`, which is what text offsets count.

        The text sent so far may be shorter: what may be the start of a stop string is held back.
        """
        return sum(_num_characters(token, self._tokenizer) for token in tokens)

    def _choice(self, index: int, choice: Choice) -> dict:
        if self._chat:
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            content = {"message": message}
        else:
            content = {"text": choice.text}
        return {
            "index": index,
            **content,
            "logprobs": self._logprobs_of(choice.tokens, 0),
            "finish_reason": choice.finish_reason,
        }

    def _event(
        self, index: int, content: dict, logprobs: dict | None, finish_reason: str | None
    ) -> bytes:
        choice = {
            "index": index,
            **content,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = {**self._header("chat.completion.chunk"), "choices": [choice]}
        if self._include_usage:
            # In OpenAI's format only the last event has the counts; all others have null.
            chunk["usage"] = None
        return sse_event(encode_json(chunk))

    def _header(self, chat_object: str) -> dict:
        """The first fields of every object. A completion has the same type, streamed or not."""
        return {
            "id": self._id,
            "object": chat_object if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def _logprobs_of(self, tokens: list[Token], offset: int) -> dict | None:
        if not self._logprobs:
            return None
        if self._chat:
            return _chat_logprobs(tokens, self._tokenizer)
        return _completion_logprobs(tokens, self._tokenizer, offset)


def _usage(prompt: int, completion: int) -> dict:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _chat_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> dict:
    def entry(id: int, logprob: float | None) -> dict:
        return {
            "token": tokenizer.decode([id]),
            "logprob": _finite(logprob),
            "bytes": list(tokenizer.decode_bytes([id])),
        }

    content = []
    for token in tokens:
        top = [entry(id, logprob) for id, logprob in token.top]
        content.append(entry(token.id, token.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: list[Token], tokenizer: Tokenizer, offset: int) -> dict:
    lengths = [_num_characters(token, tokenizer) for token in tokens]
    offsets = itertools.accumulate(lengths, initial=offset)
    # The first token of a prompt has neither: nothing is before it.
    top = [
        {_token_name(id, tokenizer): _finite(logprob) for id, logprob in token.top}
        if token.logprob is not None
        else None
        for token in tokens
    ]
    logprobs = [None if token.logprob is None else _finite(token.logprob) for token in tokens]
    return {
        "tokens": [_token_name(token.id, tokenizer) for token in tokens],
        "token_logprobs": logprobs,
        "top_logprobs": top,
        # Where each token begins: the last offset is the end of the text.
        "text_offset": list(offsets)[:-1],
    }


def _num_characters(token: Token, tokenizer: Tokenizer) -> int:
    if token.id >= END_OF_TEXT:
        # A role marker, which is not text.
        return 0
    # In UTF-8 a byte of the form 10xxxxxx continues a character; all others begin one.
    return sum(byte & 0xC0 != 0x80 for byte in tokenizer.decode_bytes([token.id]))


def _token_name(id: int, tokenizer: Tokenizer) -> str:
    """A token's text, or its bytes where they are only a part of a character.

    As text, parts of different characters would all become the same replacement character.
    """
    raw = tokenizer.decode_bytes([id])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float | None) -> float:
    # "not >" instead of "<=", so that NaN becomes the minimum too.
    if logprob is None or not logprob > _MIN_LOGPROB:
        return _MIN_LOGPROB
    return logprob
