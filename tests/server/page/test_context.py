"""A full context: the oldest turns are forgotten, visibly, and what was refused is not lost."""

from tests.server.page.browser import (
    ANSWER,
    NOTE,
    ask,
    clear_expected,
    contents,
    messages,
    open_conversation,
    reload,
    sent_bodies,
    set_settings,
    wait_for,
    wait_until_finished,
)
from tests.server.serving import CONTEXT

# One token each.
LONG = "word " * 80
FORGET = "#failure >> text=Forget the oldest turns"
LINE = "The model no longer sees what is above"


def test_the_oldest_turns_are_forgotten_and_the_question_repeated(page, errors):
    set_settings(page, max_tokens=4)
    turns = [f"first {LONG}", "one", f"second {LONG}", "two", "third", "three"]
    open_conversation(page, "long", *turns)
    page.fill("#message", f"fourth {LONG}")
    page.press("#message", "Enter")
    page.wait_for_selector("#failure >> text=does not fit into the context")
    # The refused message is in the field again, and also after a reload.
    assert messages(page) == turns
    assert page.input_value("#message") == f"fourth {LONG}".strip()
    assert not page.locator("#failure >> text=Try again").count()
    clear_expected(errors, "400")
    bodies = sent_bodies(page)
    page.focus(FORGET)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{ANSWER} >> nth=3")
    wait_until_finished(page)
    expected = ["second " + LONG.strip(), "two", "third", "three", "fourth " + LONG.strip()]
    assert [contents(body) for body in bodies] == [expected]
    assert len(messages(page)) == 8 and page.input_value("#message") == ""
    assert not page.locator(".notice").count()
    shown = page.inner_text("#log")
    assert shown.index("one") < shown.index(LINE) < shown.index("second")
    reload(page)
    assert page.locator(".forgotten").count() == 2 and LINE in page.inner_text("#log")
    page.click("#log >> text=Send them again")
    assert not page.locator(".forgotten").count() and LINE not in page.inner_text("#log")


def test_turns_are_forgotten_until_the_rest_fits(page, errors):
    set_settings(page, max_tokens=4)
    open_conversation(page, "long", *[f"{i} {LONG}" if i % 2 == 0 else "yes" for i in range(14)])
    ask(page, "short")
    page.click(FORGET)
    page.wait_for_selector(f"{ANSWER} >> nth=7")
    wait_until_finished(page)
    assert not page.locator(".notice").count() and len(messages(page)) == 16
    # 14 of 14 messages did not fit, nor did 8.
    assert page.locator(".forgotten").count() == 10
    clear_expected(errors, "400")


def test_an_answer_that_the_context_cuts_can_be_repeated(page):
    set_settings(page, temperature=0)
    open_conversation(page, "long", LONG, "one", "two", "three")
    ask(page, "four")
    page.wait_for_selector("#failure >> text=context is full")
    assert "The context is full" in page.inner_text(f"{NOTE} >> nth=2")
    cut = messages(page)[-1]
    reload(page)
    page.click(FORGET)
    wait_until_finished(page)
    assert page.inner_text(".versions") == "2/2" and len(messages(page)[-1]) > len(cut)
    assert page.locator(".forgotten").count() == 2


def test_a_message_that_alone_is_too_long_returns_to_the_field(page, errors):
    long = "word " * 400
    ask(page, long)
    assert f"context of {CONTEXT} tokens" in page.inner_text("#failure b")
    assert "Shorten the message" in page.inner_text("#failure")
    assert page.input_value("#message") == long.strip() and page.is_visible(".empty")
    assert page.inner_text("#failure .row") == "New conversation"
    # Nothing is listed that has no messages, and the draft survives.
    assert not page.locator("#list a").count()
    reload(page)
    assert page.input_value("#message") == long.strip()
    clear_expected(errors, "400")


def test_an_edited_message_that_is_refused_stays_in_its_form(page, errors):
    open_conversation(page, "kept", "one", "two", "three", "four")
    page.hover(".message.user")
    page.click("[aria-label=Edit] >> nth=0")
    page.fill(".message textarea", "word " * 400)
    page.press(".message textarea", "Enter")
    page.wait_for_selector("#failure >> text=does not fit")
    assert page.input_value(".message textarea") == "word " * 400
    assert messages(page) == ["one", "two", "three", "four"]
    clear_expected(errors, "400")


def test_a_long_text_goes_on_with_its_last_part(text_page, errors):
    page = text_page
    set_settings(page, max_tokens=8)
    bodies = sent_bodies(page)
    text = "word " * 600
    page.fill("#text", text)
    page.click("#generate")
    wait_for(page, "document.querySelector('mark')?.textContent")
    page.wait_for_selector("#stop-text", state="hidden")
    assert not page.locator(".notice").count()
    prompts = [body["prompt"] for body in bodies]
    assert len(prompts) > 1 and prompts[0] == text and text.endswith(prompts[-1])
    assert page.input_value("#text").startswith(text)
    unseen = page.evaluate("document.querySelector('.unseen').textContent")
    assert unseen + prompts[-1] == text and "not see the shaded" in page.inner_text("#usage")
    # The next part is not refused first: how many characters a token has is known now.
    sent = len(bodies)
    page.click("#generate")
    page.wait_for_selector("#stop-text", state="hidden")
    assert len(bodies) == sent + 1
    # It uses most of the context.
    assert len(bodies[-1]["prompt"]) > 5 * CONTEXT / 2
    clear_expected(errors, "400")
