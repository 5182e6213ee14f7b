"""The official client works unchanged: chat and completion, streamed and not, and every error as its own exception."""

import json
from collections.abc import Iterator

import openai
import pytest

from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer
from tests.server.serving import CONTEXT, QUESTION

MESSAGES = QUESTION["messages"]
GREEDY = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 30}


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


def test_the_model_is_listed(client, model):
    assert model == "small-chat"
    found = client.models.retrieve(model)
    assert (
        found.object == "model"
        and found.model_extra["context"] == CONTEXT
        and found.model_extra["chat"] is True
    )
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("another")
    assert error.value.code == "model_not_found"


def test_a_chat(client, model):
    answer = client.chat.completions.create(model=model, **GREEDY)
    choice = answer.choices[0]
    assert (
        choice.message.role == "assistant"
        and choice.message.content
        and choice.finish_reason in ("stop", "length")
    )
    expected = 1 + 1 + len(load_tokenizer().encode(MESSAGES[0]["content"])) + 1 + 1
    assert answer.usage.prompt_tokens == expected and 0 < answer.usage.completion_tokens <= 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == model and answer.object == "chat.completion"


def test_a_streamed_chat_is_the_same(client, model):
    for how in (
        {},
        {"temperature": 1.0, "seed": 5, "n": 3},
        {"stop": ["e"]},
        {"temperature": 1.0, "seed": 7, "max_tokens": 200},
    ):
        asked = GREEDY | how
        whole = client.chat.completions.create(model=model, **asked)
        with client.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, **asked
        ) as stream:
            pieces = list(stream)
        assert (
            len({piece.id for piece in pieces}) == 1
            and pieces[-1].choices == []
            and pieces[-1].usage == whole.usage
        )
        for choice in whole.choices:
            own = [
                piece.choices[0] for piece in pieces[:-1] if piece.choices[0].index == choice.index
            ]
            assert own[0].delta.role == "assistant"
            assert "".join(piece.delta.content or "" for piece in own) == choice.message.content
            assert [piece.finish_reason for piece in own if piece.finish_reason] == [
                choice.finish_reason
            ] and own[-1].finish_reason


def test_seeds_make_answers(client, model):
    def ask(**how):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=30, **how
        )
        return [choice.message.content for choice in answer.choices]

    three = ask(seed=3, n=3)
    assert three == ask(seed=3) + ask(seed=4) + ask(seed=5) and len(set(three)) == 3
    assert ask(seed=-1) == ask(seed=2**32 - 1)
    assert ask() != ask()  # without a seed, another answer each time
    assert (
        ask(temperature=0.0)
        == ask(temperature=0.0, seed=9)
        == ask(temperature=1e-30)
        == ask(extra_body={"top_k": 1})
    )


def test_extensions_reach_the_engine(client, model):
    def ask(**extra):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=30, seed=1, extra_body=extra
        )
        return answer.choices[0].message.content

    plain = ask()
    assert (
        ask(top_k=0)
        == ask(min_p=0)
        == ask(repetition_penalty=1)
        == ask(user="me", store=False, metadata={"a": "b"}, unheard_of=1)
        == plain
    )
    assert plain not in (ask(top_k=2), ask(min_p=0.9), ask(repetition_penalty=3))


def test_stop_strings(client, model):
    whole = client.chat.completions.create(model=model, **GREEDY).choices[0].message.content
    stop = whole[5:7]
    for given in (stop, [stop], ["never", stop]):
        choice = client.chat.completions.create(model=model, **GREEDY, stop=given).choices[0]
        assert (
            choice.message.content == whole[: whole.index(stop)] and choice.finish_reason == "stop"
        )


def test_an_answer_ends_by_itself_or_with_the_context(client, model):
    answers = client.chat.completions.create(model=model, messages=MESSAGES, n=16, seed=0)
    reasons = {choice.finish_reason for choice in answers.choices}
    assert "stop" in reasons
    limits = client.chat.completions.create(
        model=model, **GREEDY | {"max_tokens": None}, logit_bias={}, max_completion_tokens=4
    )
    assert limits.usage.completion_tokens <= 4
    forever = client.completions.create(
        model=model, prompt=[5] * (CONTEXT - 7), max_tokens=100, temperature=0, stop=None
    )
    assert (
        forever.choices[0].finish_reason in ("stop", "length")
        and forever.usage.completion_tokens <= 7
    )


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, model, stream):
    answer = client.chat.completions.create(
        model=model, **GREEDY, logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        pieces = [piece.choices[0] for piece in answer]
        content = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content]
        text = "".join(piece.delta.content or "" for piece in pieces)
    else:
        content, text = answer.choices[0].logprobs.content, answer.choices[0].message.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace") == text
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy


def test_completions(client, model):
    asked = {"model": model, "max_tokens": 20, "temperature": 0.0}
    one = client.completions.create(prompt="The river", **asked)
    other = client.completions.create(prompt="A stone", **asked)
    both = client.completions.create(prompt=["The river", "A stone"], **asked)
    assert [choice.text for choice in both.choices] == [one.choices[0].text, other.choices[0].text]
    assert both.usage.prompt_tokens == one.usage.prompt_tokens + other.usage.prompt_tokens
    ids = [[END_OF_TEXT, *load_tokenizer().encode(text)] for text in ("The river", "A stone")]
    assert [c.text for c in client.completions.create(prompt=ids, **asked).choices] == [
        c.text for c in both.choices
    ]
    assert client.completions.create(prompt=ids[0], **asked).choices[0].text == one.choices[0].text
    pieces = list(client.completions.create(prompt="The river", stream=True, **asked))
    assert (
        "".join(piece.choices[0].text for piece in pieces) == one.choices[0].text
        and pieces[-1].choices[0].finish_reason
    )
    likely = client.completions.create(prompt="The river", logprobs=3, **asked).choices[0]
    assert (
        likely.text == one.choices[0].text
        and len(likely.logprobs.tokens) == one.usage.completion_tokens
    )
    assert all(len(top) == 3 for top in likely.logprobs.top_logprobs)
    pieces = list(client.completions.create(prompt="The river", logprobs=3, **asked, stream=True))
    streamed = [
        offset
        for piece in pieces
        if (own := piece.choices[0].logprobs)
        for offset in own.text_offset
    ]
    assert streamed == likely.logprobs.text_offset
    assert (
        client.completions.create(model=model, prompt="x", temperature=0).usage.completion_tokens
        <= 16
    )


def test_text_parts_and_the_developer(client, model):
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The river reads"},
    ]
    parts = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "The river"}, {"type": "text", "text": " reads"}],
        },
    ]
    texts = [
        client.chat.completions.create(model=model, **GREEDY | {"messages": m})
        .choices[0]
        .message.content
        for m in (plain, parts)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": -0.1}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "1 to 16"),
        ({"n": 17}, "n", "1 to 16"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"stop": ["a"] * 5}, "stop", "0 to 4"),
        ({"stop": ""}, "stop", "1 to 128"),
        ({"stop": ["a", "b" * 129]}, "stop[1]", "129"),
        ({"messages": []}, "messages", "0 items"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream true"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "user"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ],
)
def test_refusals_name_the_parameter(client, model, change, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, **GREEDY | change)
    assert (
        error.value.param == param
        and says in error.value.body["message"]
        and error.value.type == "invalid_request_error"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"echo": True},
        {"suffix": "x"},
        {"best_of": 2},
        {"logprobs": 6},
        {"prompt": [60000]},
        {"prompt": []},
        {"prompt": [-1]},
    ],
)
def test_refusals_of_completions(client, model, change):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**{"model": model, "prompt": "a"} | change)
    assert error.value.param.startswith(next(iter(change)))


@pytest.mark.parametrize("words", [300, 100_000])
def test_what_does_not_fit_the_context_is_refused_with_the_code_for_it(client, model, words):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "river " * words}]
        )
    assert error.value.code == "context_length_exceeded" and error.value.param == "messages"


def test_other_errors(client, model, server):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert error.value.param == "model" and model in error.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="a")
    assert server.error("/v1/chat/completions")[0] == 405
    assert server.error("/v1/models", {})[0] == 405


def test_a_description_is_published(server):
    status, _, content = server.ask("/openapi.json")
    described = json.loads(content)
    assert status == 200 and described["openapi"].startswith("3.")
    schema = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    assert schema["required"] == ["messages"] and "temperature" in schema["properties"]
