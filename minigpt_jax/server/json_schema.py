"""A validator for the few words of JSON Schema that schema.py uses, with messages for a person."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from minigpt_jax.server.api_error import ApiError

_TYPE_NAMES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
_MAX_SHOWN = 40


class Violation(NamedTuple):
    """What is wrong with a value, and where: `path` is "messages[0].role", "" for the body."""

    path: str
    message: str


def parse_object(body: bytes, schema: dict) -> dict:
    """The valid object in `body`, without its nulls, which mean "not given".

    Raises ApiError (400).
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_reject_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8 text") from None
    except (ValueError, RecursionError):
        # Also for integers of thousands of digits and for deeply nested brackets.
        raise ApiError(400, "the body is not JSON that this server can read") from None
    validate(value, schema)
    return {name: item for name, item in value.items() if item is not None}


def _reject_constant(name: str) -> None:
    """NaN and Infinity, which Python reads, are not JSON."""
    raise ValueError(name)


def validate(value: object, schema: dict, path: str = "") -> None:
    """Raises ApiError (400) that names the part of `value` that does not match `schema`."""
    violation = next(_violations(value, schema, path), None)
    if violation is not None:
        message = f"{violation.path or 'the body'}: {violation.message}"
        raise ApiError(400, message, param=violation.path or None)


def _violations(value: object, schema: dict, path: str) -> Iterator[Violation]:
    if "anyOf" in schema:
        yield from _any_of_violations(value, schema["anyOf"], path)
    elif "enum" in schema:
        if not any(_equal(value, allowed) for allowed in schema["enum"]):
            allowed = " or ".join(json.dumps(value) for value in schema["enum"])
            yield Violation(path, f"{_shown(value)} is not supported, expected {allowed}")
    elif not _has_type(value, schema["type"]):
        expected = _with_article(schema["type"])
        yield Violation(path, f"found {_shown(value)}, expected {expected}")
    elif isinstance(value, dict):
        yield from _object_violations(value, schema, path)
    elif isinstance(value, list):
        yield from _length_violations(len(value), schema, "Items", path)
        for i, item in enumerate(value):
            yield from _violations(item, schema["items"], f"{path}[{i}]")
    elif isinstance(value, str):
        yield from _length_violations(len(value), schema, "Length", path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _range_violations(value, schema, path)


def _any_of_violations(value: object, choices: list[dict], path: str) -> Iterator[Violation]:
    """The violation of the closest choice: of those of the right type, the one found deepest."""
    right_type = []
    for choice in choices:
        violation = next(_violations(value, choice, path), None)
        if violation is None:
            return
        if _has_type(value, choice.get("type", "")):
            right_type.append(violation)
    types = [_with_article(choice["type"]) for choice in choices if choice.get("type") != "null"]
    wrong_type = Violation(path, f"found {_shown(value)}, expected {' or '.join(types)}")
    yield max(right_type, key=lambda violation: len(violation.path), default=wrong_type)


def _object_violations(value: dict, schema: dict, path: str) -> Iterator[Violation]:
    prefix = f"{path}." if path else ""
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation(prefix + name, "is required")
    for name, part in schema["properties"].items():
        if name in value:
            yield from _violations(value[name], part, prefix + name)


def _length_violations(length: int, schema: dict, kind: str, path: str) -> Iterator[Violation]:
    """`kind`: "Items" of an array, "Length" of a string, as in minItems and maxLength."""
    low = schema.get(f"min{kind}", 0)
    high = schema.get(f"max{kind}")
    if length < low or (high is not None and length > high):
        unit = "items" if kind == "Items" else "characters"
        expected = f"{low} to {'any number' if high is None else high}"
        yield Violation(path, f"has {length} {unit}, expected {expected}")


def _range_violations(value: int | float, schema: dict, path: str) -> Iterator[Violation]:
    low = schema.get("minimum", value)
    high = schema.get("maximum", value)
    excluded = schema.get("exclusiveMinimum")
    # Negated so that NaN, which compares with nothing, is a violation too.
    if not low <= value <= high or value == excluded:
        above = "" if excluded is None else "above "
        expected = f"{_with_article(schema['type'])} from {above}{low} to {high}"
        yield Violation(path, f"{_shown(value)} is out of range, expected {expected}")


def _has_type(value: object, type: str) -> bool:
    found = _TYPE_NAMES[value.__class__]
    return found == type or (found == "integer" and type == "number")


def _equal(value: object, allowed: object) -> bool:
    """Equal as JSON: 0 is not false, but 1 is 1.0."""
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    if isinstance(value, int | float) and isinstance(allowed, int | float):
        return value == allowed
    return value.__class__ is allowed.__class__ and value == allowed


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return _with_article(_TYPE_NAMES[value.__class__])
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _with_article(type: str) -> str:
    if type == "null":
        return type
    return f"an {type}" if type[0] in "aio" else f"a {type}"
