"""Bodies that no client should send, made from the description that the server publishes: always an answer, never a mistake of ours."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_jax.server import schema
from minigpt_jax.server.answers import encoded
from minigpt_jax.server.refusal import Refusal
from tests.server.serving import QUESTION, Running

ROUTES = ("/v1/chat/completions", "/v1/completions")
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


def fitting(described: dict) -> st.SearchStrategy:
    """Values that a schema of the published kind allows, and now and then one that it does not."""
    return st.integers(0, 6).flatmap(lambda i: _allowed(described) if i else ANYTHING)


def _allowed(described: dict) -> st.SearchStrategy:
    if "anyOf" in described:
        return st.one_of(*map(fitting, described["anyOf"]))
    if "enum" in described:
        return st.sampled_from(described["enum"])
    kind = described["type"]
    if kind == "object":
        known = {name: fitting(part) for name, part in described["properties"].items()}
        needed = {name: known.pop(name) for name in described.get("required", ()) if name in known}
        return st.fixed_dictionaries(needed, optional=known)
    if kind == "array":
        return st.lists(
            fitting(described["items"]),
            min_size=described.get("minItems", 0),
            max_size=min(described.get("maxItems", 4), 4),
        )
    if kind == "string":
        size = {
            "min_size": described.get("minLength", 0),
            "max_size": min(described.get("maxLength", 30), 30),
        }
        return st.text(**size) | st.text(string.printable, **size)
    if kind == "number":
        return st.floats(described["minimum"], described["maximum"])
    if kind == "integer":
        low, high = described["minimum"], described.get("maximum", 60_000)
        return st.integers(low, min(low + 30, high)) | st.integers(low, high)
    return st.booleans() if kind == "boolean" else st.none()


def spoil(body: bytes, place: int, junk: bytes, how: str) -> bytes:
    """A body with something cut off, put in or overwritten."""
    at = place % (len(body) + 1)
    return (
        body[:at]
        + {"cut": b"", "insert": junk + body[at:], "overwrite": junk + body[at + len(junk) :]}[how]
    )


def check(server: Running, route: str, body: bytes) -> int:
    status, headers, content = server.ask(route, body)
    assert status in (200, 400, 404, 413, 429), (status, content)
    if headers["content-type"].startswith("application/json"):
        answer = json.loads(content)
        assert ("error" in answer) == (status != 200)
    assert b"Traceback" not in content
    return status


@pytest.fixture(scope="module")
def described(server) -> dict:
    paths = json.loads(server.ask("/openapi.json")[2])["paths"]
    return {
        route: paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for route in ROUTES
    }


def bodies(described: dict, found: list[int], server: Running, examples: int) -> None:
    """Ask `examples` times with whatever comes to mind."""
    routes = st.sampled_from(ROUTES).flatmap(
        lambda route: st.tuples(st.just(route), fitting(described[route]))
    )
    damage = st.none() | st.tuples(
        st.integers(0, 10**6),
        st.binary(max_size=6),
        st.sampled_from(["cut", "insert", "overwrite"]),
    )

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(routes, damage)
    def ask(asked, damage):
        route, value = asked
        if isinstance(value, dict) and isinstance(value.get("max_tokens"), int):
            value["max_tokens"] = min(
                value["max_tokens"], 5
            )  # refusals are what is tested, not patience
        body = json.dumps({"max_tokens": 2, **value} if isinstance(value, dict) else value).encode()
        found.append(check(server, route, spoil(body, *damage) if damage else body))

    ask()


@pytest.mark.parametrize("examples", [150, pytest.param(1000, marks=pytest.mark.campaign)])
def test_whatever_is_sent_is_answered(server, described, examples):
    found: list[int] = []
    bodies(described, found, server, examples)
    assert (
        found.count(200) > examples // 50 and found.count(400) > examples // 4
    )  # both kinds were met
    assert server.ask("/v1/chat/completions", QUESTION | {"max_tokens": 1})[0] == 200


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
def test_known_tricks(server, body):
    for route in ROUTES:
        assert check(server, route, body) == 400


@pytest.mark.parametrize(
    "letter", ["a", " ", "\n", "é", "\u200d", "'", "0", "\U0001f600", "a ", "\ud800"]
)
def test_texts_that_are_hard_to_cut_are_no_harder_for_the_server(server, letter):
    """What fits the context by its length alone is encoded: the longest such text must not take long."""
    assert check(
        server, "/v1/completions", json.dumps({"prompt": letter * (30_000 // len(letter))}).encode()
    ) in (200, 400)


def test_the_last_of_equal_names_counts_and_surrogates_are_no_text(server):
    body = b'{"messages": 5, "messages": [{"role": "user", "content": "\\ud800 \\u0000"}], "max_tokens": 2, "stop": "\\udfff"}'
    assert check(server, "/v1/chat/completions", body) == 200
    assert (
        check(server, "/v1/chat/completions", json.dumps(QUESTION | {"model": "\ud800"}).encode())
        == 404
    )
    assert encoded({"é": "\ud800"}) == '{"é":"?"}'.encode()


@pytest.mark.parametrize(
    ("value", "described", "place"),
    [
        (True, {"type": "integer", "minimum": 0, "maximum": 5}, "x"),
        (1.0, {"type": "integer", "minimum": 0, "maximum": 5}, "x"),
        (float("nan"), {"type": "number", "minimum": 0, "maximum": 5}, "x"),
        (0, {"enum": [False]}, "x"),
        ({"a": [1, "b"]}, schema.CHAT, "x.messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            schema.CHAT,
            "x.messages[0].content[0].text",
        ),
        (
            ["a", 3],
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "x[1]",
        ),
    ],
)
def test_a_fault_is_named_where_it_is(value, described, place):
    with pytest.raises(Refusal) as refusal:
        schema.check(value, described, "x")
    assert refusal.value.param == place and refusal.value.status == 400
