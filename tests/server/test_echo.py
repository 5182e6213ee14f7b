"""`echo`: the prompt comes back with the log-probabilities that the model gives it."""

import json

import jax
import numpy as np
import openai
import pytest

from minigpt_jax.architectures import make_model, output_head
from minigpt_jax.loaded_run import LoadedRun, load_run
from minigpt_jax.loss import logits
from minigpt_jax.tokenizer import END, END_OF_TEXT, load_tokenizer
from tests.server.serving import CONTEXT, ServerProcess

TEXT = "The river reads, é"
SCORED = {"echo": True, "logprobs": 3, "max_tokens": 0, "temperature": 0}


@pytest.fixture(scope="module")
def run(chat_run) -> LoadedRun:
    return load_run(chat_run)


@pytest.fixture(scope="module")
def scores(run):
    """Log-probabilities of all tokens after each token of a prompt, without a cache."""
    model = make_model(run.config)

    @jax.jit
    def compute(ids):
        hidden, _ = model.apply({"params": run.params}, ids[None])
        config = run.config
        scores = logits(hidden, output_head(run.params), config.vocab_size, config.logit_cap)[0]
        return jax.nn.log_softmax(scores)

    def of(ids):
        padded = np.zeros(CONTEXT, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(compute(padded))

    return of


def complete(server: ServerProcess, **fields) -> dict:
    reply = server.request("/v1/completions", fields)
    body = json.loads(reply.body)
    assert reply.status == 200, body
    return body


def check(logprobs: dict, ids: list[int], expected: np.ndarray, start: int = 0) -> None:
    """The entries are those of `ids` from `start` on, `expected` what follows each token."""
    found = logprobs["token_logprobs"]
    assert found[0] is None and logprobs["top_logprobs"][0] is None
    wanted = [expected[i - 1, ids[i]] for i in range(start + 1, len(ids))]
    np.testing.assert_allclose(found[1:], wanted, atol=1e-5)
    for i, top in enumerate(logprobs["top_logprobs"][1:], start + 1):
        best = np.sort(expected[i - 1])[::-1][:3]
        np.testing.assert_allclose(list(top.values()), best, atol=1e-5)


# Around the 64 tokens that are scored together, and all that the context holds.
@pytest.mark.parametrize("length", [1, 2, 64, 65, 66, 130, CONTEXT - 1, CONTEXT])
def test_the_log_probabilities_of_ids_are_those_of_the_model(server, scores, length):
    ids = np.random.default_rng(length).integers(0, 50000, length).tolist()
    body = complete(server, prompt=ids, **SCORED)
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["text"] == load_tokenizer().decode(ids)
    assert body["usage"] == {
        "prompt_tokens": length,
        "completion_tokens": 0,
        "total_tokens": length,
    }
    check(choice["logprobs"], ids, scores(ids))


def test_the_separator_before_a_text_is_not_returned(server, scores):
    ids = [END_OF_TEXT, *load_tokenizer().encode(TEXT)]
    choice = complete(server, prompt=TEXT, **SCORED)["choices"][0]
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == TEXT
    check(choice["logprobs"], ids, scores(ids), start=1)
    lengths = [len(token) for token in choice["logprobs"]["tokens"]]
    assert choice["logprobs"]["text_offset"] == np.cumsum([0, *lengths[:-1]]).tolist()
    # One that the client gives is.
    for prompt in (ids, f"<|endoftext|>{TEXT}"):
        given = complete(server, prompt=prompt, **SCORED)["choices"][0]
        assert given["text"] == TEXT and given["logprobs"]["tokens"][0] == "<|endoftext|>"
        check(given["logprobs"], ids, scores(ids))
        assert given["logprobs"]["text_offset"] == [0, *choice["logprobs"]["text_offset"]]


def test_generated_tokens_follow_the_prompt(server):
    body = {"prompt": TEXT, "max_tokens": 12, "temperature": 0, "logprobs": 2}
    plain = complete(server, **body)
    echoed = complete(server, **body, echo=True)
    (alone,), (both,) = plain["choices"], echoed["choices"]
    assert both["text"] == TEXT + alone["text"] and plain["usage"] == echoed["usage"]
    prompt_tokens = len(load_tokenizer().encode(TEXT))
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert both["logprobs"][name][prompt_tokens:] == alone["logprobs"][name]
    offsets = both["logprobs"]["text_offset"][prompt_tokens:]
    assert offsets == [len(TEXT) + offset for offset in alone["logprobs"]["text_offset"]]
    without = complete(server, **body | {"logprobs": None}, echo=True)["choices"][0]
    assert without["text"] == both["text"] and without["logprobs"] is None
    # A stop string in the prompt ends nothing.
    assert complete(server, **body, echo=True, stop="river")["choices"][0]["text"] == both["text"]


@pytest.mark.parametrize("max_tokens", [0, 12])
def test_a_stream_begins_with_the_prompt(server, max_tokens):
    fields = {"model": "small-chat", "prompt": [TEXT, "A stone"], "n": 2, "seed": 1}
    fields |= {"logprobs": 1, "echo": True, "max_tokens": max_tokens}
    whole = complete(server, **fields)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = client.completions.create(**fields, **usage)
    assert last.usage.model_dump(exclude_none=True) == whole["usage"]
    assert whole["usage"]["completion_tokens"] <= 4 * max_tokens
    for choice in whole["choices"]:
        parts = [c.choices[0] for c in chunks if c.choices[0].index == choice["index"]]
        assert "".join(part.text for part in parts) == choice["text"]
        assert parts[-1].finish_reason == choice["finish_reason"]
        for name, expected in choice["logprobs"].items():
            found = [item for p in parts if p.logprobs for item in getattr(p.logprobs, name)]
            assert found == expected


def test_with_log_probabilities_every_drawn_token_has_an_entry(server):
    """Also the token that ends the text: lm-evaluation-harness takes the last entry away."""
    likely = {"logit_bias": {str(END): 100}, "max_tokens": 5, "temperature": 0}
    choice = complete(server, prompt=TEXT, logprobs=1, echo=True, **likely)["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == TEXT
    assert choice["logprobs"]["tokens"][-1] == "<|end|>"
    assert len(choice["logprobs"]["tokens"]) == len(load_tokenizer().encode(TEXT)) + 1
    assert complete(server, prompt=TEXT, logprobs=1, **likely)["choices"][0]["logprobs"] == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }


def test_scored_prompts_of_all_lengths_compile_nothing(server):
    prompts = [[5] * length for length in range(1, 17)]
    choices = complete(server, prompt=prompts, **SCORED)["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == list(range(1, 17))
    assert server.health()["compilations_since_warm_up"] == 0


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_character_of_which_the_prompt_has_only_a_part_is_not_lost(server, max_tokens):
    """Its other bytes come with the answer, or are replaced."""
    *whole, last = load_tokenizer().encode("a🜁")
    bias = {"logit_bias": {str(last): 100}, "max_tokens": max_tokens, "temperature": 0}
    choice = complete(server, prompt=whole, echo=True, **bias)["choices"][0]
    assert choice["text"] == ("a🜁" if max_tokens else "a\ufffd")


def test_no_new_token_needs_echo(server):
    status, error = server.error("/v1/completions", {"prompt": "a", "max_tokens": 0})
    assert status == 400 and error["message"] == "max_tokens: 0 needs echo true"
    too_long = {"prompt": [5] * (CONTEXT + 1), **SCORED}
    assert server.error("/v1/completions", too_long)[1]["code"] == "context_length_exceeded"
