"""A question that is changed: its form stays open, and what it replaces can be brought back."""

from pathlib import Path

from tests.server.page.browser import (
    CHAT_ROUTE,
    ask,
    clear_expected,
    contents,
    fulfill_answer,
    messages,
    open_conversation,
    refuse_as_too_long,
    reload,
    sent_bodies,
    stub_answer,
    stub_server,
    wait_until_finished,
)

FIELD = ".message textarea"
UNDO = "#log >> text=Undo"
TURNS = ["one", "two", "three", "four"]


def edit(page, index: int, text: str) -> None:
    """Open the form of a question and change the text in it."""
    page.hover(f".message.user >> nth={index}")
    page.click(f"[aria-label=Edit] >> nth={index}")
    page.fill(FIELD, text)


def test_what_an_edit_replaced_can_be_brought_back_after_a_reload(page):
    open_conversation(page, "kept", *TURNS)
    page.route(CHAT_ROUTE, lambda route: None)
    edit(page, 0, "changed")
    page.press(FIELD, "Enter")
    page.wait_for_selector("#stop")
    reload(page)
    assert messages(page)[0] == "changed" and len(messages(page)) < 3
    page.click("#list [aria-label^=Options]")
    with page.expect_download() as download:
        page.click("#options >> text=Export as JSON")
    assert "three" not in Path(download.value.path()).read_text()
    page.click(UNDO)
    assert messages(page) == TURNS and not page.locator(UNDO).count()
    reload(page)
    assert messages(page) == TURNS and not page.locator(UNDO).count()


def test_the_edit_of_an_edit_can_be_brought_back_to_the_beginning(page):
    open_conversation(page, "kept", *TURNS)
    page.route(CHAT_ROUTE, lambda route: None)
    edit(page, 0, "with a mistake")
    page.press(FIELD, "Enter")
    page.wait_for_selector("#stop")
    page.keyboard.press("Escape")
    wait_until_finished(page)
    stub_answer(page, "new")
    edit(page, 0, "without one")
    page.press(FIELD, "Enter")
    page.wait_for_selector(UNDO)
    assert messages(page) == ["without one", "new"]
    page.click(UNDO)
    assert messages(page) == TURNS


def test_whoever_asks_on_keeps_the_edit(page):
    open_conversation(page, "kept", *TURNS)
    stub_answer(page, "new")
    edit(page, 0, "changed")
    page.press(FIELD, "Enter")
    page.wait_for_selector(UNDO)
    ask(page, "next")
    assert messages(page) == ["changed", "new", "next", "new"]
    assert not page.locator(UNDO).count()


def test_an_open_form_is_kept_when_the_conversation_is_shown_again(page):
    open_conversation(page, "kept", *TURNS)
    edit(page, 1, "changed")
    page.click("[aria-label='Options of one']")
    page.click("#options >> text=Rename")
    page.fill("#new-title", "title")
    page.click("#rename-yes")
    page.wait_for_selector("#list >> text=title")
    assert page.input_value(FIELD) == "changed"
    # An answer that arrives meanwhile does not disturb whoever writes.
    stub_server(page)
    page.fill("#message", "five")
    page.press("#message", "Enter")
    page.wait_for_selector(".waiting")
    page.fill(FIELD, "changed again")
    page.evaluate("() => document.activeElement.setSelectionRange(2, 4)")
    page.evaluate("sendText('six')")
    page.evaluate("connection.close()")
    wait_until_finished(page)
    page.keyboard.type("XX")
    assert page.input_value(FIELD) == "chXXged again"
    assert "removes the 3 messages" in page.inner_text(".message form")
    page.keyboard.press("Escape")
    assert not page.locator(FIELD).count() and messages(page) == [*TURNS, "five", "six"]


def test_to_forget_after_a_refused_edit_sends_the_edit(page, errors):
    def answer(route) -> None:
        body = route.request.post_data_json
        refuse_as_too_long(route) if len(body["messages"]) > 1 else fulfill_answer(route, "new")

    page.route(CHAT_ROUTE, answer)
    open_conversation(page, "kept", *TURNS)
    edit(page, 1, "changed")
    bodies = sent_bodies(page)
    page.press(FIELD, "Enter")
    page.wait_for_selector("#failure >> text=does not fit")
    assert messages(page) == TURNS
    page.fill(FIELD, "changed again")
    page.fill("#message", "typed for later")
    page.click("#failure >> text=Forget the oldest turns")
    page.wait_for_selector("#log >> text=new")
    wait_until_finished(page)
    assert contents(bodies[-1]) == ["changed again"]
    assert messages(page) == ["one", "two", "changed again", "new"]
    assert page.input_value("#message") == "typed for later"
    clear_expected(errors, "400")


def test_a_refused_edit_that_is_given_up_leaves_no_failure(page, errors):
    page.route(CHAT_ROUTE, refuse_as_too_long)
    open_conversation(page, "kept", *TURNS)
    edit(page, 1, "changed")
    page.press(FIELD, "Enter")
    page.wait_for_selector("#failure >> text=does not fit")
    assert page.evaluate("document.activeElement.value") == "changed"
    page.keyboard.press("Escape")
    assert not page.locator(".notice").count() and messages(page) == TURNS
    clear_expected(errors, "400")
