"""What is written and not sent is kept: in each tab, before the server answers, and elsewhere."""

from tests.server.page.browser import (
    ask,
    clear_expected,
    name_modules,
    open_conversation,
    open_page,
    reload,
    set_settings,
    stub_answer,
    wait_for,
    wait_until_connected,
)

FIELD = "document.getElementById('message').value"
MODELS_ROUTE = "**/v1/models"


def hold_models(page) -> list:
    """From now on the server does not answer what its models are; the requests are returned."""
    routes = []
    page.route(MODELS_ROUTE, lambda route: routes.append(route))
    return routes


def test_two_tabs_have_drafts_of_their_own(page, context, server):
    page.fill("#message", "of one tab")
    other = open_page(context, server)
    assert other.input_value("#message") == ""
    stub_answer(other, "An answer.")
    ask(other, "of the other tab")
    reload(page)
    assert page.input_value("#message") == "of one tab"


def test_what_is_written_in_a_conversation_that_another_tab_deletes_is_kept(page, context, server):
    for name in ("three", "two", "one"):
        open_conversation(page, name, "question", "answer")
    other = open_page(context, server)
    page.bring_to_front()
    page.fill("#message", "being written")
    other.click("#delete-all")
    other.click("#confirm-yes")
    page.wait_for_selector("#list >> text=No conversations yet")
    wait_for(page, f"location.hash === '' && {FIELD} === 'being written'")
    reload(page)
    assert page.input_value("#message") == "being written"


def test_a_draft_outlasts_an_example(page):
    """An example is asked while something else is in the field."""
    stub_answer(page, "An answer.")
    page.fill("#message", "a draft")
    page.evaluate("ask('an example')")
    wait_for(page, "state.document.messages.length === 2 && !state.generation")
    assert page.input_value("#message") == "a draft"
    reload(page)
    assert page.input_value("#message") == "a draft"
    page.click("#new")
    wait_for(page, f"{FIELD} === ''")


def test_what_is_written_before_the_server_answers_is_kept(page):
    open_conversation(page, "one", "question", "answer")
    page.fill("#message", "begun")
    routes = hold_models(page)
    page.reload()
    # The conversation and its draft are there at once.
    page.wait_for_selector(".message.assistant")
    page.wait_for_selector("#list >> text=question")
    assert page.input_value("#message") == "begun" and page.is_disabled("#send")
    page.locator("#message").press_sequentially(", and more")
    routes[0].continue_()
    page.unroute(MODELS_ROUTE)
    wait_until_connected(page)
    assert page.input_value("#message") == "begun, and more"
    reload(page)
    assert page.input_value("#message") == "begun, and more"


def test_texts_can_be_read_without_the_server(text_page, errors):
    page = text_page
    page.fill("#text", "Once upon a time")
    page.wait_for_selector("#list >> text=Once upon")
    page.route(MODELS_ROUTE, lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#failure >> text=cannot be reached")
    assert page.input_value("#text") == "Once upon a time"
    page.click("#new")
    wait_for(page, "document.getElementById('text').value === ''")
    page.click("#list >> text=Once upon")
    wait_for(page, "document.getElementById('text').value === 'Once upon a time'")
    # And the button that tries again stays.
    page.unroute(MODELS_ROUTE)
    page.click("#failure >> text=Try again")
    wait_for(page, "!document.getElementById('generate').disabled")
    assert page.input_value("#text") == "Once upon a time"
    clear_expected(errors, "ERR_FAILED")


def test_nothing_can_be_asked_without_the_server(page, errors):
    """Buttons that need a model are not there."""
    open_conversation(page, "one", "question", "answer")
    page.route(MODELS_ROUTE, lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#failure >> text=cannot be reached")
    name_modules(page)
    buttons = "[...document.querySelectorAll('.foot button')].map(button => button.ariaLabel)"
    assert page.evaluate(buttons) == ["Copy", "Delete", "Copy", "Delete"]
    clear_expected(errors, "ERR_FAILED")


def test_the_system_prompt_of_a_conversation_that_has_not_begun_is_kept(page, context, server):
    stub_answer(page, "An answer.")
    set_settings(page, system="The default.")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.click("#close-settings")
    reload(page)
    assert page.inner_text(".system") == "System prompt: Be brief."
    assert open_page(context, server).inner_text(".system") == "System prompt: The default."
    page.bring_to_front()
    ask(page, "question")
    assert page.evaluate("state.document.system") == "Be brief."
    # It was that of one conversation.
    page.click("#new")
    page.wait_for_selector(".system >> text=The default.")
