"""The page of a base model: it continues a text and highlights what it generated."""

import pytest

from tests.server.page.browser import reload, set_settings, stub_server, wait_for
from tests.server.serving import wait_until

ATTEMPTS = 10
FIRST_MARK = "document.querySelector('mark')?.textContent"
ALL_MARKS = "[...document.querySelectorAll('mark')].map(mark => mark.textContent)"
# The field lies over a copy of its text, which has the marks and one more line.
COPY_EQUALS_TEXT = """document.getElementById("copy-of-text").textContent
    === document.getElementById("text").value + "\\n\""""


def wait_until_generated(page) -> None:
    page.wait_for_selector("#stop-text", state="hidden")


def test_a_text_is_continued_and_generated_text_is_marked(text_page):
    page = text_page
    assert page.title() == "small-text" and not page.is_visible("#message")
    set_settings(page, max_tokens=24)
    page.fill("#text", "Once upon")
    page.press("#text", "Control+Enter")
    wait_until_generated(page)
    first = page.input_value("#text")
    generated = first.removeprefix("Once upon")
    assert generated not in ("", first) and page.inner_text("#generate") == "Continue"
    assert page.evaluate(FIRST_MARK) == generated
    page.click("#generate")
    wait_until_generated(page)
    second = page.input_value("#text")
    generated_next = second.removeprefix(first)
    assert generated_next not in ("", second)

    # Typing moves the marks, and is not marked.
    page.focus("#text")
    page.keyboard.press("Control+Home")
    page.keyboard.type("So: ")
    assert page.evaluate(ALL_MARKS) == [generated, generated_next]
    assert page.evaluate(COPY_EQUALS_TEXT)

    page.click("#undo")
    assert page.input_value("#text") == "So: " + first
    reload(page)
    assert page.input_value("#text") == "So: " + first and page.locator("mark").count() == 1
    page.click("#undo")
    assert page.input_value("#text") == "So: Once upon" and page.is_disabled("#undo")


def test_generation_can_be_stopped(text_page, text_server):
    page = text_page
    set_settings(page, max_tokens=250)
    for _ in range(ATTEMPTS):
        page.fill("#text", "Once")
        page.click("#generate")
        wait_for(page, FIRST_MARK)
        page.keyboard.press("Escape")
        wait_until_generated(page)
        if "Stopped" in page.inner_text("#usage"):
            break
    else:
        pytest.fail("every text was complete before it was stopped")
    assert len(page.input_value("#text")) > len("Once")
    wait_until(lambda: text_server.health()["active"] == 0, text_server.health)


def test_a_new_text_can_be_opened_before_the_last_one_is_saved(text_page):
    page = text_page
    stub_server(page)
    page.evaluate(
        """() => {
            const text = document.getElementById("text");
            text.value = "Once";
            text.dispatchEvent(new Event("input"));
            document.getElementById("new").click();
        }"""
    )
    wait_for(page, "document.getElementById('text').value === ''")
    page.click("#list a")
    wait_for(page, "document.getElementById('text').value === 'Once'")
    page.evaluate(
        """() => {
            document.getElementById("new").click();
            addEventListener("hashchange", () => {
                const text = document.getElementById("text");
                text.value = "Twice";
                text.dispatchEvent(new Event("input"));
                document.getElementById("generate").click();
                document.getElementById("new").click();
            }, { once: true });
        }"""
    )
    wait_for(page, "document.querySelectorAll('#list li').length === 2")
    wait_until_generated(page)
    assert page.input_value("#text") == "" and page.is_editable("#text")


def test_opening_another_text_stops_generation(text_page):
    page = text_page
    stub_server(page)
    page.fill("#text", "Once")
    page.click("#generate")
    page.wait_for_selector("#stop-text")
    page.evaluate("sendText(' upon\\r\\n')")
    wait_for(page, "document.getElementById('text').value === 'Once upon\\n'")
    assert not page.is_editable("#text")
    page.evaluate("sendText(' a time')")
    page.click("#new")
    wait_until_generated(page)
    assert page.input_value("#text") == "" and page.is_editable("#text")
    page.click("#list a")
    wait_for(page, "document.getElementById('text').value.startsWith('Once upon')")
    assert page.evaluate(FIRST_MARK).startswith(" upon")
