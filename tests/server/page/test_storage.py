"""The browser's storage: two tabs keep each other's work, and the page works without storage."""

import pytest

from tests.server.page.browser import (
    ask,
    messages,
    open_conversation,
    open_page,
    reload,
    send,
    set_settings,
    stub_answer,
    stub_server,
    wait_for,
    wait_until_finished,
)

FIRST_MESSAGE = "state.document.messages[0]?.content"
NUM_MESSAGES = "state.document.messages.length"
NUM_ENTRIES = "document.querySelectorAll('#list a').length"


@pytest.fixture
def tabs(page, context, server):
    """Two tabs, each with a conversation of its own, which both list."""
    set_settings(page, max_tokens=4)
    ask(page, "from one")
    other = open_page(context, server)
    ask(other, "from the other")
    for tab in (page, other):
        wait_for(tab, f"{NUM_ENTRIES} === 2")
    return page, other


def test_a_conversation_in_two_tabs_is_updated_or_kept_twice(tabs):
    page, other = tabs
    other.click("#list >> text=from one")
    wait_for(other, f"{FIRST_MESSAGE} === 'from one'")
    # An idle tab shows what the other one adds. In the background a tab is very slow.
    page.bring_to_front()
    ask(page, "again")
    wait_for(other, f"{NUM_MESSAGES} === 4")
    # A tab that is generating keeps its version under a new name.
    stub_server(other)
    send(other, "never answered")
    other.wait_for_selector("#stop")
    wait_for(page, f"{NUM_MESSAGES} === 6")
    page.click(".message:first-child [aria-label=Delete]")
    # A browser passes what one tab stores to the other ones a little later.
    wait_for(other, "load(state.document.id).messages.length === 5")
    other.keyboard.press("Escape")
    wait_until_finished(other)
    wait_for(page, f"{NUM_ENTRIES} === 3")
    assert len(messages(page)) == 5
    assert messages(other)[-1] == "never answered" and page.url != other.url


def test_a_tab_does_not_restore_what_another_tab_deletes(tabs):
    page, other = tabs
    page.bring_to_front()
    page.click("#list >> text=from the other")
    wait_for(page, f"{FIRST_MESSAGE} === 'from the other'")
    stub_server(other)
    send(other, "never answered")
    other.wait_for_selector("#stop")
    page.click("#delete-all")
    page.click("#confirm-yes")
    wait_for(other, f"!{NUM_MESSAGES}")
    reload(other)
    wait_until_finished(other)
    assert "No conversations yet" in other.inner_text("#list")


@pytest.mark.parametrize(
    "break_storage",
    [
        """Storage.prototype.setItem = () => {
            throw new DOMException('full', 'QuotaExceededError');
        }""",
        """Object.defineProperty(window, 'localStorage', {
            get() { throw new DOMException('off', 'SecurityError'); },
        })""",
    ],
    ids=["full", "disabled"],
)
def test_the_page_works_without_storage(context, server, break_storage):
    context.add_init_script(break_storage)
    page = open_page(context, server)
    stub_answer(page, "An answer.")
    ask(page, "one")
    assert "lost when you reload" in page.inner_text("#toast")
    page.click("#new")
    ask(page, "two")
    page.click("#list >> text=one")
    wait_for(page, f"{FIRST_MESSAGE} === 'one'")
    assert len(messages(page)) == 2 and page.locator("#list a").count() == 2


def test_damaged_entries_in_the_storage_are_ignored(page):
    damaged = [
        "",
        "{",
        "null",
        "[]",
        '{"kind": "chat"}',
        '{"kind": "chat", "system": "", "messages": [{"role": "x"}]}',
        '{"kind": "chat", "system": "", "messages": [], "replaced": [{"role": "x"}]}',
    ]
    store = """text => ['document.bad', 'settings', 'theme'].forEach(
        name => localStorage.setItem('minigpt.' + name, text))"""
    for text in damaged:
        page.evaluate(store, text)
        open_conversation(page, "good", "question", "answer")
        assert page.inner_text("#list") == "question"
        assert messages(page) == ["question", "answer"]
