"""The request bodies as JSON schemas, which are published as /openapi.json and check every body."""

from minigpt_jax.sampling import MAX_BIASED
from minigpt_jax.server.foreign_fields import REFUSED, refused
from minigpt_jax.server.request import MAX_LOGPROBS, MAX_PROMPT_LOGPROBS

# Of one request: prompts times n.
MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1000


def _optional(schema: dict, *absent) -> dict:
    """`schema`, or null or a value of `absent`: those mean that the field is not given."""
    return {"anyOf": [schema, {"enum": [None, *absent]}]}


def _number(low: float, high: float, description: str, **more) -> dict:
    number = {"type": "number", "minimum": low, "maximum": high, **more}
    return _optional(number) | {"description": description}


def _integer(low: int, high: int, description: str, *absent) -> dict:
    integer = {"type": "integer", "minimum": low, "maximum": high}
    return _optional(integer, *absent) | {"description": description}


def _flag(description: str) -> dict:
    return _optional({"type": "boolean"}) | {"description": description}


def _one_or_more(schema: dict) -> dict:
    return {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": schema}


_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": _TEXT_PART},
                {"enum": [None]},
            ],
            "description": "Required, but an assistant's message may have none.",
        },
        "tool_calls": refused([]),
        "function_call": refused(),
    },
}
_STOP = {"type": "string", "maxLength": MAX_STOP_LENGTH}
_STOPS = {"type": "array", "maxItems": MAX_STOP_STRINGS, "items": _STOP}
_COMMON = {
    "model": _optional({"type": "string"})
    | {"description": "The id that /v1/models lists; may be left out."},
    "temperature": _number(0, 2, "0: always the most likely token. Default 1."),
    "top_p": _number(
        0,
        1,
        "Only the smallest set of tokens whose probabilities add up to it. Default 1.",
        exclusiveMinimum=0,
    ),
    "top_k": _integer(
        0,
        10**6,
        "Only this many of the most likely tokens; 0 or -1, the default: all. Not in OpenAI's API.",
        -1,
    ),
    "min_p": _number(
        0,
        1,
        "Only tokens with at least this share of the highest probability. Default 0. "
        "Not in OpenAI's API.",
    ),
    "repetition_penalty": _number(
        0.01,
        100,
        "Above 1: tokens already in the text become less likely. Default 1. Not in OpenAI's API.",
    ),
    "seed": _integer(
        -(2**63),
        2**64 - 1,
        "The same request with the same seed gets the same answer. "
        "Default: a different one each time.",
    ),
    "n": _integer(1, MAX_CHOICES, "Number of answers, with consecutive seeds. Default 1."),
    "stop": {
        "anyOf": [_STOP, _STOPS, {"enum": [None]}],
        "description": "The answer ends before the first of these strings; empty ones are ignored.",
    },
    "stream": _flag("Send the answer in parts, as server-sent events. Default false."),
    "stream_options": _optional(
        {
            "type": "object",
            "properties": {"include_usage": _flag("End the stream with the token counts.")},
        }
    ),
    "presence_penalty": _number(
        -2, 2, "Subtracted from the logits of tokens that the answer has already. Default 0."
    ),
    "frequency_penalty": _number(
        -2, 2, "The same, multiplied by how often the answer has the token. Default 0."
    ),
    "logit_bias": _optional(
        {
            "type": "object",
            "properties": {},
            "maxProperties": MAX_BIASED,
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        # What PHP makes of an empty object.
        [],
    )
    | {"description": "What is added to the logits of these token ids."},
    **REFUSED,
}
_MAX_TOKENS = "Maximum length of the answer; the context also limits it. -1: not given."
CHAT = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": _MESSAGE,
            "description": "A conversation that ends with the user's message.",
        },
        **_COMMON,
        "max_tokens": _integer(1, 10**9, _MAX_TOKENS, -1),
        "max_completion_tokens": _integer(
            1,
            10**9,
            "Another name of max_tokens, which it overrides. Default: what the context holds.",
            -1,
        ),
        "logprobs": _flag("Log-probabilities of the tokens. Default false."),
        "top_logprobs": _integer(
            0,
            MAX_LOGPROBS,
            "How many of the most likely tokens to return at each position; needs logprobs.",
        ),
        "echo": refused(False),
        "best_of": refused(1),
        "add_special_tokens": refused(False),
        "prompt": refused(instead="/v1/completions takes a prompt"),
    },
}
_TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
COMPLETION = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {
            "anyOf": [
                {"type": "string"},
                _one_or_more({"type": "string"}),
                _TOKENS,
                _one_or_more(_TOKENS),
            ],
            "description": "A text, token ids, or a list of either. "
            "Texts get a document separator before them.",
        },
        **_COMMON,
        "max_tokens": _integer(0, 10**9, f"{_MAX_TOKENS} 0 needs echo. Default 16.", -1),
        "logprobs": _integer(
            0,
            MAX_PROMPT_LOGPROBS,
            "Log-probabilities of the tokens, and of this many of the most likely ones.",
            False,
        ),
        "echo": _flag("The text and the log-probabilities begin with the prompt. Default false."),
        "max_completion_tokens": refused(-1, instead="here it is max_tokens"),
        "add_special_tokens": refused(True, instead="token ids get no separator"),
        "messages": refused([], instead="/v1/chat/completions takes messages"),
        "best_of": _integer(
            1, MAX_CHOICES, "Not supported, unless equal to n, which has no effect."
        ),
    },
}

_TEXT = {"type": "string"}
_ERROR_FIELDS = {
    "message": _TEXT,
    "type": _TEXT,
    "param": _optional(_TEXT),
    "code": _optional(_TEXT),
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "object", "required": list(_ERROR_FIELDS), "properties": _ERROR_FIELDS}
    },
}
_ERROR_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 431, 503)


def openapi(version: str) -> dict:
    """The API in the OpenAPI format."""
    paths = {
        "/v1/chat/completions": _post(CHAT, "Answers a conversation; finetuned models only."),
        "/v1/completions": _post(COMPLETION, "Continues a text."),
        "/v1/models": _get("The models."),
        "/health": _get("Whether the server takes requests, and how fast it works."),
        "/metrics": _get("Counts and times for Prometheus.", "text/plain"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "miniGPT-JAX", "version": version},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _post(schema: dict, summary: str) -> dict:
    success = {
        "description": "An object, or server-sent events with `stream`.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {
        "post": {"summary": summary, "requestBody": body, "responses": _responses(success)},
    }


def _get(summary: str, content_type: str = "application/json") -> dict:
    success = {"description": "What was asked for.", "content": {content_type: {}}}
    return {"get": {"summary": summary, "responses": _responses(success)}}


def _responses(success: dict) -> dict:
    error = {
        "description": "An error; `param` names what is wrong.",
        "content": {"application/json": {"schema": _ERROR}},
    }
    return {"200": success} | {str(status): error for status in _ERROR_STATUSES}
