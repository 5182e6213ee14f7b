"""Every state of the page, wide and on a phone, light and dark: contrast, sizes and widths.

Each window has one page for all tests, which is emptied between them and not loaded again.
"""

import json
from typing import TYPE_CHECKING

import pytest

from tests.server.page.browser import (
    RICH_MARKDOWN,
    SHOW_EVERYTHING,
    open_page,
    send,
    stub_server,
    wait_for,
)
from tests.server.page.looks import (
    LOW_CONTRAST,
    MIN_CONTRAST,
    MIN_TOUCH,
    PHONE,
    SMALL_CONTROLS,
    TOO_WIDE,
)
from tests.server.serving import KEY

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDE = {"width": 1280, "height": 800}
WINDOWS = {
    "wide": {"viewport": WIDE},
    "phone": {"viewport": PHONE, "is_mobile": True, "has_touch": True},
}
LONG_WORD = "a_word_without_an_end" * 20
LONG_NAME = "a-model-whose-name-is-longer-than-a-phone-is-wide"
STORED = {
    "kind": "chat",
    "revision": "stored",
    "touched": 1,
    "system": "",
    "messages": [{"role": "user", "content": LONG_WORD}],
}
# Everything that a test before this one has opened, asked or stored is gone.
EMPTY = """(stored) => {
    document.querySelectorAll("dialog[open]").forEach(dialog => dialog.close());
    document.querySelectorAll(":popover-open").forEach(popover => popover.hidePopover());
    document.querySelectorAll("#toast, #unstored").forEach(node => { node.hidden = true; });
    document.getElementById("close-panel").click();
    document.getElementById("message").value = "";
    window.fetch = window.realFetch ?? window.fetch;
    localStorage.clear();
    localStorage.setItem("minigpt.document.stored", stored);
    history.replaceState(null, "", location.pathname);
    state.failure = null;
    state.document = newDocument();
    view.show();
    view.showList();
}"""
SHOW = """(changes) => {
    Object.assign(state.document, changes);
    view.show();
}"""
TEXT = {
    "text": "Unseen. Once upon a time",
    "marks": [[12, 24, 1]],
    "unseen": 8,
    "tokenList": [["\n", -0.1, [["\n", -0.1], [LONG_WORD, -9]]], ["rare", -9, []]],
}


def turns(*contents: str) -> dict:
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def everything(page: "Page") -> None:
    page.evaluate(SHOW, turns(LONG_WORD, RICH_MARKDOWN) | {"system": LONG_WORD})
    page.evaluate(SHOW_EVERYTHING)
    page.evaluate("document.querySelectorAll('.foot button').forEach(button => button.focus())")


def edit(page: "Page") -> None:
    page.evaluate(SHOW, turns("question", "answer", "question", "answer"))
    page.focus(".message [aria-label=Edit]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message form")


def toast(page: "Page") -> None:
    page.evaluate(SHOW, turns("question", "answer"))
    page.evaluate("deleteMessage(state.document, 1)")
    page.wait_for_selector("#toast >> text=Undo")


def failure(page: "Page") -> None:
    failed = {"title": LONG_WORD, "remedy": "Shorten it.", "tooLong": True}
    page.evaluate("failure => { state.failure = failure; view.show(); }", failed)
    page.wait_for_selector(".notice >> text=New")


def full_context(page: "Page") -> None:
    page.evaluate(SHOW, turns("question", "answer", "question", "answer"))
    failure(page)
    page.wait_for_selector(".notice >> text=Forget")


def busy(page: "Page") -> None:
    failed = {"title": "The server cannot be reached.", "remedy": "Check it."}
    page.evaluate("failure => { state.failure = failure; view.show(); }", failed)
    page.wait_for_selector(".notice button")


def waiting(page: "Page") -> None:
    stub_server(page)
    send(page, "hello")
    page.wait_for_selector(".waiting")
    line = ": waiting, 12 before you\n\n"
    page.evaluate("line => connection.enqueue(new TextEncoder().encode(line))", line)
    page.wait_for_selector(".waiting >> text=12 before you")


def full_storage(page: "Page") -> None:
    page.evaluate("document.getElementById('unstored').hidden = false")


def panel(page: "Page") -> None:
    page.evaluate("document.getElementById('menu').click()")


def options(page: "Page") -> None:
    panel(page)
    page.focus("#list button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#options >> text=Delete")


def rename(page: "Page") -> None:
    options(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#rename[open]")


def confirm(page: "Page") -> None:
    page.evaluate("document.getElementById('delete-all').click()")
    page.wait_for_selector("#confirm[open]")


def settings(page: "Page") -> None:
    page.click("#open-settings")
    page.wait_for_selector("#settings[open]")


def tip(page: "Page") -> None:
    everything(page)
    page.focus(".token")
    page.wait_for_selector("#tip:popover-open")


def text(page: "Page") -> None:
    page.evaluate(SHOW, TEXT)


def text_tip(page: "Page") -> None:
    text(page)
    page.focus(".token")
    page.wait_for_selector("#tip:popover-open")


CHAT_STATES = [
    *(everything, edit, toast, full_context, busy, waiting, full_storage, panel, options, rename),
    *(confirm, settings, tip),
]
TEXT_STATES = [text, text_tip, failure, busy, settings, panel]


def problems(page: "Page", window: str) -> list:
    """What is hard to see, hard to hit or wider than the window, in either scheme."""
    found = [*page.evaluate(TOO_WIDE)]
    if window == "phone":
        found += page.evaluate(SMALL_CONTROLS, MIN_TOUCH)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found += page.evaluate(LOW_CONTRAST, MIN_CONTRAST)
    return found


@pytest.fixture(scope="module")
def windows(chromium, server, text_server):
    """A page of every kind of model in every window, by (kind, window)."""
    pages = {}
    # With examples and a second model, which answers too.
    models = json.loads(server.request("/v1/models").body)
    [model] = models["data"]
    model["examples"] = ["What is a?", LONG_WORD]
    models["data"].append(model | {"id": LONG_NAME, "context": 128})
    for window, options in WINDOWS.items():
        credentials = {"username": "anyone", "password": KEY}
        context = chromium.new_context(
            **options, http_credentials=credentials, reduced_motion="reduce"
        )
        pages["text", window] = open_page(context, text_server)
        context.route("**/v1/models", lambda route: route.fulfill(json=models))
        pages["chat", window] = page = open_page(context, server)
        page.select_option("#second", LONG_NAME)
    yield pages
    for page in pages.values():
        page.context.close()


def show_nothing(page: "Page") -> None:
    page.evaluate("state.generation?.controller.abort()")
    wait_for(page, "!state.generation")
    page.evaluate(EMPTY, json.dumps(STORED))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("kind", "show"),
    [
        *(("chat", show) for show in [show_nothing, *CHAT_STATES]),
        *(("text", show) for show in [show_nothing, *TEXT_STATES]),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_all_can_be_read_and_hit(windows, kind, show, window):
    page = windows[kind, window]
    page.bring_to_front()
    show_nothing(page)
    show(page)
    assert problems(page, window) == []
