"""What may be asked for, said once: the tables here are published as /openapi.json, and every body is checked against them."""

import json
from collections.abc import Iterator

from minigpt_jax.server.engine import TOP
from minigpt_jax.server.refusal import Refusal

MAX_ANSWERS = 16  # that one request may ask for, prompts times n
STOPS, STOP_LETTERS = 4, 128  # every new token is held against every beginning of these
_NAMES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


def _optional(schema: dict) -> dict:
    return {"anyOf": [schema, {"type": "null"}]}


def _number(low: float, high: float, says: str, **more) -> dict:
    return _optional({"type": "number", "minimum": low, "maximum": high, **more}) | {
        "description": says
    }


def _integer(low: int, high: int, says: str) -> dict:
    return _optional({"type": "integer", "minimum": low, "maximum": high}) | {"description": says}


def _flag(says: str) -> dict:
    return _optional({"type": "boolean"}) | {"description": says}


def _several(schema: dict) -> dict:
    return {"type": "array", "minItems": 1, "maxItems": MAX_ANSWERS, "items": schema}


def _only(*values, says: str = "Not supported: only these values, which change nothing.") -> dict:
    return {"enum": [None, *values], "description": says}


_TEXT_PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, _TEXT_PARTS]},
        "tool_calls": _only([]),
    },
}
_STOP = {"type": "string", "minLength": 1, "maxLength": STOP_LETTERS}
_STOPS = {"type": "array", "maxItems": STOPS, "items": _STOP}
_SAMPLING = {
    "model": _optional({"type": "string"})
    | {"description": "The id that /v1/models lists; may be left out."},
    "temperature": _number(0, 2, "0: always the most likely token. Default 1."),
    "top_p": _number(
        0, 1, "Only the fewest tokens whose probabilities reach it. Default 1.", exclusiveMinimum=0
    ),
    "top_k": _integer(
        0,
        10**6,
        "Only so many of the most likely tokens; 0, the default: all. Not in OpenAI's API.",
    ),
    "min_p": _number(
        0,
        1,
        "Only tokens with this share of the most likely one's probability. Default 0. Not in OpenAI's API.",
    ),
    "repetition_penalty": _number(
        0.01,
        100,
        "Above 1: tokens already in the text become less likely. Default 1. Not in OpenAI's API.",
    ),
    "seed": _integer(
        -(2**63),
        2**64 - 1,
        "The same request with the same seed gets the same answer. Default: another one each time.",
    ),
    "n": _integer(1, MAX_ANSWERS, "Answers, with seeds counting up. Default 1."),
    "stop": {
        "anyOf": [_STOP, _STOPS, {"type": "null"}],
        "description": "Ends the answer before itself.",
    },
    "max_tokens": _integer(1, 10**9, "The answer ends there at the latest, or with the context."),
    "stream": _flag("Send pieces as server-sent events. Default false."),
    "stream_options": _optional(
        {
            "type": "object",
            "properties": {"include_usage": _flag("End the stream with a count of tokens.")},
        }
    ),
    "presence_penalty": _only(0),
    "frequency_penalty": _only(0),
    "logit_bias": _only({}),
}
CHAT = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": _MESSAGE,
            "description": "A system message or none, then user and assistant in turn.",
        },
        **_SAMPLING,
        "max_completion_tokens": _integer(
            1, 10**9, "The same as max_tokens, and goes before it. Default: what the context holds."
        ),
        "logprobs": _flag("Log-probabilities of the tokens. Default false."),
        "top_logprobs": _integer(
            0, TOP, "How many of the most likely tokens to name at every place; needs logprobs."
        ),
        "response_format": _only({"type": "text"}),
        "modalities": _only(["text"]),
        "tools": _only([]),
        "tool_choice": _only("none", "auto"),
        "functions": _only([]),
        "function_call": _only("none", "auto"),
        "audio": _only(),
        "prediction": _only(),
        "web_search_options": _only(),
    },
}
_TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
COMPLETION = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {
            "anyOf": [{"type": "string"}, _several({"type": "string"}), _TOKENS, _several(_TOKENS)],
            "description": "A text, token ids, or a list of either. A document separator goes before texts.",
        },
        **_SAMPLING,
        "logprobs": _integer(
            0, 5, "Log-probabilities of the tokens, and of so many of the most likely ones."
        ),
        "echo": _only(False),
        "suffix": _only(""),
        "best_of": _integer(
            1, MAX_ANSWERS, "Not supported, unless equal to n, which changes nothing."
        ),
    },
}


def read(body: bytes, schema: dict) -> dict:
    """The object in `body`, checked, without its nulls (which stand for "not given"). Raises Refusal (400)."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refusal(400, "the body is no UTF-8 text") from None
    except (
        ValueError,
        RecursionError,
    ):  # also numbers of thousands of digits, and brackets by the thousand
        raise Refusal(400, "the body is no JSON that this server reads") from None
    check(value, schema, "")
    return {name: item for name, item in value.items() if item is not None}


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def check(value: object, schema: dict, place: str) -> None:
    """Raises Refusal (400) that names `place` unless `value` is as `schema` says, in the few words of JSON Schema used here."""
    if fault := next(_faults(value, schema, place), None):
        where, what = fault
        message = f"{where or 'the body'}: {what}"
        raise Refusal(400, message, param=where or None)


def _faults(value: object, schema: dict, place: str) -> Iterator[tuple[str, str]]:
    """(where, what is wrong), the first of which is worth telling."""
    if "anyOf" in schema:
        yield from _no_choice(value, schema["anyOf"], place)
    elif "enum" in schema:
        if not any(_same(value, allowed) for allowed in schema["enum"]):
            yield place, f"{_shown(value)} is not supported, expected {_listed(schema['enum'])}"
    elif not _is(value, schema["type"]):
        yield place, f"found {_shown(value)}, expected {_article(schema['type'])}"
    elif isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield _inside(place, name), "is required"
        for name, part in schema["properties"].items():
            if name in value:
                yield from _faults(value[name], part, _inside(place, name))
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield (
                place,
                f"has {len(value)} items, expected {schema.get('minItems', 0)} to {schema.get('maxItems', 'any number')}",
            )
        for i, item in enumerate(value):
            yield from _faults(item, schema["items"], f"{place}[{i}]")
    elif isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield (
                place,
                f"has {len(value)} letters, expected {schema.get('minLength', 0)} to {schema.get('maxLength', 'any number')}",
            )
    elif schema["type"] in ("number", "integer"):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high or value == schema.get("exclusiveMinimum"):  # pyright: ignore[reportOperatorIssue]
            above = "above " if "exclusiveMinimum" in schema else ""
            yield (
                place,
                f"{_shown(value)} is out of range, expected {_article(schema['type'])} from {above}{low} to {high}",
            )


def _no_choice(value: object, choices: list[dict], place: str) -> Iterator[tuple[str, str]]:
    """The faults of the choice that comes nearest: the one that fails furthest inside, or is of the right type."""
    right_type = []
    for choice in choices:
        fault = next(_faults(value, choice, place), None)
        if fault is None:
            return
        if _is(value, choice.get("type", "")):
            right_type.append(fault)
    types = " or ".join(
        _article(choice["type"]) for choice in choices if choice.get("type") != "null"
    )
    yield max(
        right_type,
        key=lambda fault: len(fault[0]),
        default=(place, f"found {_shown(value)}, expected {types}"),
    )


def _is(value: object, type: str) -> bool:
    found = _NAMES[value.__class__]
    return found == type or (found == "integer" and type == "number")


def _same(value: object, allowed: object) -> bool:
    number = isinstance(value, int | float) and isinstance(allowed, int | float)
    return (
        value == allowed
        and (isinstance(value, bool) == isinstance(allowed, bool))
        and (number or value.__class__ is allowed.__class__)
    )


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return _article(_NAMES[value.__class__])
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _listed(values: list) -> str:
    return " or ".join(json.dumps(value) for value in values)


def _article(name: str) -> str:
    return name if name == "null" else f"an {name}" if name[0] in "aio" else f"a {name}"


def description(version: str) -> dict:
    """The server in OpenAPI's words."""
    error = {
        "description": "Refused; `param` says what is wrong.",
        "content": {"application/json": {"schema": _ERROR}},
    }
    refusals = {
        str(status): error for status in (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 503)
    }
    answer = {
        "200": {
            "description": "An object, or with `stream` server-sent events.",
            "content": {"application/json": {}, "text/event-stream": {}},
        }
    }
    plain = {"200": {"description": "An object.", "content": {"application/json": {}}}}

    def post(schema: dict, says: str) -> dict:
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        return {"post": {"summary": says, "requestBody": body, "responses": answer | refusals}}

    def get(says: str) -> dict:
        return {"get": {"summary": says, "responses": plain | refusals}}

    paths = {
        "/v1/chat/completions": post(CHAT, "The answer to a conversation; finetuned models only."),
        "/v1/completions": post(COMPLETION, "How a text goes on."),
        "/v1/models": get("The one model."),
        "/health": get("Whether it works, and how fast."),
    }
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    info = {"title": "miniGPT-JAX", "version": version}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"securitySchemes": schemes},
        "security": [{"key": []}, {}],
    }


_TEXT, _TEXT_OR_NULL = {"type": "string"}, _optional({"type": "string"})
_DETAILS = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": list(_DETAILS), "properties": _DETAILS}},
}
