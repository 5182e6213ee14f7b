"""The page of a base model: it continues a text and highlights what it generated."""

import pytest

from tests.server.page.browser import (
    clear_expected,
    fulfill_answer,
    fulfill_error,
    refuse_as_too_long,
    reload,
    sent_bodies,
    set_settings,
    stub_server,
    wait_for,
)
from tests.server.serving import CONTEXT, wait_until

ATTEMPTS = 10
COMPLETION_ROUTE = "**/v1/completions"
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


def test_the_keyboard_generates_and_stops(text_page):
    page = text_page
    page.fill("#text", "The river")
    focused = "document.activeElement.id"
    page.focus("#generate")
    with page.expect_request(COMPLETION_ROUTE):
        page.keyboard.press("Enter")
    wait_until_generated(page)
    wait_for(page, f"{focused} === 'generate'")
    # Never answered.
    page.route(COMPLETION_ROUTE, lambda route: None)
    page.keyboard.press("Enter")
    wait_for(page, f"{focused} === 'stop-text'")
    page.keyboard.press("Enter")
    wait_for(page, f"{focused} === 'text'")


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


def generate(page) -> None:
    page.click("#generate")
    wait_until_generated(page)


@pytest.mark.parametrize("beginning", ["", "A"])
def test_a_short_beginning_does_not_hide_later_text(text_page, beginning):
    """How many characters a token has is estimated from all text that was counted."""
    page = text_page
    usage = {"completion_tokens": 64, "total_tokens": 65 + len(beginning)}
    page.route(COMPLETION_ROUTE, lambda route: fulfill_answer(route, "word " * 40, **usage))
    bodies = sent_bodies(page)
    page.fill("#text", beginning)
    generate(page)
    written = page.input_value("#text")
    generate(page)
    assert bodies[1]["prompt"] == written == beginning + "word " * 40
    assert not page.locator(".unseen").count()


def test_an_estimate_from_few_tokens_does_not_hide_later_text(text_page):
    page = text_page
    usage = {"completion_tokens": 1, "total_tokens": 3}
    page.route(COMPLETION_ROUTE, lambda route: fulfill_answer(route, "b", **usage))
    bodies = sent_bodies(page)
    page.fill("#text", "a")
    generate(page)
    pasted = "word " * 100
    page.fill("#text", pasted)
    generate(page)
    assert bodies[1]["prompt"] == pasted


def test_a_text_that_is_too_large_for_a_request_goes_on(text_page, errors):
    page = text_page

    def answer(route) -> None:
        if len(route.request.post_data_json["prompt"]) > 1000:
            fulfill_error(route, 413, "body too large")
        else:
            fulfill_answer(route, "and on")

    page.route(COMPLETION_ROUTE, answer)
    bodies = sent_bodies(page)
    text = "word " * 4000
    page.fill("#text", text)
    generate(page)
    assert page.input_value("#text") == text + "and on"
    assert not page.locator(".notice").count()
    # No text has so many characters in one token: most of it is not even tried.
    assert len(bodies[0]["prompt"]) <= 32 * CONTEXT
    clear_expected(errors, "413")


def test_a_character_is_not_cut(text_page, errors):
    page = text_page
    page.route(COMPLETION_ROUTE, refuse_as_too_long)
    bodies = sent_bodies(page)
    # Two code units each, at even places or at odd ones.
    for first in ("", "a"):
        page.fill("#text", first + "\N{DUCK}" * 300)
        generate(page)
    prompts = [body["prompt"] for body in bodies]
    assert len(prompts) > 4 and all(prompt.encode() for prompt in prompts)
    clear_expected(errors, "400")


def test_a_text_that_is_shown_again_while_it_grows_is_complete(text_page):
    page = text_page
    stub_server(page)
    page.fill("#text", "Once")
    page.click("#generate")
    page.wait_for_selector("#stop-text")
    page.evaluate("sendText(' upon')")
    wait_for(page, "document.getElementById('text').value === 'Once upon'")
    # As a new title does.
    page.evaluate("view.show()")
    page.evaluate("sendText(' a time')")
    wait_for(page, "document.getElementById('text').value === 'Once upon a time'")
    assert page.evaluate(COPY_EQUALS_TEXT)
    page.keyboard.press("Escape")
    wait_until_generated(page)
    assert page.evaluate(FIRST_MARK) == " upon a time" and page.evaluate(COPY_EQUALS_TEXT)
