"""From request bodies to requests for the engine."""

import secrets
from dataclasses import dataclass

from minigpt_jax import chat
from minigpt_jax.errors import InputError
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.sampling import SamplingParams, sampling_params
from minigpt_jax.server import schema
from minigpt_jax.server.api_error import ApiError
from minigpt_jax.server.conversation import turns
from minigpt_jax.server.foreign_fields import check_unknown
from minigpt_jax.server.json_schema import parse_object
from minigpt_jax.server.request import Request, check_prompt
from minigpt_jax.server.responses import ResponseFormat

# Length of a completion without max_tokens, as in OpenAI's API.
DEFAULT_COMPLETION_TOKENS = 16
# Smaller temperatures would overflow f32 in the division of the logits; greedy is their limit.
_MIN_TEMPERATURE = 1e-4
_MIN_TOP_P = 1e-6
_NUM_SEEDS = 2**32
# At the beginning of a text it is the separator that every text gets, as in OpenAI's API.
_SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Prompts:
    """The token ids of one or more prompts, and the field they come from, which errors name."""

    token_ids: list[list[int]]
    field: str
    # From which token on `echo` returns each: the separator that this server adds is left out.
    given_from: list[int]


@dataclass(frozen=True)
class ParsedRequest:
    """What to ask of the engine, and the format of the response."""

    requests: list[Request]
    format: ResponseFormat
    stream: bool
    prompt_tokens: int


class RequestParser:
    """Checks bodies, which match the schema, against what this model can do."""

    def __init__(self, run: LoadedRun, model_name: str):
        self._run = run
        self._model_name = model_name
        # No text of more characters fits into the context, so that it need not be tokenized.
        self._max_characters = run.config.context * int(run.tokenizer.byte_lengths().max())

    def parse_chat(self, body: dict) -> ParsedRequest:
        """The request for the next message of a conversation. Raises ApiError."""
        if not self._run.can_chat:
            raise ApiError(
                400,
                "this model was not finetuned and cannot chat: use /v1/completions",
                param="model",
            )
        if body.get("top_logprobs") and not body.get("logprobs"):
            raise ApiError(400, "top_logprobs: needs logprobs true", param="top_logprobs")
        prompt = self._chat_prompt(body["messages"])
        available = max(self._run.config.context - len(prompt), 1)
        max_tokens = body.get("max_completion_tokens", body.get("max_tokens", available))
        num_logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
        prompts = Prompts([prompt], "messages", [0])
        requests = self._requests(body, prompts, max_tokens, num_logprobs)
        return self._parsed(body, requests, [prompt], chat=True)

    def parse_completion(self, body: dict) -> ParsedRequest:
        """The request for continuations of one or more texts. Raises ApiError."""
        if body.get("best_of", 1) not in (1, body.get("n", 1)):
            raise ApiError(400, "best_of: not supported, unless equal to n", param="best_of")
        given = _as_list(body["prompt"])
        token_ids = [self._completion_prompt(prompt) for prompt in given]
        max_tokens = body.get("max_tokens", DEFAULT_COMPLETION_TOKENS)
        if not max_tokens and not body.get("echo"):
            raise ApiError(400, "max_tokens: 0 needs echo true", param="max_tokens")
        num_logprobs = body.get("logprobs")
        prompts = Prompts(token_ids, "prompt", [int(_gets_separator(p)) for p in given])
        requests = self._requests(body, prompts, max_tokens, num_logprobs)
        return self._parsed(body, requests, token_ids, chat=False)

    def _chat_prompt(self, messages: list[dict]) -> list[int]:
        conversation = turns(messages)
        self._check_length(sum(len(turn["content"]) for turn in conversation), "messages")
        try:
            return chat.prompt(conversation, self._run.tokenizer)
        except chat.BadConversation as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None

    def _completion_prompt(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            self._check_length(len(prompt), "prompt")
            return self._run.tokenizer.encode_document(prompt.removeprefix(_SEPARATOR))
        largest = self._run.config.vocab_size - 1
        if max(prompt) > largest:
            raise ApiError(
                400,
                f"prompt: found token id {max(prompt)}, expected 0 to {largest}",
                param="prompt",
            )
        return prompt

    def _check_length(self, num_characters: int, field: str) -> None:
        """Refuses very long texts before the tokenizer spends time on them."""
        if num_characters > self._max_characters:
            context = self._run.config.context
            raise ApiError(
                400,
                f"{field}: {num_characters} characters are more than a context of {context} tokens "
                "can hold: shorten it",
                param=field,
                code="context_length_exceeded",
            )

    def _requests(
        self, body: dict, prompts: Prompts, max_tokens: int, num_logprobs: int | None
    ) -> list[Request]:
        """`n` requests for each prompt. Raises ApiError for prompts that do not fit."""
        n = body.get("n", 1)
        if n * len(prompts.token_ids) > schema.MAX_CHOICES:
            raise ApiError(
                400,
                f"n: {n} answers to {len(prompts.token_ids)} prompts are too many, "
                f"expected at most {schema.MAX_CHOICES} in total",
                param="n",
            )
        for prompt in prompts.token_ids:
            try:
                check_prompt(prompt, self._run.config.context, max_tokens)
            except InputError as error:
                raise ApiError(
                    400,
                    f"{prompts.field}: {error}",
                    param=prompts.field,
                    code="context_length_exceeded",
                ) from None
        stop = body.get("stop", [])
        stops = [text for text in ([stop] if isinstance(stop, str) else stop) if text]
        echo = body.get("echo", False)
        # One seed after the other, so that equal prompts get different answers.
        seed = body.get("seed", secrets.randbits(32))
        pairs = zip(prompts.token_ids, prompts.given_from, strict=True)
        repeated = [pair for pair in pairs for _ in range(n)]
        return [
            Request(
                prompt,
                self._sampling(body, (seed + i) % _NUM_SEEDS),
                max_tokens=min(max_tokens, self._run.config.context),
                stop=stops,
                num_logprobs=num_logprobs,
                echo_from=given_from if echo else None,
                # lm-evaluation-harness expects an entry for every token that was drawn.
                keeps_stop_token=echo and num_logprobs is not None,
            )
            for i, (prompt, given_from) in enumerate(repeated)
        ]

    def _sampling(self, body: dict, seed: int) -> SamplingParams:
        temperature = body.get("temperature", 1.0)
        top_k = body.get("top_k", 0)
        keeps_all = top_k == 0 or top_k >= self._run.config.vocab_size
        return sampling_params(
            1,
            self._run.config,
            temperature=temperature if temperature >= _MIN_TEMPERATURE else 0.0,
            top_k=None if keeps_all else top_k,
            top_p=max(body.get("top_p", 1.0), _MIN_TOP_P),
            min_p=body.get("min_p", 0.0),
            repetition_penalty=body.get("repetition_penalty", 1.0),
            presence_penalty=body.get("presence_penalty", 0.0),
            frequency_penalty=body.get("frequency_penalty", 0.0),
            logit_bias=_logit_bias(body.get("logit_bias", {}), self._run.config.vocab_size),
            seed=seed,
        )

    def _parsed(
        self, body: dict, requests: list[Request], prompts: list[list[int]], *, chat: bool
    ) -> ParsedRequest:
        stream = body.get("stream", False)
        include_usage = bool(body.get("stream_options", {}).get("include_usage"))
        if include_usage and not stream:
            raise ApiError(400, "stream_options: needs stream true", param="stream_options")
        format = ResponseFormat(
            self._model_name,
            self._run.tokenizer,
            chat=chat,
            logprobs=requests[0].num_logprobs is not None,
            include_usage=include_usage,
        )
        return ParsedRequest(requests, format, stream, sum(map(len, prompts)))


def parse_body(raw: bytes, fields: dict) -> dict:
    """The body, checked against the schema `fields` and for typos. Raises ApiError."""
    body = parse_object(raw, fields)
    check_unknown(body, fields["properties"])
    return body


def _as_list(prompt: str | list) -> list:
    """A list of prompts; one text or one list of token ids is a single prompt."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _gets_separator(prompt: str | list[int]) -> bool:
    """Whether this server adds the separator: to texts that do not begin with it, and to no ids."""
    return isinstance(prompt, str) and not prompt.startswith(_SEPARATOR)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    """The bias by token id. JSON has only texts as names. Raises ApiError."""
    for name in bias:
        is_number = name.isascii() and name.isdecimal() and len(name) < 10
        if not (is_number and int(name) < vocab_size):
            raise ApiError(
                400,
                f"logit_bias: found {name[:20]!r}, expected token ids from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
    return {int(name): value for name, value in bias.items()}
