"""More requests than slots, several models, an end: what clients and those who watch are told."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from minigpt_jax.server import streaming
from minigpt_jax.server.connection import DEADLINES
from minigpt_jax.server.request import Delta
from minigpt_jax.server.stats import EngineStats
from tests.server.serving import (
    TIMEOUT,
    TINY,
    InProcessServer,
    in_process_server,
    long_request,
    occupied,
    raw_request,
    tiny_run,
)

# More than the test of a full queue needs: each waiting answer is one.
QUEUE_SIZE = 8
OTHER = 'other "one"'
PROMPT = {"prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0}
LONG = long_request(TINY)
# As clients send it that allow ASCII only.
KEY = "a-long-key"
BEARER = f"Bearer {KEY}"


@pytest.fixture(scope="module")
def house() -> Iterator[InProcessServer]:
    """A server of two models with a slot each, behind a key."""
    run = tiny_run()
    # Other weights, so that it gives other answers.
    flipped = {**run.params, "wte": run.params["wte"][::-1]}
    with in_process_server(
        run,
        DEADLINES,
        key=KEY,
        queue_size=QUEUE_SIZE,
        others={OTHER: replace(run, params=flipped)},
    ) as server:
        yield server


def ask(server: InProcessServer, **changes) -> dict:
    reply = server.request("/v1/completions", PROMPT | changes, authorization=BEARER)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


# ---- Streams that wait ----


def test_a_stream_that_waits_is_not_silent(house):
    head = raw_request("/v1/completions", PROMPT | {"stream": True})
    head = head.replace(b"\r\n\r\n", f"\r\nAuthorization: {BEARER}\r\n\r\n".encode(), 1)
    with occupied(house) as release, house.connect() as first, house.connect() as second:
        received = {}
        for client, number in ((first, 0), (second, 1)):
            client.sendall(head)
            received[client] = b""
            # The slot is not free before the head and the comment are here.
            while b"\n\n" not in received[client].partition(b"\r\n\r\n")[2]:
                received[client] += client.recv(4096)
            assert received[client].startswith(b"HTTP/1.1 200")
            assert f"\r\n: waiting, {number} before you\n\n".encode() in received[client]
        # Another number, as soon as there is one.
        first.close()
        while b": waiting, 0 before you\n\n" not in received[second]:
            received[second] += second.recv(4096)
        release.set()
        while b"data: [DONE]" not in received[second]:
            received[second] += second.recv(4096)


def test_openais_client_ignores_the_comments(house, monkeypatch):
    # The first comment does not wait for the first poll.
    monkeypatch.setattr(streaming, "POLL_SECONDS", 10 * TIMEOUT)
    with openai.OpenAI(
        base_url=f"{house.url}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT
    ) as client:
        complete = client.completions.create(model="tiny", **PROMPT).choices[0].text
        with occupied(house) as release:
            stream = client.completions.create(model="tiny", **PROMPT, stream=True)
            # The head is here.
            lines = stream.response.iter_lines()
            assert next(lines) == ": waiting, 0 before you"
            release.set()
            assert any("data: [DONE]" in line for line in lines)
        with occupied(house) as release:
            stream = client.completions.create(model="tiny", **PROMPT, stream=True)
            release.set()
            assert "".join(chunk.choices[0].text for chunk in stream) == complete


def test_a_stream_that_need_not_wait_has_no_comments(house):
    body = PROMPT | {"stream": True}
    reply = house.request("/v1/completions", body, authorization=BEARER)
    assert reply.body.endswith(b"data: [DONE]\n\n") and not reply.body.startswith(b":")
    assert b"\n:" not in reply.body


def test_another_client_does_not_wait_for_all_answers_of_one(house):
    ended: list[str] = []
    all_ended = threading.Event()
    began = threading.Event()
    release = threading.Event()

    def receiver(name: str):
        def receive(i: int, delta: Delta) -> None:
            began.set()
            release.wait(TIMEOUT)
            if delta.finish_reason:
                ended.append(name)
            if len(ended) == 6:
                all_ended.set()

        return receive

    house.engine.submit([LONG] * 4, receiver("crowd"), "crowd")
    assert began.wait(TIMEOUT)
    house.engine.submit([LONG], receiver("another request"), "crowd")
    house.engine.submit([LONG], receiver("another client"), "newcomer")
    release.set()
    assert all_ended.wait(TIMEOUT)
    assert ended == ["crowd", "another client", "another request", "crowd", "crowd", "crowd"]


def test_a_full_queue_says_when_to_try_again(house, monkeypatch):
    monkeypatch.setattr(EngineStats, "seconds_in_slot", 10.0)
    with occupied(house, waiting=QUEUE_SIZE - 2):
        for count, seconds in ((3, 10), (5, 30)):
            body = PROMPT | {"n": count}
            reply = house.request("/v1/completions", body, authorization=BEARER)
            assert reply.status == 429 and reply.headers["retry-after"] == str(seconds)
            assert f"try again in {seconds} s" in json.loads(reply.body)["error"]["message"]


def test_the_time_in_a_slot_is_that_of_answers(house):
    """A prompt alone has its slot for a moment only."""
    stats = house.engine._stats
    before = stats.seconds_in_slot
    ask(house, max_tokens=0, echo=True, logprobs=1)
    assert stats.seconds_in_slot == before
    ask(house)
    assert stats.seconds_in_slot not in (None, before)


# ---- Metrics ----


def metrics(server: InProcessServer) -> dict[tuple[str, str], float]:
    """The values by name and model; of those with one more label, by NAME.LABEL."""
    reply = server.request("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        assert family.name.startswith("minigpt_") and family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for name, labels, value, *_ in family.samples:
            model = labels.pop("model_name")
            values[".".join([name.removeprefix("minigpt_"), *labels.values()]), model] = value
    return values


def test_metrics_are_what_happened(house):
    before = metrics(house)
    ask(house, prompt=[1, 2, 3, 4], max_tokens=5, n=2)
    with occupied(house, waiting=QUEUE_SIZE):
        full = metrics(house)
        house.request("/v1/completions", PROMPT, authorization=BEARER)
    assert full["num_requests_running", "tiny"] == full["num_slots", "tiny"] == 1
    assert full["num_requests_waiting", "tiny"] == QUEUE_SIZE
    after = metrics(house)
    added = {name: after[name, "tiny"] - before[name, "tiny"] for name, _ in before}
    assert added["request_success_total.length"] == 2
    assert added["request_success_total.abort"] == 1 + QUEUE_SIZE
    assert added["request_refused_total"] == 1
    # The answer that occupied the slot had begun.
    assert added["prompt_tokens_total"] == 2 * 4 + len(LONG.prompt)
    assert added["generation_tokens_total"] > 2 * 5
    assert added["time_to_first_token_seconds_count"] == 2 + 1
    assert added["request_queue_time_seconds_count"] == 2 + 1
    assert added["e2e_request_latency_seconds_count"] == 2 + 1 + QUEUE_SIZE
    assert added["e2e_request_latency_seconds_bucket.+Inf"] == 2 + 1 + QUEUE_SIZE
    assert after["num_requests_running", "tiny"] == 0
    # The other model has its own numbers.
    assert all(after[key] == before[key] for key in before if key[1] == OTHER)


def test_buckets_count_all_that_is_smaller(house):
    ask(house)
    values = metrics(house)
    name = "time_to_first_token_seconds_bucket."
    buckets = {
        float(key.removeprefix(name)): value
        for (key, model), value in values.items()
        if key.startswith(name) and model == "tiny"
    }
    counts = [buckets[bound] for bound in sorted(buckets)]
    assert counts == sorted(counts) and counts[-1] > 0


def test_metrics_need_no_key_and_show_no_text(house):
    ask(house, prompt="secret words")
    text = house.request("/metrics").body
    assert b"secret" not in text and KEY.encode() not in text
    assert house.request("/metrics", method="POST").status in (401, 405)
    assert house.request("/metrics", host="evil.example").status == 421


# ---- Several models ----


def test_a_request_chooses_its_model(house):
    first = ask(house)
    named = ask(house, model="tiny")
    other = ask(house, model=OTHER)
    assert first["model"] == named["model"] == "tiny" and other["model"] == OTHER
    texts = [reply["choices"][0]["text"] for reply in (first, named, other)]
    assert texts[0] == texts[1] != texts[2]


def test_all_models_are_listed_and_a_404_names_them(house):
    listed = json.loads(house.request("/v1/models", authorization=BEARER).body)["data"]
    assert [model["id"] for model in listed] == ["tiny", OTHER]
    path = "/v1/models/other%20%22one%22"
    assert json.loads(house.request(path, authorization=BEARER).body)["id"] == OTHER
    body = PROMPT | {"model": "gpt-4o"}
    for request in (("/v1/completions", body), ("/v1/models/gpt-4o",)):
        status, error = house.error(*request, authorization=BEARER)
        assert (status, error["code"]) == (404, "model_not_found")
        assert "tiny" in error["message"] and OTHER in error["message"]


def test_health_has_sums_and_each_model(house):
    before = house.health()
    ask(house)
    ask(house, model=OTHER, n=2)
    after = house.health()
    assert after["status"] == "ok" and list(after["models"]) == ["tiny", OTHER]
    assert after["slots"] == 2
    added = {
        name: after["models"][name]["answers"] - before["models"][name]["answers"]
        for name in after["models"]
    }
    assert added == {"tiny": 1, OTHER: 2}
    assert after["answers"] - before["answers"] == 3
    assert after["compilations_since_warm_up"] == 0


# ---- The end ----


def test_a_server_that_stops_is_not_healthy(house):
    house.guard.draining = True
    try:
        reply = house.request("/health")
        refused = house.request("/v1/completions", PROMPT, authorization=BEARER)
    finally:
        house.guard.draining = False
    assert reply.status == 503 and json.loads(reply.body)["status"] == "draining"
    assert refused.status == 503
    assert house.health()["status"] == "ok"
