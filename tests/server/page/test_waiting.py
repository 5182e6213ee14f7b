"""A request that waits for its turn: the page says so, and speeds do not count the wait."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.server.connection import DEADLINES
from minigpt_jax.tokenizer import CHAT_VOCAB, load_tokenizer
from tests.models import weights
from tests.server.page.browser import (
    ANSWER,
    NOTE,
    messages,
    open_page,
    send,
    server_sends,
    set_settings,
    stub_server,
    wait_for,
    wait_until_finished,
)
from tests.server.serving import (
    InProcessServer,
    in_process_server,
    occupied,
    raw_request,
    wait_until,
)

# With room for a short question, and few programs to compile.
SMALL = GPTConfig(vocab_size=CHAT_VOCAB, context=32, layers=1, heads=1, embed=16)
CHAT = "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 4}

SEND_LINE = """line => window.connection.enqueue(new TextEncoder().encode(line + "\\n\\n"))"""
# A clock that the test sets, in milliseconds.
STOP_CLOCK = "() => { window.clock = 0; performance.now = () => window.clock; }"
END = [
    'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}',
    'data: {"choices": [], "usage": {"completion_tokens": 40, "total_tokens": 50}}',
    "data: [DONE]",
]


@pytest.fixture(scope="module")
def house() -> Iterator[InProcessServer]:
    """A server of two chat models, each with one slot."""
    run = LoadedRun(weights(SMALL), SMALL, load_tokenizer())
    with in_process_server(run, DEADLINES, queue_size=3, others={"other": run}) as server:
        yield server


@pytest.fixture
def crowded_page(context, house):
    """The page of `house`."""
    page = open_page(context, house)
    set_settings(page, **GREEDY)
    return page


def answer_of(server: InProcessServer, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], **GREEDY}
    reply = json.loads(server.request(CHAT, body).body)
    return reply["choices"][0]["message"]["content"]


def test_the_number_is_that_of_the_servers_queue(crowded_page, house):
    page = crowded_page
    expected = answer_of(house, "hello")
    with occupied(house) as release, ExitStack() as stack:
        others = [stack.enter_context(house.connect()) for _ in range(2)]
        for i, other in enumerate(others):
            message = {"messages": [{"role": "user", "content": "me too"}], "user": str(i)}
            other.sendall(raw_request(CHAT, message))
        wait_until(lambda: house.health()["queued"] == 2, house.health)
        send(page, "hello")
        page.wait_for_selector(".waiting >> text=Waiting, 2 before you")
        for number in (1, 0):
            # A client that leaves lets the others go forward.
            others[number].close()
            page.wait_for_selector(f".waiting >> text=Waiting, {number} before you")
        release.set()
        wait_until_finished(page)
    assert messages(page) == ["hello", expected]
    assert not page.locator(".waiting").count()
    # The number changes at most once a second, and it has changed twice.
    assert "waited" in page.inner_text(NOTE)


def test_a_question_that_waits_can_be_taken_back(crowded_page, house):
    page = crowded_page
    with occupied(house):
        send(page, "hello")
        page.wait_for_selector(".waiting >> text=Waiting, 0 before you")
        page.keyboard.press("Escape")
        wait_until(lambda: house.health()["queued"] == 0, house.health)
        wait_until_finished(page)
        assert messages(page) == ["hello"] and not page.locator(".waiting").count()


def test_one_of_two_answers_waits_and_the_other_is_shown(crowded_page, house):
    page = crowded_page
    expected = answer_of(house, "hello")
    page.select_option("#second", "other")
    with occupied(house) as release:
        send(page, "hello")
        page.wait_for_selector(".columns section:first-child >> text=Waiting, 0 before you")
        second = "document.querySelector('.columns section:last-child .markdown').textContent"
        wait_for(page, f"{second} !== ''")
        assert page.locator(".waiting").count() == 1
        assert page.inner_text("#log").count("Waiting") == 1
        release.set()
        wait_until_finished(page)
    assert messages(page) == ["hello", expected]
    assert page.locator(".columns .markdown").all_inner_texts()[0] == page.evaluate(second)
    assert not page.locator(".waiting").count()


def test_the_page_says_how_many_are_before(page):
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    page.evaluate(SEND_LINE, ": waiting, 12 before you")
    page.wait_for_selector(".waiting >> text=Waiting, 12 before you")
    wait_for(page, "document.getElementById('announcement').textContent.includes('12 before')")
    page.evaluate(SEND_LINE, ": waiting, 1 before you")
    page.wait_for_selector(".waiting >> text=Waiting, 1 before you")
    # Other comments say nothing to the user.
    page.evaluate(SEND_LINE, ": keep-alive")
    server_sends(page, "text", "text")
    assert not page.locator(".waiting").count() and "Waiting" not in page.inner_text("#log")
    page.keyboard.press("Escape")
    wait_until_finished(page)


def test_a_text_that_waits_says_so_too(text_page):
    page = text_page
    stub_server(page)
    page.fill("#text", "Once")
    page.click("#generate")
    page.wait_for_selector("#stop-text")
    page.evaluate(SEND_LINE, ": waiting, 3 before you")
    page.wait_for_selector("#usage >> text=Waiting, 3 before you")
    page.evaluate("sendText(' upon')")
    wait_for(page, "document.getElementById('text').value === 'Once upon'")
    assert "Waiting" not in page.inner_text("#usage")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop-text", state="hidden")


@pytest.mark.parametrize(
    ("milliseconds", "note"),
    [
        # Three quarters of the text, so of 40 tokens, in 3 seconds.
        (3000, "40 tokens, 10 tokens/s · waited 60 s"),
        # When two parts come does not tell how fast they are made.
        (100, "40 tokens · waited 60 s"),
    ],
)
def test_the_speed_is_that_from_the_first_part_on(page, milliseconds, note):
    stub_server(page)
    page.evaluate(STOP_CLOCK)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    page.evaluate(SEND_LINE, ": waiting, 1 before you")
    page.wait_for_selector(".waiting >> text=1 before you")
    page.evaluate("window.clock = 60000")
    server_sends(page, "a" * 10, "a" * 10)
    page.evaluate("ms => { window.clock = 60000 + ms; }", milliseconds)
    page.evaluate("text => sendText(text)", "b" * 30)
    wait_for(page, f"document.querySelector('{ANSWER}').textContent.length === 40")
    for line in END:
        page.evaluate(SEND_LINE, line)
    wait_until_finished(page)
    assert note in page.inner_text(NOTE)
