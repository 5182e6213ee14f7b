"""Versions of an answer, and two models that answer beside each other."""

import json

import pytest

from tests.server.page.browser import (
    ANSWER,
    CHAT_ROUTE,
    ask,
    clear_expected,
    contents,
    fulfill_answer,
    fulfill_error,
    messages,
    open_conversation,
    refuse_as_too_long,
    reload,
    send,
    sent_bodies,
    set_settings,
    stub_answer,
    wait_until_finished,
)

OTHER = "other-chat"


def retry(page) -> None:
    page.click("[aria-label=Retry]")
    wait_until_finished(page)


def test_retry_keeps_the_versions_and_the_chosen_one_is_sent_on(page):
    set_settings(page, max_tokens=8)
    ask(page, "first")
    first = messages(page)[1]
    retry(page)
    second = messages(page)[1]
    retry(page)
    assert page.inner_text(".versions") == "3/3"
    assert page.is_disabled("[aria-label='Next version']")
    # By keyboard: the focus stays on the button, or goes to the other one at the end.
    page.focus("[aria-label='Previous version']")
    page.keyboard.press("Enter")
    assert messages(page)[1] == second
    page.keyboard.press("Enter")
    assert messages(page)[1] == first and page.inner_text(".versions") == "1/3"
    assert page.inner_text(ANSWER).strip() == first.strip()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Next version"
    reload(page)
    page.click("[aria-label='Next version']")
    assert messages(page)[1] == second
    bodies = sent_bodies(page)
    ask(page, "next")
    assert [m["content"] for m in bodies[0]["messages"]] == ["first", second, "next"]


def test_a_version_that_failed_or_was_empty_is_not_kept(page):
    open_conversation(page, "kept", "question", "answer")
    page.route(CHAT_ROUTE, lambda route: None)
    page.click("[aria-label=Retry]")
    page.wait_for_selector("#stop")
    page.keyboard.press("Escape")
    wait_until_finished(page)
    assert messages(page) == ["question", "answer"] and not page.locator(".versions").count()


def test_what_is_stored_during_a_retry_has_the_earlier_version(page):
    """The browser may be killed at any time."""
    open_conversation(page, "kept", "question", "answer")
    page.route(CHAT_ROUTE, lambda route: None)
    page.click("[aria-label=Retry]")
    page.wait_for_selector("#stop")
    stored = page.evaluate("load('kept').messages")
    assert stored[1]["content"] == "" and stored[1]["before"][0]["content"] == "answer"
    page.keyboard.press("Escape")
    wait_until_finished(page)
    assert messages(page) == ["question", "answer"]


@pytest.fixture
def two_models(page, server):
    """The server's model under a second name, by which it answers too."""
    models = json.loads(server.request("/v1/models").body)
    [model] = models["data"]
    models["data"].append(model | {"id": OTHER, "context": 128})

    def answer(route) -> None:
        body = route.request.post_data_json
        route.continue_(post_data=json.dumps(body | {"model": model["id"]}))

    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.route(CHAT_ROUTE, answer)
    set_settings(page, max_tokens=8)
    reload(page)
    return page


def test_another_model_can_be_chosen(two_models):
    page = two_models
    bodies = sent_bodies(page)
    assert page.input_value("#model") == "small-chat" and page.input_value("#second") == ""
    page.select_option("#model", OTHER)
    assert "128 tokens" in page.inner_text("#facts")
    ask(page, "hello")
    assert bodies[0]["model"] == OTHER and OTHER in page.inner_text(".message.assistant .foot")
    reload(page)
    assert page.input_value("#model") == OTHER


def test_two_models_answer_beside_each_other_and_one_is_chosen(two_models):
    page = two_models
    page.select_option("#second", OTHER)
    facts = "small-chat: Chat, context of 256 tokens · other-chat: Chat, context of 128 tokens"
    assert page.inner_text("#facts") == facts
    assert page.inner_text("#models").split("\n")[0] == "Model"
    bodies = sent_bodies(page)
    ask(page, "hello")
    assert [body["model"] for body in bodies] == ["small-chat", OTHER]
    assert page.locator(".columns h3").all_inner_texts() == ["small-chat", OTHER]
    left, right = page.locator(".columns section").all()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    page.set_viewport_size({"width": 390, "height": 844})
    assert left.bounding_box()["x"] == right.bounding_box()["x"]
    page.set_viewport_size({"width": 1280, "height": 800})
    reload(page)
    chosen = page.locator(f"{ANSWER} >> nth=1").inner_text()
    page.focus(f"[aria-label='Go on with this answer of {OTHER}']")
    page.keyboard.press("Enter")
    assert not page.locator(".columns").count() and page.inner_text(".versions") == "2/2"
    assert messages(page)[1].strip() == chosen.strip()
    assert OTHER in page.inner_text(".message.assistant .foot")
    # Whoever asks on without a choice goes on with the first answer.
    ask(page, "again")
    first = messages(page)[3]
    page.select_option("#second", "")
    ask(page, "once more")
    assert not page.locator(".columns").count() and messages(page)[3] == first
    assert bodies[-1]["messages"][3]["content"] == first


def test_what_is_opened_during_an_answer_has_its_buttons(two_models):
    page = two_models
    page.select_option("#second", OTHER)
    ask(page, "first")
    page.click("#new")
    page.route(CHAT_ROUTE, lambda route: None)
    send(page, "never answered")
    page.wait_for_selector("#stop")
    page.click("#list >> text=first")
    wait_until_finished(page)
    page.wait_for_selector(f"[aria-label='Go on with this answer of {OTHER}']")


def test_a_model_of_another_kind_ends_the_answer(page, server):
    models = json.loads(server.request("/v1/models").body)
    models["data"].append(models["data"][0] | {"id": "base", "chat": False})
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    reload(page)
    page.route(CHAT_ROUTE, lambda route: None)
    send(page, "never answered")
    page.wait_for_selector("#stop")
    page.select_option("#model", "base")
    page.wait_for_selector("#generate")
    page.select_option("#model", "small-chat")
    page.wait_for_selector("#list >> text=never answered")
    assert page.is_visible("#message") and page.input_value("#message") == ""


def test_a_retry_replaces_only_the_last_answer(page):
    open_conversation(page, "kept", "question", "answer", "deleted", "another")
    page.click("[aria-label=Delete] >> nth=2")
    stub_answer(page, "new")
    bodies = sent_bodies(page)
    retry(page)
    assert messages(page) == ["question", "answer", "new"]
    assert page.locator(".versions").all_inner_texts() == ["2/2"]
    assert contents(bodies[0]) == ["question"]


def test_what_one_of_two_models_cannot_take_is_forgotten(two_models, errors):
    page = two_models

    def answer(route) -> None:
        body = route.request.post_data_json
        if body["model"] == OTHER and len(body["messages"]) > 1:
            refuse_as_too_long(route)
        else:
            fulfill_answer(route, f"by {body['model']}")

    page.route(CHAT_ROUTE, answer)
    open_conversation(page, "kept", "one", "two")
    page.select_option("#second", OTHER)
    bodies = sent_bodies(page)
    ask(page, "three")
    assert messages(page) == ["one", "two", "three", "by small-chat"]
    # The context of the model that refused.
    assert f"128 tokens that {OTHER} has" in page.inner_text("#failure b")
    # What is typed for later is not what is asked again.
    page.fill("#message", "typed for later")
    page.click("#failure >> text=Forget the oldest turns")
    page.wait_for_selector(".columns")
    wait_until_finished(page)
    assert [contents(body) for body in bodies[2:]] == [["three"]] * 2
    assert page.locator(".columns .markdown").all_inner_texts() == ["by small-chat", f"by {OTHER}"]
    assert page.input_value("#message") == "typed for later"
    assert not page.locator(".notice").count()
    clear_expected(errors, "400")


def test_a_failure_is_not_shown_in_another_conversation(two_models, errors):
    page = two_models

    def answer(route) -> None:
        if route.request.post_data_json["model"] == OTHER:
            fulfill_error(route, 503, "the server is stopping")

    page.route(CHAT_ROUTE, answer)
    page.select_option("#second", OTHER)
    with page.expect_response(CHAT_ROUTE) as response:
        send(page, "question")
    response.value.finished()
    page.click("#new")
    wait_until_finished(page)
    page.evaluate("view.show()")
    assert not page.locator(".notice").count() and messages(page) == []
    clear_expected(errors, "503")


def test_the_used_context_is_that_of_the_model_that_answered(two_models):
    page = two_models
    open_conversation(page, "kept", "question", "answer")
    page.evaluate(
        """model => {
            Object.assign(state.document.messages[1], { model, total: 120 });
            view.show();
        }""",
        OTHER,
    )
    assert page.inner_text("#usage") == "120 of 128 tokens of context used"
