"""The browser's storage: two tabs keep each other's work, and the page works without storage."""

import json

import pytest

from tests.server.page.browser import (
    CHAT_ROUTE,
    NOTE,
    ask,
    choose_file,
    clear_expected,
    export_of,
    fulfill_error,
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
        """['localStorage', 'sessionStorage'].forEach(name => Object.defineProperty(window, name, {
            get() { throw new DOMException('off', 'SecurityError'); },
        }))""",
    ],
    ids=["full", "disabled"],
)
def test_the_page_works_without_storage(context, server, errors, break_storage):
    context.add_init_script(break_storage)
    page = open_page(context, server)
    page.route(CHAT_ROUTE, lambda route: fulfill_error(route, 400, "not like this"))
    ask(page, "refused")
    assert not messages(page) and page.input_value("#message") == "refused"
    clear_expected(errors, "400")
    page.unroute(CHAT_ROUTE)
    stub_answer(page, "An answer.")
    ask(page, "one")
    assert "lost when you reload" in page.inner_text("#unstored")
    page.click("#new")
    ask(page, "two")
    page.click("#list >> text=one")
    wait_for(page, f"{FIRST_MESSAGE} === 'one'")
    assert len(messages(page)) == 2 and page.locator("#list a").count() == 2


def damaged_documents() -> list[dict]:
    """Each has one thing that would break the page that shows or lists it."""
    good = {"kind": "chat", "touched": 2, "system": "", "messages": []}
    texts = {"kind": "text", "touched": 2, "text": "a", "marks": []}
    answer = {"role": "assistant", "content": "a"}
    details = [
        *({"tokenList": tokens} for tokens in ("abc", [[1]], [["a", 0]], [["a", 0, [[1, 0]]]])),
        *({"model": {}}, {"end": 1}, {"tokens": "many"}, {"seconds": []}, {"beside": True}),
        *({"before": [{"content": "a", "tokenList": "abc"}]}, {"after": [{}]}),
    ]
    return [
        *({**good, "messages": [answer | detail]} for detail in details),
        *({**good, "touched": touched} for touched in ("x", None)),
        {**good, "title": 1},
        {name: value for name, value in good.items() if name != "kind"},
        {name: value for name, value in texts.items() if name != "kind"},
        *({**texts, **bad} for bad in ({"tokenList": "abc"}, {"unseen": "x"}, {"marks": [[1]]})),
    ]


def test_damaged_documents_are_none(page):
    for document in damaged_documents():
        assert not page.evaluate("document => isDocument(document)", document), document


def test_an_end_of_an_unknown_name_is_not_shown(page):
    open_conversation(page, "one", "question", "answer")
    page.evaluate("state.document.messages[1].end = 'constructor'; view.show()")
    assert page.inner_text(NOTE).strip() == ""


# From now on, keys of this name find no room.
FILL_STORAGE = """name => {
    const { setItem } = Storage.prototype;
    Storage.prototype.setItem = function (key, value) {
        if (key.includes(name)) throw new DOMException("full", "QuotaExceededError");
        setItem.call(this, key, value);
    };
    window.makeRoom = () => { Storage.prototype.setItem = setItem; };
}"""


def test_the_page_says_so_as_long_as_anything_is_not_stored(page):
    stub_answer(page, "An answer.")
    page.evaluate(FILL_STORAGE, "document")
    assert not page.is_visible("#unstored")
    for question in ("one", "two"):
        ask(page, question)
        assert "lost when you reload" in page.inner_text("#unstored")
    # Where something is removed, there is room for the rest.
    page.evaluate("window.makeRoom()")
    page.fill("#message", "a")
    page.fill("#message", "")
    page.wait_for_selector("#unstored", state="hidden")
    reload(page)
    assert messages(page) == ["one", "An answer.", "two", "An answer."]


def test_what_another_tab_has_stored_since_is_not_overwritten(page, context, server):
    stub_answer(page, "An answer.")
    ask(page, "question")
    page.evaluate(FILL_STORAGE, "document")
    page.evaluate("doc => { state.document.title = 'mine'; save(state.document); }")
    other = open_page(context, server)
    other.click("#list >> text=question")
    other.evaluate("state.document.title = 'newer'; save(state.document);")
    page.bring_to_front()
    page.evaluate("window.makeRoom()")
    page.fill("#message", "a")
    page.fill("#message", "")
    assert page.evaluate("localStorage[PREFIX + state.document.id].includes('newer')")
    assert page.is_visible("#unstored")


def test_an_import_says_what_has_no_room(page):
    page.evaluate(FILL_STORAGE, "document")
    document = {"kind": "chat", "touched": 1, "system": "", "messages": []}
    choose_file(page, export_of(document, document))
    page.wait_for_selector("#toast >> text=Imported 2 conversations")
    assert "no room for 2" in page.inner_text("#toast")
    assert page.is_visible("#unstored") and page.evaluate(NUM_ENTRIES) == 2


def test_damaged_entries_in_the_storage_are_ignored(page):
    damaged = [
        "",
        "{",
        "null",
        "[]",
        '{"kind": "chat"}',
        '{"kind": "chat", "system": "", "messages": [{"role": "x"}]}',
        '{"kind": "chat", "system": "", "messages": [], "replaced": [{"role": "x"}]}',
        json.dumps(damaged_documents()[0]),
    ]
    store = """text => ['document.bad', 'settings', 'theme'].forEach(
        name => localStorage.setItem('minigpt.' + name, text))"""
    for text in damaged:
        page.evaluate(store, text)
        open_conversation(page, "good", "question", "answer")
        assert page.inner_text("#list") == "question"
        assert messages(page) == ["question", "answer"]
