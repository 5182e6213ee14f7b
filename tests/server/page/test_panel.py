"""The side panel: titles, export and import, and drafts, which survive a reload."""

import json
from pathlib import Path

from tests.server.page.browser import (
    ask,
    choose_file,
    export_of,
    messages,
    open_conversation,
    open_page,
    reload,
    set_settings,
    wait_for,
    wait_until_finished,
)

FOCUSED = "document.activeElement.textContent"
TITLE = "A title that is much too long for the panel of this page, so that it is cut at its end"
# Messages as this page stored them before it had versions, titles and drafts.
OLD = [
    {"role": "user", "content": "What does len do?"},
    {"role": "assistant", "content": "It counts.", "end": "stop", "tokens": 3, "seconds": 0.1},
]


def open_options(page) -> None:
    """By keyboard."""
    page.focus("#list button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#options", state="visible")


def exported(page, choose) -> str:
    """The content of the file that the page offers after `choose()`."""
    with page.expect_download() as download:
        choose()
    return Path(download.value.path()).read_text()


def test_rename_by_keyboard(page):
    open_conversation(page, "one", "question", "answer")
    open_options(page)
    assert page.evaluate(FOCUSED) == "Rename"
    page.keyboard.press("Enter")
    page.wait_for_selector("#rename[open]")
    page.keyboard.type("My title")
    page.keyboard.press("Enter")
    wait_for(page, "document.querySelector('#list a').textContent === 'My title'")
    assert page.evaluate(FOCUSED) == "My title" and page.title().startswith("My title")
    reload(page)
    assert page.inner_text("#list a") == "My title"
    open_options(page)
    page.keyboard.press("ArrowUp")
    assert page.evaluate(FOCUSED) == "Delete"
    page.keyboard.press("Escape")
    page.wait_for_selector("#options", state="hidden")
    assert page.evaluate("document.activeElement.title") == "Options"
    # Without a title, a conversation is called by its question again.
    open_options(page)
    page.keyboard.press("Enter")
    page.fill("#new-title", " ")
    page.click("#rename-yes")
    wait_for(page, "document.querySelector('#list a').textContent === 'question'")


def test_titles_use_the_whole_row(page):
    open_conversation(page, "one", TITLE, "answer")
    page.mouse.move(700, 400)
    row, link = page.locator("#list li").bounding_box(), page.locator("#list a").bounding_box()
    assert link["width"] == row["width"]
    padding = "getComputedStyle(document.querySelector('#list a')).paddingRight"
    # Less than the width of the button, which is not shown.
    assert float(page.evaluate(padding).removesuffix("px")) < 20
    page.hover("#list li")
    wait_for(page, "getComputedStyle(document.querySelector('#list button')).opacity === '1'")


def test_export_and_import(page):
    set_settings(page, max_tokens=4)
    ask(page, "first question")
    page.click("[aria-label=Retry]")
    wait_until_finished(page)
    before = messages(page)
    open_options(page)
    one = exported(page, lambda: page.click("#options >> text=Export as JSON"))
    open_options(page)
    markdown = exported(page, lambda: page.click("#options >> text=Export as Markdown"))
    assert "## Question\n\nfirst question\n\n## Answer\n\n" + before[1].strip() in markdown
    page.click("#new")
    ask(page, "second question")
    everything = exported(page, lambda: page.click("#export-all"))
    assert len(json.loads(one)["documents"]) == 1
    assert len(json.loads(everything)["documents"]) == 2

    page.click("#delete-all")
    page.click("#confirm-yes")
    page.wait_for_selector("#list >> text=No conversations yet")
    choose_file(page, everything)
    wait_for(page, "document.querySelectorAll('#list a').length === 2")
    assert "Imported 2 conversations" in page.inner_text("#toast")
    page.click("#list >> text=first question")
    wait_for(page, "state.document.messages.length === 2")
    assert messages(page) == before and page.inner_text(".versions") == "2/2"
    # What is imported again is a second copy: nothing is replaced.
    choose_file(page, one)
    wait_for(page, "document.querySelectorAll('#list a').length === 3")


def test_a_file_that_is_no_export_changes_nothing(page):
    open_conversation(page, "kept", "question", "answer")
    good = {"kind": "chat", "system": "", "touched": 1, "messages": OLD}
    bad = good | {"messages": [{"role": "user", "content": 5}]}
    for content, reason in (
        *((text, "expected a JSON file") for text in ("", "{", "[]", "null", '{"format": "x"}')),
        (export_of(), "it has no documents"),
        (export_of(good, version=2), "a newer miniGPT-JAX wrote it (version 2, this page reads 1)"),
        (export_of(good, bad), "document 2 of 2 is damaged"),
        ("large", "it is larger than 50 MB"),
    ):
        if content == "large":
            page.evaluate("Object.defineProperty(File.prototype, 'size', { get: () => 5.1e7 })")
        page.evaluate("document.getElementById('toast').hidden = true")
        choose_file(page, content)
        page.wait_for_selector("#toast >> text=chosen.json was not imported")
        assert reason in page.inner_text("#toast") and page.inner_text("#list") == "question"


def test_an_import_says_what_the_list_does_not_show(page):
    chat = {"kind": "chat", "system": "", "touched": 1, "messages": OLD}
    text = {"kind": "text", "text": "Once", "touched": 1, "marks": []}
    for docs, expected in (
        ([chat, text], "Imported 2 documents. 1 is a text: it is listed when a completion model"),
        ([chat, text, text], "Imported 3 documents. 2 are texts: they are listed when"),
    ):
        choose_file(page, export_of(*docs))
        page.wait_for_selector(f"#toast >> text={expected}")


def test_conversations_of_before_are_read(page):
    document = {"kind": "chat", "revision": "r", "touched": 1, "system": "", "messages": OLD}
    page.evaluate(
        "stored => localStorage.setItem('minigpt.document.old', stored)", json.dumps(document)
    )
    page.goto(f"{page.url.partition('#')[0]}#old")
    reload(page)
    assert messages(page) == ["What does len do?", "It counts."]
    assert "3 tokens, 30 tokens/s" in page.inner_text(".message.assistant .foot")


def test_drafts_survive_a_reload_and_belong_to_their_conversation(page, context, server):
    open_conversation(page, "one", "question", "answer")
    page.fill("#message", "for one")
    page.click("#new")
    wait_for(page, "document.getElementById('message').value === ''")
    page.fill("#message", "for a new one")
    reload(page)
    assert page.input_value("#message") == "for a new one"
    page.click("#list a")
    wait_for(page, "document.getElementById('message').value === 'for one'")
    reload(page)
    assert page.input_value("#message") == "for one"
    # What is sent is no draft.
    set_settings(page, max_tokens=4)
    page.press("#message", "Enter")
    wait_until_finished(page)
    reload(page)
    assert page.input_value("#message") == ""
    page.click("#new")
    wait_for(page, "document.getElementById('message').value === 'for a new one'")
    # It is this tab's: another one begins with an empty field, and leaves this one alone.
    other = open_page(context, server)
    assert other.input_value("#message") == ""
    ask(other, "of the other tab")
    reload(page)
    assert page.input_value("#message") == "for a new one"


def test_new_conversations_begin_with_the_default_system_prompt(page):
    open_conversation(page, "old", "question", "answer")
    page.click("#open-settings")
    page.fill("#new-system", "Be brief.")
    page.press("#new-system", "Tab")
    page.click("#close-settings")
    assert not page.locator(".system").count()
    page.click("#new")
    page.wait_for_selector(".system >> text=Be brief.")
    # Resetting the sampling does not remove it.
    page.click("#open-settings")
    page.click("#reset-all")
    page.click("#close-settings")
    reload(page)
    assert page.evaluate("turnsOf(state.document)") == [{"role": "system", "content": "Be brief."}]
