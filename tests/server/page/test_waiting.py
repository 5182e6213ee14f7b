"""A request that waits for its turn: the page says so, and speeds do not count the wait."""

from tests.server.page.browser import (
    ANSWER,
    NOTE,
    send,
    server_sends,
    stub_server,
    wait_for,
    wait_until_finished,
)

SEND_LINE = """line => window.connection.enqueue(new TextEncoder().encode(line + "\\n\\n"))"""
# A clock that the test sets, in milliseconds.
STOP_CLOCK = "() => { window.clock = 0; performance.now = () => window.clock; }"
END = [
    'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}',
    'data: {"choices": [], "usage": {"completion_tokens": 40, "total_tokens": 50}}',
    "data: [DONE]",
]


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


def test_the_speed_is_that_from_the_first_part_on(page):
    stub_server(page)
    page.evaluate(STOP_CLOCK)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    page.evaluate(SEND_LINE, ": waiting, 1 before you")
    page.wait_for_selector(".waiting >> text=1 before you")
    page.evaluate("window.clock = 60000")
    server_sends(page, "a" * 10, "a" * 10)
    # Three quarters of the text, so of 40 tokens, in 3 seconds.
    page.evaluate("window.clock = 63000")
    page.evaluate("text => sendText(text)", "b" * 30)
    wait_for(page, f"document.querySelector('{ANSWER}').textContent.length === 40")
    for line in END:
        page.evaluate(SEND_LINE, line)
    wait_until_finished(page)
    assert "40 tokens, 10 tokens/s · waited 60 s" in page.inner_text(NOTE)
