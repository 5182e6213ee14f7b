"""Bodies that no client should send, made from the published schemas: never an internal error."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_jax.server import schema
from minigpt_jax.server.api_error import ApiError, encode_json
from minigpt_jax.server.json_schema import validate
from tests.server.serving import QUESTION, ServerProcess

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
ROUTES = (CHAT, COMPLETION)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "\0", 10**400, -0.0, 5e-324]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


MOST_FIELDS = 12


def mostly_valid(schema: dict) -> st.SearchStrategy:
    """Values that `schema` allows, and one in seven that it may not."""
    return st.integers(0, 6).flatmap(lambda i: valid(schema) if i else ANYTHING)


def valid(schema: dict) -> st.SearchStrategy:
    """Values that `schema` allows, with parts that it may not."""
    if "anyOf" in schema:
        return st.one_of(*map(mostly_valid, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return BY_TYPE[schema["type"]](schema)


def objects(schema: dict) -> st.SearchStrategy:
    parts = schema["properties"]
    names = [name for name in schema.get("required", ()) if name in parts]
    required = {name: mostly_valid(parts[name]) for name in names}
    if not (others := [name for name in parts if name not in names]):
        return st.dictionaries(st.integers(-1, 60_000).map(str), ANYTHING, max_size=4)
    # A few at a time: with all of them hardly any object would be valid.
    chosen = st.lists(st.sampled_from(others), max_size=MOST_FIELDS, unique=True)
    return chosen.flatmap(
        lambda some: st.fixed_dictionaries(
            required | {name: mostly_valid(parts[name]) for name in some}
        )
    )


def arrays(schema: dict) -> st.SearchStrategy:
    shortest = schema.get("minItems", 0)
    longest = min(schema.get("maxItems", 4), 4)
    return st.lists(mostly_valid(schema["items"]), min_size=shortest, max_size=longest)


def strings(schema: dict) -> st.SearchStrategy:
    shortest = schema.get("minLength", 0)
    longest = min(schema.get("maxLength", 30), 30)
    return st.text(min_size=shortest, max_size=longest) | st.text(
        string.printable, min_size=shortest, max_size=longest
    )


def integers(schema: dict) -> st.SearchStrategy:
    low = schema["minimum"]
    high = schema.get("maximum", 60_000)
    return st.integers(low, min(low + 30, high)) | st.integers(low, high)


BY_TYPE = {
    "object": objects,
    "array": arrays,
    "string": strings,
    "integer": integers,
    "number": lambda schema: st.floats(schema["minimum"], schema["maximum"]),
    "boolean": lambda schema: st.booleans(),
    "null": lambda schema: st.none(),
}
DAMAGE = st.tuples(
    st.integers(0, 10**6), st.binary(max_size=6), st.sampled_from(["cut", "insert", "overwrite"])
)


def damaged(body: bytes, position: int, junk: bytes, kind: str) -> bytes:
    """`body`, cut off at `position`, or with `junk` there."""
    at = position % (len(body) + 1)
    if kind == "cut":
        return body[:at]
    continues_at = at if kind == "insert" else at + len(junk)
    return body[:at] + junk + body[continues_at:]


def checked_status(server: ServerProcess, route: str, body: bytes) -> int:
    """The status, after checks that the response is complete and not an internal error."""
    reply = server.request(route, body)
    assert reply.status in (200, 400, 404, 413, 429), reply
    if reply.headers["content-type"].startswith("application/json"):
        assert ("error" in json.loads(reply.body)) == (reply.status != 200)
    assert b"Traceback" not in reply.body
    return reply.status


@pytest.fixture(scope="module")
def schemas(server) -> dict[str, dict]:
    """The schema of each route's body, as it is published."""
    paths = json.loads(server.request("/openapi.json").body)["paths"]
    return {
        route: paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for route in ROUTES
    }


@pytest.mark.parametrize("examples", [150, pytest.param(1000, marks=pytest.mark.campaign)])
def test_every_body_gets_a_response(server, schemas, examples):
    statuses: list[int] = []
    requests = st.sampled_from(ROUTES).flatmap(
        lambda route: st.tuples(st.just(route), mostly_valid(schemas[route]))
    )

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(requests, st.none() | DAMAGE)
    def send(request, damage):
        route, value = request
        if isinstance(value, dict):
            value = {"max_tokens": 2, **value}
            # Short answers: what is tested are the bodies.
            if isinstance(value["max_tokens"], int):
                value["max_tokens"] = min(value["max_tokens"], 5)
        body = json.dumps(value).encode()
        statuses.append(checked_status(server, route, damaged(body, *damage) if damage else body))

    send()
    # Valid and invalid bodies were among them.
    assert statuses.count(200) > examples // 50
    assert statuses.count(400) > examples // 4
    assert server.request(CHAT, QUESTION | {"max_tokens": 1}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"',
        b"{",
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages":' + b"[" * 900_000,
        b'{"messages":' + b"1" * 5000 + b"}",
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b'{"n": -Infinity}',
        b'{"messages": [{"role": "user", "content": "a\xff"}]}',
        b'{"messages": [' + b'{"role":"user","content":"a"},' * 30_000 + b"1]}",
        b'{"prompt": [' + b"1," * 400_000 + b"1]}",
        b'{"prompt": [' + b"[1]," * 200_000 + b"[1]]}",
        b'{"prompt": "' + b" " * 900_000 + b'"}',
        b'{"prompt": "' + b"a" * 900_000 + b'"}',
    ],
)
def test_known_attacks_are_errors(server, body):
    for route in ROUTES:
        assert checked_status(server, route, body) == 400


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "é", "\u200d", "'", "0", "\U0001f600", "a ", "\ud800"]
)
def test_texts_that_are_slow_to_tokenize_get_a_response(server, unit):
    """As long as the check of the length before the tokenizer allows."""
    body = json.dumps({"prompt": unit * (30_000 // len(unit))}).encode()
    assert checked_status(server, COMPLETION, body) in (200, 400)


def test_of_repeated_fields_the_last_one_counts_and_surrogates_are_replaced(server):
    body = (
        b'{"messages": 5, "messages": [{"role": "user", "content": "\\ud800 \\u0000"}],'
        b' "max_tokens": 2, "stop": "\\udfff"}'
    )
    assert checked_status(server, CHAT, body) == 200
    unknown_model = json.dumps(QUESTION | {"model": "\ud800"}).encode()
    assert checked_status(server, CHAT, unknown_model) == 404
    assert encode_json({"é": "\ud800"}) == '{"é":"?"}'.encode()


UP_TO_FIVE = {"minimum": 0, "maximum": 5}
TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


@pytest.mark.parametrize(
    ("value", "allowed", "path"),
    [
        (True, {"type": "integer", **UP_TO_FIVE}, "x"),
        (1.0, {"type": "integer", **UP_TO_FIVE}, "x"),
        (float("nan"), {"type": "number", **UP_TO_FIVE}, "x"),
        (0, {"enum": [False]}, "x"),
        ({"a": [1, "b"]}, schema.CHAT, "x.messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            schema.CHAT,
            "x.messages[0].content[0].text",
        ),
        (["a", 3], TEXT_OR_TEXTS, "x[1]"),
        (3, {"anyOf": [{"enum": ["auto"]}, {"type": "null"}]}, "x"),
        # Of several kinds of lists, the one for such items.
        (["a"] * 17, schema.COMPLETION["properties"]["prompt"], "x"),
        ([-1], schema.COMPLETION["properties"]["prompt"], "x[0]"),
        ([[]], schema.COMPLETION["properties"]["prompt"], "x[0]"),
    ],
)
def test_errors_name_the_part_that_is_wrong(value, allowed, path):
    with pytest.raises(ApiError) as error:
        validate(value, allowed, "x")
    assert error.value.param == path and error.value.status == 400


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (3, {"minimum": 0, "maximum": 2}, "a number from 0 to 2"),
        (-1, {"minimum": 0}, "a number of at least 0"),
        (3, {"maximum": 2}, "a number of at most 2"),
        (0, {"exclusiveMinimum": 0}, "a number above 0"),
        (-1, {"exclusiveMinimum": 0}, "a number above 0"),
        (2, {"exclusiveMinimum": 0, "minimum": 0, "maximum": 1}, "a number above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_gets_the_bounds(value, bounds, expected):
    with pytest.raises(ApiError, match=f"{value} is out of range, expected {expected}$"):
        validate(value, {"type": "number", **bounds})


def test_a_list_that_is_too_short_gets_the_smallest_length():
    with pytest.raises(ApiError, match=r"has 1 items, expected at least 2$"):
        validate([0], {"type": "array", "minItems": 2, "items": {"type": "integer"}})
