"""Conversations: answers stream, can be stopped, repeated, edited, deleted and copied."""

import re

import pytest

from tests.server.page.browser import (
    ANSWER,
    NOTE,
    RICH_MARKDOWN,
    ask,
    messages,
    open_conversation,
    reload,
    send,
    server_sends,
    set_settings,
    stub_server,
    wait_for,
    wait_until_finished,
)
from tests.server.serving import CONTEXT, wait_until

# An answer may end before the test acts, so it tries again.
ATTEMPTS = 10
ANSWER_BEGAN = f"document.querySelector('{ANSWER}')?.textContent"
RECORD_ANSWER = """() => {
    const record = () => window.seen.push(
        document.querySelector(".message.assistant .markdown")?.textContent ?? "");
    const changes = { childList: true, subtree: true, characterData: true };
    new MutationObserver(record).observe(document.getElementById("log"), changes);
}"""


def test_an_answer_streams_and_survives_a_reload(page):
    assert page.title() == page.inner_text("#name") == "small-chat"
    page.evaluate(RECORD_ANSWER)
    set_settings(page, temperature=0, max_tokens=120)
    for _ in range(ATTEMPTS):
        page.evaluate("window.seen = []")
        page.click("#new")
        ask(page, "The river\nreads")
        seen = {text for text in page.evaluate("window.seen") if text}
        if len(seen) > 1:
            break
    else:
        pytest.fail("every answer appeared in one piece")
    complete = page.inner_text(ANSWER)
    assert all(complete.startswith(text.rstrip()) for text in seen)
    assert "120 tokens" in page.inner_text(NOTE)
    assert "Length limit" in page.inner_text(NOTE)
    assert f"of {CONTEXT} tokens" in page.inner_text("#usage")
    assert page.inner_text("#list").startswith("The river")
    assert page.title() == "The river · small-chat"
    assert page.inner_text("#announcement").startswith("Answer: ")
    before = messages(page)
    reload(page)
    assert messages(page) == before and page.inner_text(ANSWER) == complete
    page.click("#new")
    assert not page.locator(".message").count()
    page.click("#list a >> nth=0")
    page.wait_for_selector(ANSWER)
    assert messages(page) == before


def test_stop_keeps_the_text_so_far_and_frees_the_slot(page, server):
    set_settings(page, temperature=0)
    for attempt in range(ATTEMPTS):
        page.click("#new")
        send(page, f"attempt {attempt}")
        wait_for(page, ANSWER_BEGAN)
        page.keyboard.press("Escape")
        wait_until_finished(page)
        if "Stopped" in page.inner_text(NOTE):
            break
    else:
        pytest.fail("every answer was complete before it was stopped")
    assert messages(page)[1] and page.evaluate("document.activeElement.id") == "message"
    wait_until(lambda: server.health()["active"] == 0, server.health)


def test_a_reload_during_an_answer_keeps_the_text_so_far(page):
    set_settings(page, temperature=0)
    for attempt in range(ATTEMPTS):
        page.click("#new")
        send(page, f"attempt {attempt}")
        wait_for(page, ANSWER_BEGAN)
        reload(page)
        if re.search("Incomplete|Stopped", page.inner_text(NOTE)):
            break
    else:
        pytest.fail("every answer was complete before the reload")
    question, answer = messages(page)
    assert question == f"attempt {attempt}" and answer


def test_retry_and_edit_send_the_messages_that_they_show(page):
    sent = []

    def on_request(request) -> None:
        if request.method == "POST":
            sent.append(request.post_data_json["messages"])

    page.on("request", on_request)
    set_settings(page, max_tokens=8)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.click("#close-settings")
    ask(page, "first")
    ask(page, "second")
    first, answer, second, last = messages(page)
    system = {"role": "system", "content": "Be brief."}
    expected = [
        system,
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]
    assert sent == [expected[:2], expected]

    page.click("[aria-label=Retry]")
    wait_until_finished(page)
    assert sent[2:] == [expected]
    assert messages(page)[:3] == [first, answer, second] and messages(page)[3] != last

    page.hover(".message.user")
    page.click("[aria-label=Edit] >> nth=0")
    assert "removes the 3 messages" in page.inner_text(".message form")
    page.keyboard.press("Escape")
    assert len(messages(page)) == 4 and not page.locator(".message form").count()
    page.click("[aria-label=Edit] >> nth=0")
    page.fill(".message textarea", "changed")
    page.press(".message textarea", "Enter")
    wait_until_finished(page)
    assert sent[3:] == [[system, {"role": "user", "content": "changed"}]]
    assert messages(page)[0] == "changed" and len(messages(page)) == 2
    assert page.inner_text("#list") == "changed"

    page.click("#log >> text=Undo")
    assert messages(page)[:3] == [first, answer, second] and len(messages(page)) == 4
    assert page.inner_text("#list") == "first"


def test_an_answer_is_rendered_while_it_arrives(page):
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    server_sends(page, "Füße 🦆 **bo", "Füße 🦆 **bo")
    assert not page.locator(".waiting, .markdown strong").count()
    server_sends(page, "ld**\n\n```py", "Füße 🦆 boldpyCopy")
    server_sends(page, "thon\nx = 1", "Füße 🦆 boldpythonCopyx = 1")
    page.evaluate("window.codeBlock = document.querySelector('.markdown pre')")
    server_sends(page, "0", "Füße 🦆 boldpythonCopyx = 10")
    # The block was changed and not replaced, so that a user can select text in it.
    assert page.evaluate("window.codeBlock.isConnected")
    # A new system prompt renders the whole conversation again.
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    page.wait_for_selector(".system")
    assert page.is_visible("#stop")
    server_sends(page, "\n```\nEnd", "Füße 🦆 boldpythonCopyx = 10End")
    # Screen readers do not read every token.
    assert page.inner_text("#announcement") == "Generating"
    page.keyboard.press("Escape")
    wait_until_finished(page)
    assert messages(page)[1] == "Füße 🦆 **bold**\n\n```python\nx = 10\n```\nEnd"


def test_opening_another_conversation_stops_the_answer(page):
    stub_server(page)
    send(page, "first")
    page.wait_for_selector(".waiting")
    server_sends(page, "half", "half")
    page.click("#new")
    wait_until_finished(page)
    assert not page.locator(".message").count() and messages(page) == []
    page.click("#list a")
    page.wait_for_selector(ANSWER)
    assert messages(page) == ["first", "half"]
    assert "Stopped" in page.inner_text(NOTE)


def test_delete_and_its_undo(page):
    open_conversation(page, "kept", "one", "two", "three", "four")
    page.click(".message:last-child [aria-label=Delete]")
    assert messages(page) == ["one", "two", "three"]
    page.click("#toast >> text=Undo")
    assert messages(page) == ["one", "two", "three", "four"]

    page.hover("#list li")
    page.click("#list [aria-label^=Options]")
    page.click("#options >> text=Delete")
    assert "No conversations yet" in page.inner_text("#list")
    assert not page.locator(".message").count()
    page.click("#toast >> text=Undo")
    page.wait_for_selector(".message")

    page.click("#delete-all")
    page.click("#confirm >> text=Cancel")
    assert page.locator("#list a").count() == 1
    page.click("#delete-all")
    page.click("#confirm-yes")
    page.wait_for_selector("#list >> text=No conversations yet")
    stored = "Object.keys(localStorage).filter(key => key.startsWith('minigpt.document'))"
    assert page.evaluate(stored) == []


def test_to_undo_a_deletion_elsewhere_leaves_the_answer_alone(page):
    open_conversation(page, "other", "of another", "answer")
    page.click("#new")
    page.wait_for_selector(".empty")
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    page.click("[aria-label='Options of of another']")
    page.click("#options >> text=Delete")
    page.click("#toast >> text=Undo")
    page.wait_for_selector("#list >> text=of another")
    server_sends(page, "text", "text")
    page.keyboard.press("Escape")
    wait_until_finished(page)
    assert messages(page) == ["hello", "text"]


def test_copy(page, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    copied = "document.getElementById('announcement').textContent === 'Copied'"
    open_conversation(page, "rich", "question", RICH_MARKDOWN)
    page.click(".message:last-child .foot [aria-label=Copy]")
    wait_for(page, copied)
    assert page.evaluate("navigator.clipboard.readText()") == RICH_MARKDOWN
    page.evaluate("document.getElementById('announcement').textContent = ''")
    page.click(".code >> text=Copy")
    wait_for(page, copied)
    assert page.evaluate("navigator.clipboard.readText()").startswith("print(")


def test_the_view_follows_an_answer_only_at_the_end(page):
    open_conversation(page, "long", "question", "paragraph\n\n" * 100, "another", "short")
    page.evaluate("scroller.scrollTop = 0")
    page.wait_for_selector("#latest", state="visible")
    page.route("**/v1/chat/completions", lambda route: None)
    # The user's own message is always shown.
    send(page, "more")
    wait_for(page, "scroller.scrollTop > 100")
    page.evaluate("scroller.scrollTop = 0")
    page.keyboard.press("Escape")
    wait_until_finished(page)
    assert page.evaluate("scroller.scrollTop") == 0
    page.click("#latest")
    page.wait_for_selector("#latest", state="hidden")
