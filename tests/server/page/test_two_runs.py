"""A real server of two runs: the page offers both, and each answers what it was trained on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.page.browser import ANSWER, ask, messages, open_page, reload, set_settings
from tests.server.serving import ServerProcess, server_process

# Its server compiles for longer than the page's other tests take together.
pytestmark = pytest.mark.campaign

GREEDY = {"temperature": 0, "max_tokens": 8}
QUESTION = "What is 7 and 7?"
# The fields that would be wider if they could.
CUT_NAMES = """[...document.querySelectorAll("#models select")].filter((node) => {
    const width = node.offsetWidth;
    Object.assign(node.style, { width: "max-content", maxWidth: "none" });
    const cut = node.offsetWidth > width;
    Object.assign(node.style, { width: "", maxWidth: "" });
    return cut;
}).map(node => node.id)"""


@pytest.fixture(scope="module")
def two_runs(finetuned_run: Path, chat_run: Path, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server of a run that was trained on questions, and of one without data."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with server_process(finetuned_run, log, "--run", str(chat_run)) as server:
        yield server
        assert "Traceback" not in log.read_text()


@pytest.fixture
def page(context, two_runs):
    page = open_page(context, two_runs)
    set_settings(page, **GREEDY)
    return page


def answer_of(server: ServerProcess, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], **GREEDY}
    reply = json.loads(server.request("/v1/chat/completions", body).body)
    return reply["choices"][0]["message"]["content"]


def test_an_empty_page_offers_questions_from_the_runs_own_data(page, two_runs):
    models = json.loads(two_runs.request("/v1/models").body)["data"]
    questions = models[0]["examples"]
    assert len(questions) == 3
    assert page.locator(".examples button").all_inner_texts() == questions
    # Another model has other questions, this one none.
    page.select_option("#model", "small-chat")
    assert not page.locator(".examples").count()
    assert page.inner_text(".empty").count("small-chat") == 1
    page.select_option("#model", "finetuned")
    page.click(".examples button >> nth=1")
    page.wait_for_selector(f"{ANSWER}, #failure .notice")
    page.wait_for_selector("#stop", state="hidden")
    assert messages(page) == [questions[1], answer_of(two_runs, "finetuned", questions[1])]


def test_two_runs_answer_beside_each_other(page, two_runs):
    expected = [answer_of(two_runs, model, QUESTION) for model in ("finetuned", "small-chat")]
    assert expected[0] != expected[1]
    options = page.locator("#model option").all_inner_texts()
    assert options == ["finetuned", "small-chat"]
    page.select_option("#second", "small-chat")
    ask(page, QUESTION)
    assert page.locator(".columns h3").all_inner_texts() == options
    shown = page.locator(".columns .markdown").all_inner_texts()
    assert [text.split() for text in shown] == [text.split() for text in expected]
    page.locator("[aria-label='Go on with this answer of small-chat']").click()
    assert messages(page) == [QUESTION, expected[1]]
    # Alone, and the other way round.
    page.select_option("#model", "small-chat")
    page.select_option("#second", "")
    reload(page)
    page.click("#new")
    ask(page, QUESTION)
    assert messages(page) == [QUESTION, expected[1]]


def test_a_phone_shows_the_whole_names(page):
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate(CUT_NAMES) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320
