"""Appearance and accessibility: themes, phones, keyboard, names and settings."""

import json

import pytest

from tests.server.page.browser import (
    ask,
    messages,
    open_conversation,
    open_everything,
    open_page,
    reload,
    set_settings,
    stub_answer,
    wait_for,
    wait_until_connected,
    wait_until_finished,
)
from tests.server.page.looks import PHONE

BRIGHTNESS = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
UNNAMED_CONTROLS = """
    [...document.querySelectorAll("button, input, textarea, select, a, [role=region], nav, dialog")]
        .filter(node => !(node.textContent.trim() || node.ariaLabel || node.labels?.length
            || node.getAttribute("aria-labelledby")))
        .map(node => node.outerHTML)"""
FOCUSED = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"


def test_light_and_dark(page):
    assert page.evaluate(BRIGHTNESS) > 200
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(BRIGHTNESS) < 60
    page.check("#themes [value=light]", force=True)
    assert page.evaluate(BRIGHTNESS) > 200
    reload(page)
    assert page.evaluate(BRIGHTNESS) > 200 and page.is_checked("#themes [value=light]")


def test_a_phone(chromium, server):
    context = chromium.new_context(viewport=PHONE, is_mobile=True, has_touch=True)
    page = open_page(context, server)
    open_everything(page, "a_word_without_an_end" * 20)

    # Long lines of code scroll within their block.
    page.evaluate("document.querySelector('pre').scrollLeft = 50")
    assert page.evaluate("document.querySelector('pre').scrollLeft") == 50
    assert not page.is_visible("#list")
    page.tap("#menu")
    page.wait_for_selector("#list a", state="visible")
    wait_for(page, "document.getElementById('panel').getBoundingClientRect().left === 0")
    assert page.evaluate("document.activeElement.id") == "close-panel"
    page.tap("#list button")
    page.wait_for_selector("#options", state="visible")
    options = page.locator("#options").bounding_box()
    assert options["x"] >= 0 and options["x"] + options["width"] <= PHONE["width"]
    page.touchscreen.tap(20, 600)
    page.wait_for_selector("#options", state="hidden")
    page.tap("#list a")
    page.wait_for_selector("#list", state="hidden")
    page.tap("#open-settings")
    page.wait_for_selector("#settings[open]")
    context.close()


def press_shift_tab_until(page, condition: str) -> None:
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate(condition):
            return
    pytest.fail(f"never reached by Shift+Tab: {condition}")


def test_everything_can_be_done_with_the_keyboard(page):
    set_settings(page, max_tokens=4)
    reload(page)
    press_shift_tab_until(page, f"({FOCUSED}) === 'skip'")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > 0
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "message"

    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .foot button")
    assert messages(page)[0] == "one\ntwo"
    press_shift_tab_until(page, f"({FOCUSED}) === 'Retry'")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    wait_until_finished(page)

    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.wait_for_selector("#settings[open]")
    page.focus("#set-temperature")
    page.keyboard.press("End")
    assert page.inner_text("#settings output >> nth=0") == "2"
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == "Settings"
    assert page.evaluate("samplingSettings().temperature") == 2

    page.focus("#delete-all")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list >> text=No conversations yet")


def test_enter_that_completes_a_composed_word_does_not_send(page):
    page.fill("#message", "にほん")
    press_enter = """(details) => document.getElementById("message").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, ...details }))"""
    for details in ({"isComposing": True}, {"keyCode": 229}):
        page.evaluate(press_enter, details)
    assert messages(page) == [] and page.input_value("#message") == "にほん"


def test_every_control_has_a_name(page):
    open_everything(page)
    page.evaluate("document.getElementById('settings').showModal()")
    assert page.evaluate(UNNAMED_CONTROLS) == []


def test_settings_stay_within_their_ranges(page):
    bodies = []

    def on_request(request) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", on_request)
    stub_answer(page, "An answer.")
    set_settings(page, temperature=99, top_p="much", min_p=-1, max_tokens=10**9, seed=1.5)
    ask(page, "hello")
    expected = {
        "temperature": 2,
        "top_p": 0.95,
        "min_p": 0,
        "repetition_penalty": 1,
        "top_k": None,
        "max_tokens": 256,
        "seed": 2,
    }
    assert {name: bodies[0].get(name) for name in expected} == expected
    page.click("#open-settings")
    page.click("#reset-all")
    assert page.evaluate("samplingSettings()") == {
        "temperature": 0.8,
        "top_p": 0.95,
        "min_p": 0,
        "repetition_penalty": 1,
    }


def test_the_page_works_under_a_path(page, server):
    """As behind a proxy that shows this server under a path of another one."""
    paths = []

    def forward(route) -> None:
        paths.append(route.request.url.removeprefix(server.url))
        route.continue_(url=route.request.url.replace("/chat/", "/", 1))

    page.route(f"{server.url}/**", forward)
    set_settings(page, max_tokens=4)
    page.goto(f"{server.url}/chat/")
    wait_until_connected(page)
    ask(page, "hello")
    assert len(messages(page)) == 2 and "/chat/v1/chat/completions" in paths
    page.click("#new")
    assert page.evaluate("location.pathname") == "/chat/"
    assert all(path.startswith("/chat/") for path in paths)


def test_an_empty_page_offers_examples(page, server):
    models = json.loads(server.request("/v1/models").body)
    models["data"][0]["examples"] = ["What is a?", "What is b?", "What is c?", "One too many?"]
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    set_settings(page, max_tokens=4)
    reload(page)
    assert page.locator(".examples button").count() == 3
    assert "parameters" in page.inner_text(".empty") and "wrong" in page.inner_text(".empty")
    page.fill("#message", "a draft")
    page.focus(".examples button >> nth=1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant")
    wait_until_finished(page)
    assert messages(page)[0] == "What is b?" and not page.locator(".empty").count()
    assert page.input_value("#message") == "a draft"


@pytest.mark.parametrize("width", [1280, 620, 400])
def test_no_blank_band_below_a_question(page, width):
    page.set_viewport_size({"width": width, "height": 720})
    open_conversation(page, "plain", "question", "answer")
    page.mouse.move(width // 2, 700)
    question = page.locator(".message.user .text").bounding_box()
    answer = page.locator(".message.assistant .markdown").bounding_box()
    assert answer["y"] - (question["y"] + question["height"]) < 16
