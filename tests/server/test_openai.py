"""OpenAI's client works unchanged: chat, completions, streams and errors."""

import json
from collections.abc import Iterator

import openai
import pytest

from minigpt_jax.tokenizer import END_OF_TEXT, USER, load_tokenizer
from tests.server.serving import CONTEXT, QUESTION

MESSAGES = QUESTION["messages"]
GREEDY = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 30}
NUM_SEEDS = 2**32


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


def chat_texts(client: openai.OpenAI, model: str, **fields) -> list[str]:
    """The text of every choice."""
    fields = {"messages": MESSAGES, "max_tokens": 30} | fields
    response = client.chat.completions.create(model=model, **fields)
    return [choice.message.content for choice in response.choices]


def test_the_model_is_listed(client, model):
    assert model == "small-chat"
    found = client.models.retrieve(model)
    assert found.object == "model"
    assert found.model_extra["context"] == CONTEXT and found.model_extra["chat"] is True
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("another")
    assert error.value.code == "model_not_found"


def test_a_chat(client, model):
    response = client.chat.completions.create(model=model, **GREEDY)
    choice = response.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    # Separator, user marker, the text, end marker, assistant marker.
    prompt_tokens = 2 + len(load_tokenizer().encode(MESSAGES[0]["content"])) + 2
    usage = response.usage
    assert usage.prompt_tokens == prompt_tokens and 0 < usage.completion_tokens <= 30
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert response.model == model and response.object == "chat.completion"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.0, "seed": 5, "n": 3},
        {"stop": ["e"]},
        {"temperature": 1.0, "seed": 7, "max_tokens": 200},
    ],
)
def test_a_streamed_chat_has_the_same_content(client, model, fields):
    body = GREEDY | fields
    complete = client.chat.completions.create(model=model, **body)
    with client.chat.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **body
    ) as stream:
        *chunks, last = stream
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert last.choices == [] and last.usage == complete.usage
    for choice in complete.choices:
        deltas = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(d.delta.content or "" for d in deltas) == choice.message.content
        reasons = [d.finish_reason for d in deltas]
        assert reasons[-1] == choice.finish_reason and not any(reasons[:-1])


def test_a_seed_determines_the_answer(client, model):
    def texts(**fields):
        return chat_texts(client, model, **fields)

    three = texts(seed=3, n=3)
    assert three == texts(seed=3) + texts(seed=4) + texts(seed=5) and len(set(three)) == 3
    assert texts(seed=-1) == texts(seed=NUM_SEEDS - 1)
    # Without a seed, a different answer each time.
    assert texts() != texts()
    greedy = texts(temperature=0.0)
    assert greedy == texts(temperature=0.0, seed=9)
    assert greedy == texts(temperature=1e-30)
    assert greedy == texts(extra_body={"top_k": 1})


def test_fields_beyond_openais_api_change_the_sampling(client, model):
    def texts(**extra):
        return chat_texts(client, model, seed=1, extra_body=extra)

    plain = texts()
    for neutral in ({"top_k": 0}, {"min_p": 0}, {"repetition_penalty": 1}):
        assert texts(**neutral) == plain
    assert texts(user="me", store=False, metadata={"a": "b"}, unknown_field=1) == plain
    for effective in ({"top_k": 2}, {"min_p": 0.9}, {"repetition_penalty": 3}):
        assert texts(**effective) != plain


def test_penalties_and_a_bias_change_the_answer(client, model):
    (plain,) = chat_texts(client, model, temperature=0)
    first = load_tokenizer().encode(plain)[0]
    (without,) = chat_texts(client, model, temperature=0, logit_bias={str(first): -100})
    assert plain[0] not in without
    # A text of one letter, and one in which every letter is drawn once before any other again.
    (same,) = chat_texts(client, model, temperature=0, logit_bias={first: 100})
    assert set(same) == {plain[0]}
    for penalties in ({"presence_penalty": 2}, {"frequency_penalty": 2}):
        (varied,) = chat_texts(client, model, temperature=0, max_tokens=20, **penalties)
        assert len(set(varied)) > len(set(plain))
    # A marker of the chat template is drawn, and is no text.
    marker = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, logit_bias={str(USER): 100}
    )
    assert marker.choices[0].message.content == "" and marker.usage.completion_tokens == 5


def test_an_answer_ends_before_a_stop_string(client, model):
    complete = client.chat.completions.create(model=model, **GREEDY).choices[0].message.content
    stop = complete[5:7]
    for stops in (stop, [stop], ["never", stop]):
        choice = client.chat.completions.create(model=model, **GREEDY, stop=stops).choices[0]
        assert choice.message.content == complete[: complete.index(stop)]
        assert choice.finish_reason == "stop"


def test_an_answer_ends_with_the_end_token_its_limit_or_the_context(client, model):
    answers = client.chat.completions.create(model=model, messages=MESSAGES, n=16, seed=0)
    assert "stop" in {choice.finish_reason for choice in answers.choices}
    limits = {"max_tokens": None, "max_completion_tokens": 4}
    limited = client.chat.completions.create(model=model, **GREEDY | limits, logit_bias={})
    assert limited.usage.completion_tokens <= 4
    prompt = [5] * (CONTEXT - 7)
    full = client.completions.create(
        model=model, prompt=prompt, max_tokens=100, temperature=0, stop=None
    )
    assert full.choices[0].finish_reason in ("stop", "length")
    assert full.usage.completion_tokens <= 7


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat(client, model, stream):
    response = client.chat.completions.create(
        model=model, **GREEDY, logprobs=True, top_logprobs=2, stream=stream
    )
    if stream:
        deltas = [chunk.choices[0] for chunk in response]
        entries = [entry for d in deltas if d.logprobs for entry in d.logprobs.content]
        text = "".join(d.delta.content or "" for d in deltas)
    else:
        entries = response.choices[0].logprobs.content
        text = response.choices[0].message.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == text
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        # Greedy, so the drawn token is the most likely one.
        assert entry.top_logprobs[0].logprob == entry.logprob


COMPLETION = {"max_tokens": 20, "temperature": 0.0}


def test_completions_of_several_prompts(client, model):
    def complete(prompt):
        return client.completions.create(model=model, prompt=prompt, **COMPLETION)

    texts = ["The river", "A stone"]
    responses = [complete(text) for text in texts]
    expected = [response.choices[0].text for response in responses]
    both = complete(texts)
    assert [choice.text for choice in both.choices] == expected
    assert both.usage.prompt_tokens == sum(r.usage.prompt_tokens for r in responses)
    ids = [[END_OF_TEXT, *load_tokenizer().encode(text)] for text in texts]
    assert [choice.text for choice in complete(ids).choices] == expected
    assert complete(ids[0]).choices[0].text == expected[0]


def test_a_streamed_completion_has_the_same_content(client, model):
    body = {"model": model, "prompt": "The river", "logprobs": 3, **COMPLETION}
    complete = client.completions.create(**body)
    choice = complete.choices[0]
    assert len(choice.logprobs.tokens) == complete.usage.completion_tokens
    assert all(len(top) == 3 for top in choice.logprobs.top_logprobs)
    chunks = [chunk.choices[0] for chunk in client.completions.create(**body, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == choice.text
    assert chunks[-1].finish_reason
    offsets = [offset for c in chunks if c.logprobs for offset in c.logprobs.text_offset]
    assert offsets == choice.logprobs.text_offset
    without = client.completions.create(**body | {"logprobs": None}).choices[0]
    assert without.text == choice.text and without.logprobs is None


def test_a_completion_has_sixteen_tokens_by_default(client, model):
    response = client.completions.create(model=model, prompt="x", temperature=0)
    assert response.usage.completion_tokens <= 16


def test_text_parts_and_the_developer_role(client, model):
    system = {"role": "system", "content": "Be brief."}
    plain = [system, {"role": "user", "content": "The river reads"}]
    content = [{"type": "text", "text": "The river"}, {"type": "text", "text": " reads"}]
    parts = [system | {"role": "developer"}, {"role": "user", "content": content}]
    assert chat_texts(client, model, temperature=0, messages=plain) == chat_texts(
        client, model, temperature=0, messages=parts
    )


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": -0.1}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "1 to 16"),
        ({"n": 17}, "n", "1 to 16"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": -2}, "max_tokens", "from 1"),
        ({"stop": ["a"] * 17}, "stop", "0 to 16"),
        ({"stop": ["a", "b" * 1001]}, "stop[1]", "1001 characters"),
        ({"messages": []}, "messages", "0 items"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "-100 to 100"),
        ({"logit_bias": {"50261": 1}}, "logit_bias", "0 to 50260"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"0" * 30 + "5": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"river": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": dict.fromkeys(map(str, range(301)), 1)}, "logit_bias", "0 to 300"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 2.1}, "presence_penalty", "-2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-2 to 2"),
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
def test_errors_of_a_chat_name_the_field(client, model, change, param, message):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, **GREEDY | change)
    assert error.value.param == param
    assert message in error.value.body["message"]
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", 1),
        ("logprobs", True),
        ("suffix", "x"),
        ("best_of", 2),
        ("logprobs", 6),
        ("prompt", [60000]),
        ("prompt", []),
        ("prompt", [-1]),
    ],
)
def test_errors_of_a_completion_name_the_field(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**{"model": model, "prompt": "a"} | {field: value})
    assert error.value.param.startswith(field)


@pytest.mark.parametrize("num_words", [300, 100_000])
def test_a_chat_that_exceeds_the_context_gets_a_code_of_its_own(client, model, num_words):
    messages = [{"role": "user", "content": "river " * num_words}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=messages)
    assert error.value.code == "context_length_exceeded" and error.value.param == "messages"


def test_unknown_models_paths_and_methods_are_errors(client, model, server):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert error.value.param == "model" and model in error.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="a")
    assert server.error("/v1/chat/completions")[0] == 405
    assert server.error("/v1/models", {})[0] == 405


def test_the_api_is_described(server):
    reply = server.request("/openapi.json")
    description = json.loads(reply.body)
    assert reply.status == 200 and description["openapi"].startswith("3.")
    body = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["required"] == ["messages"] and "temperature" in schema["properties"]
