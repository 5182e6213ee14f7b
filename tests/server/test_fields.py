"""What real clients send: neutral values are accepted, what this API lacks is refused by name."""

import difflib
import json

import pytest

from minigpt_jax.server import schema
from minigpt_jax.server.api_error import ApiError
from minigpt_jax.server.foreign_fields import IGNORED, REFUSED, check_unknown
from minigpt_jax.server.json_schema import parse_object
from tests.harness import ROOT
from tests.server.serving import QUESTION, ServerProcess

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 20}
BODIES = {CHAT: QUESTION | GREEDY, COMPLETION: {"prompt": "The river", **GREEDY}}
SCHEMAS = {CHAT: schema.CHAT, COMPLETION: schema.COMPLETION}


def answer(server: ServerProcess, route: str, **fields) -> dict:
    reply = server.request(route, BODIES[route] | fields)
    assert reply.status == 200, reply
    return json.loads(reply.body)["choices"][0]


def parsed(route: str, **fields) -> dict:
    return parse_object(json.dumps(BODIES[route] | fields).encode(), SCHEMAS[route])


# ---- Neutral values


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ""},
        {"stop": [""]},
        {"stop": []},
        {"top_k": -1},
        {"top_p": 1.0, "top_k": 0.0, "n": 1.0, "max_tokens": 20.0},
        {"logprobs": False},
        {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"response_format": {}},
        {"response_format": {"type": "text"}},
        {"repeat_penalty": 1.0, "min_tokens": 0, "ignore_eos": False, "stop_token_ids": []},
        {"grammar": "", "guided_json": None, "options": {}, "format": "", "mirostat": 0},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"user": "me", "store": False, "metadata": {"a": "b"}, "unknown_field": 1},
        {"best_of": 1, "echo": False, "typical_p": 1, "tfs_z": 1.0, "dry_multiplier": 0},
    ],
)
def test_values_that_ask_for_nothing_change_nothing(server, route, fields):
    assert answer(server, route, **fields) == answer(server, route)


def test_neutral_values_of_a_chat(server):
    plain = answer(server, CHAT)
    assert answer(server, CHAT, top_logprobs=0) == plain
    assert answer(server, CHAT, top_logprobs=0, logprobs=False) == plain
    history = [
        {"role": "assistant", "content": "Hello!"},
        {"role": "assistant", "content": None, "tool_calls": [], "function_call": None},
        *QUESTION["messages"],
    ]
    assert answer(server, CHAT, messages=history) == plain


@pytest.mark.parametrize(
    ("route", "names"),
    [(CHAT, ["max_tokens", "max_completion_tokens"]), (COMPLETION, ["max_tokens"])],
)
def test_a_length_of_minus_one_means_none(route, names):
    for name in names:
        assert parsed(route, **{name: -1}) == {k: v for k, v in parsed(route).items() if k != name}


def test_ten_point_zero_is_an_integer_and_ten_and_a_half_is_none():
    body = parsed(CHAT, max_tokens=10.0, seed=1e3)
    assert (body["max_tokens"], body["seed"]) == (10, 1000) and isinstance(body["seed"], int)
    with pytest.raises(ApiError, match=r"max_tokens: found 10.5, expected an integer or -1"):
        parsed(CHAT, max_tokens=10.5)


# ---- Refused and unknown fields

CHANGING = [
    ("grammar", 'root ::= "a"'),
    ("guided_json", {"type": "object"}),
    ("guided_regex", "a+"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "a"),
    ("structured_outputs", {"choice": ["a"]}),
    ("json_schema", {"type": "object"}),
    ("format", "json"),
    ("options", {"temperature": 0}),
    ("min_tokens", 1),
    ("ignore_eos", True),
    ("stop_token_ids", [5]),
    ("bad_words", ["a"]),
    ("mirostat", 2),
    ("typical_p", 0.9),
    ("tfs_z", 0.9),
    ("dry_multiplier", 0.8),
    ("num_predict", 5),
    ("n_predict", 5),
    ("num_ctx", 2048),
    ("use_beam_search", True),
    ("length_penalty", 2),
    ("prompt_logprobs", 1),
    ("add_generation_prompt", False),
    ("continue_final_message", True),
    ("chat_template", "{{ messages }}"),
    ("reasoning_effort", "high"),
    ("response_format", {"type": "json_object"}),
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("bad_words_ids", [[5]]),
    ("eos_token_id", 5),
    ("suppress_tokens", [5]),
    ("until", ["a"]),
    ("num_return_sequences", 2),
    ("cfg_scale", 1.5),
    ("suffix", "a"),
]


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize(("name", "value"), CHANGING)
def test_a_field_that_would_change_the_answer_is_refused_by_name(route, name, value):
    with pytest.raises(ApiError, match=f"^{name}: .* is not supported") as error:
        parsed(route, **{name: value})
    assert error.value.param == name


def test_every_neutral_value_of_every_refused_field_is_accepted():
    for name, part in REFUSED.items():
        for route in BODIES:
            for value in part["enum"]:
                parsed(route, **{name: value})
            with pytest.raises(ApiError, match=f"^{name}: "):
                parsed(route, **{name: "something else"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("repeat_penalty", 1.1, "1.1 is not supported: here it is repetition_penalty"),
        ("max_new_tokens", 5, "5 is not supported: here it is max_tokens"),
        ("system", "Be brief", '"Be brief" is not supported: here it is a message with the role'),
        ("reasoning_effort", "low", '"low" is not supported, expected "none"'),
        ("n_predict", 5, "5 is not supported: here it is max_tokens"),
        ("guided_json", {}, "an object is not supported: leave the field out"),
    ],
)
def test_a_refusal_says_what_to_do(name, value, message):
    with pytest.raises(ApiError, match=f"^{name}: {message}"):
        parsed(CHAT, **{name: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("topP", "top_p"),
        ("top-k", "top_k"),
        ("stops", "stop"),
        ("frequencyPenalty", "frequency_penalty"),
        ("respone_format", "response_format"),
        ("logit_biases", "logit_bias"),
        ("message", "messages"),
        ("stop_tokens_ids", "stop_token_ids"),
    ],
)
def test_a_typo_is_refused_with_the_name_that_was_meant(name, meant):
    with pytest.raises(ApiError) as error:
        check_unknown(BODIES[CHAT] | {name: 1}, schema.CHAT["properties"])
    assert error.value.param == name and error.value.status == 400
    assert error.value.message == f"{name}: unknown field, did you mean {meant}?"


def test_a_typo_reaches_the_client_and_null_does_not(server):
    status, error = server.error(CHAT, BODIES[CHAT] | {"max_token": 1})
    assert status == 400 and error["message"].endswith("did you mean max_tokens?")
    assert server.request(CHAT, BODIES[CHAT] | {"max_token": None}).status == 200


def test_fields_of_clients_and_names_like_no_other_are_ignored():
    known = schema.CHAT["properties"]
    check_unknown(dict.fromkeys(IGNORED, 1), known)
    assert not IGNORED & known.keys()
    names = ["model_id", "conversation", "timeout", "x" * 10**5, "litellm_call_id"]
    check_unknown(dict.fromkeys(names, 1), known)
    # What asks for nothing needs no name that is known.
    for value in (False, "", [], {}):
        check_unknown({"auto_max_new_tokens": value}, known)


def test_a_body_of_many_unknown_names_costs_no_more_time_than_one_of_few(monkeypatch):
    compare = difflib.get_close_matches
    compared = []
    monkeypatch.setattr(
        difflib,
        "get_close_matches",
        lambda name, *rest, **more: compared.append(name) or compare(name, *rest, **more),
    )
    names = [f"{number}zzz" for number in range(75_000)] + ["temperature" + "_" * 900_000]
    check_unknown(dict.fromkeys(names, 1), schema.CHAT["properties"])
    assert 0 < len(compared) <= 50


def test_the_other_name_of_max_tokens_is_for_chats():
    with pytest.raises(ApiError, match="max_completion_tokens: 5 is not supported: here it is"):
        parsed(COMPLETION, max_completion_tokens=5)


def test_the_document_lists_what_is_refused_and_what_is_ignored():
    words = set(
        (ROOT / "docs" / "serving.md").read_text().replace("`", " ").replace(",", " ").split()
    )
    missing = (REFUSED.keys() | IGNORED) - words
    assert not missing


# ---- Paths of other servers


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/responses", "the Responses API is not here"),
        ("/v1/embeddings", "this server makes no embeddings"),
        ("/api/chat", "Ollama's API is not here"),
        ("/api/generate", "Ollama's API is not here"),
        ("/api/tags", "Ollama's API is not here"),
        ("/completion", "llama.cpp's own API is not here"),
        ("/chat/completions", "this path does not exist"),
    ],
)
def test_a_path_of_another_server_names_what_works(server, path, message):
    for body in ({}, None):
        status, error = server.error(path, body)
        assert status == 404 and error["message"].startswith(message)
        for works in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
            assert works in error["message"]
