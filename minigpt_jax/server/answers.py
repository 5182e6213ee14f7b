"""The shapes of OpenAI's answers: chat completions, completions, their pieces in a stream, log-probabilities, usage."""

import itertools
import json
import time
import uuid
from collections.abc import Sequence

from minigpt_jax.server.engine import Piece, Token
from minigpt_jax.tokenizer import END_OF_TEXT, Tokenizer

_FLOOR = -9999.0  # for a token that cannot be drawn: JSON has no infinity


def encoded(value: object) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which has none, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", errors="replace"
    )


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


class Shape:
    """How the answers of one request look, whole and in pieces. Every piece carries the same id."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, *, chat: bool, logprobs: bool, include_usage: bool
    ):
        self._chat, self._logprobs, self._include_usage, self._tokenizer = (
            chat,
            logprobs,
            include_usage,
            tokenizer,
        )
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, choices: int) -> list[bytes]:
        """Events before any text."""
        if not self._chat:
            return []
        return [
            self._piece(i, {"delta": {"role": "assistant", "content": ""}}, None, None)
            for i in range(choices)
        ]

    def piece(self, index: int, piece: Piece, offset: int) -> list[bytes]:
        """Events of what a step added to choice `index`, whose tokens had `offset` letters before."""
        events = []
        if piece.text or piece.tokens:
            text = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
            events.append(
                self._piece(
                    index,
                    text,
                    self._likely(piece.tokens, offset),
                    None if self._chat else piece.reason,
                )
            )
        if piece.reason and (self._chat or not events):
            events.append(
                self._piece(
                    index, {"delta": {}} if self._chat else {"text": ""}, None, piece.reason
                )
            )
        return events

    def letters(self, tokens: Sequence[Token]) -> int:
        """Letters that begin in `tokens`: what offsets count. The text itself may be held back, or end before them."""
        return sum(_letters(token, self._tokenizer) for token in tokens)

    def closing(self, prompt_tokens: int, completion_tokens: int) -> list[bytes]:
        """Events after all text."""
        usage = {
            **self._named("chunk"),
            "choices": [],
            "usage": _usage(prompt_tokens, completion_tokens),
        }
        return [event(usage)] * self._include_usage + [b"data: [DONE]\n\n"]

    def whole(
        self,
        texts: Sequence[str],
        tokens: Sequence[list[Token]],
        reasons: Sequence[str],
        prompt_tokens: int,
    ) -> dict:
        """The answer that does not stream."""
        choices = []
        for i, (text, own, reason) in enumerate(zip(texts, tokens, reasons, strict=True)):
            said = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self._chat
                else {"text": text}
            )
            choices.append(
                {"index": i, **said, "logprobs": self._likely(own, 0), "finish_reason": reason}
            )
        return {
            **self._named(""),
            "choices": choices,
            "usage": _usage(prompt_tokens, sum(map(len, tokens))),
        }

    def _piece(self, index: int, said: dict, likely: dict | None, reason: str | None) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return event(
            {
                **self._named("chunk"),
                "choices": [{"index": index, **said, "logprobs": likely, "finish_reason": reason}],
                **usage,
            }
        )

    def _named(self, kind: str) -> dict:
        name = "chat.completion" + (f".{kind}" if kind else "") if self._chat else "text_completion"
        return self._head | {"object": name}

    def _likely(self, tokens: list[Token], offset: int) -> dict | None:
        if not self._logprobs:
            return None
        return (
            _chat_logprobs(tokens, self._tokenizer)
            if self._chat
            else _completion_logprobs(tokens, self._tokenizer, offset)
        )


def _usage(prompt: int, completion: int) -> dict:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _chat_logprobs(tokens: list[Token], tokenizer: Tokenizer) -> dict:
    def entry(id: int, value: float | None) -> dict:
        return {
            "token": tokenizer.decode([id]),
            "logprob": _finite(value),
            "bytes": list(tokenizer.decode_bytes([id])),
        }

    content = [
        entry(t.id, t.logprob) | {"top_logprobs": [entry(id, value) for id, value in t.top]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: list[Token], tokenizer: Tokenizer, offset: int) -> dict:
    names = [_name(t.id, tokenizer) for t in tokens]
    offsets = list(itertools.accumulate((_letters(t, tokenizer) for t in tokens), initial=offset))[
        :-1
    ]
    tops = [{_name(id, tokenizer): _finite(value) for id, value in t.top} for t in tokens]
    return {
        "tokens": names,
        "token_logprobs": [_finite(t.logprob) for t in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _letters(token: Token, tokenizer: Tokenizer) -> int:
    if token.id >= END_OF_TEXT:  # a role marker
        return 0
    return sum(
        byte & 0xC0 != 0x80 for byte in tokenizer.decode_bytes([token.id])
    )  # bytes that begin one


def _name(id: int, tokenizer: Tokenizer) -> str:
    """A token's text, or its bytes where they are half a letter: two such tokens must not share a name."""
    raw = tokenizer.decode_bytes([id])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(value: float | None) -> float:
    return _FLOOR if value is None or not value > _FLOOR else value
