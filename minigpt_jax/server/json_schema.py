"""Check JSON against the few keywords of JSON Schema that schema.py uses, with clear messages."""

import json
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

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
_UNITS = {"Items": "items", "Length": "characters", "Properties": "fields"}
_MAX_SHOWN = 40


class Violation(NamedTuple):
    """What is wrong with a value, and where: `path` is "messages[0].role", "" for the body."""

    path: str
    message: str


def parse_object(body: bytes, schema: dict) -> dict:
    """The valid object in `body`, without the values that mean "not given", such as null.

    These are the enum of a choice. Raises ApiError (400).
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_reject_constant, parse_float=_number)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8 text") from None
    except (ValueError, RecursionError):
        # Also for integers of thousands of digits and for deeply nested brackets.
        raise ApiError(400, "the body is not JSON that this server can read") from None
    validate(value, schema)
    parts = schema["properties"]
    return {name: item for name, item in value.items() if not _is_absent(item, parts.get(name, {}))}


def _is_absent(value: object, schema: dict) -> bool:
    absent = [item for choice in schema.get("anyOf", ()) for item in choice.get("enum", ())]
    return any(_equal(value, item) for item in [None, *absent])


def _number(text: str) -> int | float:
    """The number in `text`. 10.0 is an integer, as JSON Schema defines it."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _reject_constant(name: str) -> NoReturn:
    """Raises ValueError: Python reads NaN and Infinity, but they are not JSON."""
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
            yield Violation(path, f"{_shown(value)} is not supported{_remedy(schema)}")
    elif not _has_type(value, schema["type"]):
        yield Violation(path, f"found {_shown(value)}, expected {_expected(schema)}")
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
    """At most one violation: none if a choice allows `value`.

    Of the choices of the right type, it is the violation of the one for such items, and then the
    violation that lies deepest inside `value`.
    """
    right_type = []
    for choice in choices:
        violation = next(_violations(value, choice, path), None)
        if violation is None:
            return
        if _has_type(value, choice.get("type", "")):
            right_type.append((_begins_with_type(value, choice), len(violation.path), violation))
    if right_type:
        yield max(right_type, key=lambda candidate: candidate[:2])[2]
        return
    # In this order and once each.
    expected = " or ".join(dict.fromkeys(filter(None, map(_expected, choices))))
    yield Violation(path, f"found {_shown(value)}, expected {expected}")


def _begins_with_type(value: object, schema: dict) -> bool:
    """Whether `value` is an array whose first item has the type that `schema` wants."""
    if not isinstance(value, list) or not value:
        return False
    return _has_type(value[0], schema["items"].get("type", ""))


def _object_violations(value: dict, schema: dict, path: str) -> Iterator[Violation]:
    prefix = f"{path}." if path else ""
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation(prefix + name, "is required")
    # Of other fields nothing is known here.
    others = schema.get("additionalProperties")
    for name in value if others else schema["properties"]:
        if name in value:
            part = schema["properties"].get(name, others)
            yield from _violations(value[name], part, prefix + name)
    yield from _length_violations(len(value), schema, "Properties", path)


def _length_violations(length: int, schema: dict, kind: str, path: str) -> Iterator[Violation]:
    """`kind`: "Items" of an array, "Length" of a string, "Properties" of an object."""
    low = schema.get(f"min{kind}", 0)
    high = schema.get(f"max{kind}")
    if length < low or (high is not None and length > high):
        unit = _UNITS[kind]
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        yield Violation(path, f"has {length} {unit}, expected {expected}")


def _range_violations(value: int | float, schema: dict, path: str) -> Iterator[Violation]:
    is_allowed = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if "exclusiveMinimum" in schema:
        is_allowed = is_allowed and value > schema["exclusiveMinimum"]
    # NaN is a violation too: every comparison with it is false.
    if not is_allowed:
        expected = f"{_expected(schema)} {_range_text(schema)}"
        yield Violation(path, f"{_shown(value)} is out of range, expected {expected}")


def _range_text(schema: dict) -> str:
    """The bounds of a number, such as "from 0 to 2", "above 0 and at most 1", "of at least 0"."""
    low = schema.get("minimum")
    high = schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if above is not None:
        return f"above {above}" if high is None else f"above {above} and at most {high}"
    if low is None:
        return f"of at most {high}"
    return f"of at least {low}" if high is None else f"from {low} to {high}"


def _remedy(schema: dict) -> str:
    """The end of the message about a value that is not in the enum of `schema`."""
    if "x-instead" in schema:
        return f": {schema['x-instead']}"
    expected = _expected(schema)
    return f", expected {expected}" if expected else ": leave the field out"


def _expected(schema: dict) -> str:
    """The values of an enum but null, or the type, in words."""
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"] if value is not None)
    return _with_article(schema["type"])


def _has_type(value: object, type_name: str) -> bool:
    found = _TYPE_NAMES[value.__class__]
    return found == type_name or (found == "integer" and type_name == "number")


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


def _with_article(type_name: str) -> str:
    if type_name == "null":
        return type_name
    return f"an {type_name}" if type_name[0] in "aio" else f"a {type_name}"
