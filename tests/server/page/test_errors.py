"""Errors: the page says what happened and what to do, and keeps what has arrived."""

import json

import pytest

from tests.server.page.browser import (
    CHAT_ROUTE,
    NOTE,
    ask,
    clear_expected,
    fulfill_error,
    messages,
    open_conversation,
    reload,
    send,
    server_sends,
    set_settings,
    stub_server,
    wait_until_connected,
    wait_until_finished,
)

MODELS_ROUTE = "**/v1/models"


def test_a_busy_server(page, errors):
    error = {"message": "too many requests", "type": "", "param": None, "code": None}
    page.route(
        CHAT_ROUTE,
        lambda route: route.fulfill(
            status=429,
            headers={"Retry-After": "7"},
            body=json.dumps({"error": error}),
            content_type="application/json",
        ),
    )
    set_settings(page, max_tokens=4)
    ask(page, "hello")
    assert "too many requests" in page.inner_text("#failure")
    assert "in 7 s" in page.inner_text("#failure")
    assert messages(page) == ["hello"]
    page.unroute(CHAT_ROUTE)
    page.click("#failure >> text=Try again")
    wait_until_finished(page)
    assert len(messages(page)) == 2 and not page.locator(".notice").count()
    clear_expected(errors, "429")


def test_a_lost_connection_keeps_the_text_so_far(page):
    set_settings(page, max_tokens=4)
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    server_sends(page, "half of an", "half of an")
    page.evaluate("connection.error(new TypeError('network error'))")
    wait_until_finished(page)
    assert messages(page) == ["hello", "half of an"]
    assert "Incomplete" in page.inner_text(NOTE)
    assert "connection was lost" in page.inner_text("#failure")
    # A retry that fails keeps the text too; one that succeeds replaces it.
    page.evaluate("() => { window.fetch = async () => { throw new TypeError('no network') } }")
    page.click("#failure >> text=Try again")
    page.wait_for_selector("#failure >> text=cannot be reached")
    assert messages(page) == ["hello", "half of an"]
    page.evaluate("() => { window.fetch = window.realFetch }")
    page.click("[aria-label=Retry]")
    wait_until_finished(page)
    assert messages(page)[1] not in ("", "half of an")
    assert not page.locator(".notice").count()


def test_a_server_that_cannot_be_reached(page, errors):
    page.route(MODELS_ROUTE, lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#failure >> text=cannot be reached")
    assert page.is_disabled("#send")
    page.unroute(MODELS_ROUTE)
    page.click("#failure >> text=Try again")
    wait_until_connected(page)
    assert page.is_enabled("#send") and not page.locator(".notice").count()
    clear_expected(errors, "ERR_FAILED")


@pytest.mark.parametrize("status", [400, 403, 404, 413])
def test_a_refused_message_returns_to_the_field(page, errors, status):
    """Asking the same again would not help, so no button offers it."""
    page.route(CHAT_ROUTE, lambda route: fulfill_error(route, status, "not like this"))
    open_conversation(page, "kept", "one", "two")
    ask(page, "three")
    assert "not like this" in page.inner_text("#failure")
    assert messages(page) == ["one", "two"] and page.input_value("#message") == "three"
    assert not page.locator("#failure >> text=Try again").count()
    reload(page)
    assert messages(page) == ["one", "two"] and page.input_value("#message") == "three"
    clear_expected(errors, str(status))


def test_what_is_typed_before_a_refusal_is_kept(page, errors):
    requests = []
    page.route(CHAT_ROUTE, lambda route: requests.append(route))
    with page.expect_request(CHAT_ROUTE):
        send(page, "refused")
    page.fill("#message", "typed meanwhile")
    fulfill_error(requests.pop(), 400, "not like this")
    wait_until_finished(page)
    assert page.input_value("#message") == "refused\n\ntyped meanwhile"
    assert page.is_visible(".empty")
    reload(page)
    assert page.input_value("#message") == "refused\n\ntyped meanwhile"
    clear_expected(errors, "400")


def test_a_server_that_stops_keeps_the_question(page, errors):
    page.route(CHAT_ROUTE, lambda route: fulfill_error(route, 503, "the server is stopping"))
    ask(page, "hello")
    assert "the server is stopping" in page.inner_text("#failure")
    assert messages(page) == ["hello"] and page.input_value("#message") == ""
    assert page.is_visible("#failure >> text=Try again")
    clear_expected(errors, "503")


def test_an_error_in_a_stream_keeps_the_text_so_far(page):
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    server_sends(page, "half of an", "half of an")
    page.evaluate(
        "line => connection.enqueue(new TextEncoder().encode(line))",
        'data: {"error": {"message": "the engine failed"}}\n\n',
    )
    wait_until_finished(page)
    assert messages(page) == ["hello", "half of an"]
    assert "the engine failed" in page.inner_text("#failure")
    assert page.is_visible("#failure >> text=Try again")
