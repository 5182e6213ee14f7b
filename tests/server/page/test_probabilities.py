"""Probabilities of tokens, for the pointer and for the keyboard, and the colours of code."""

import json

from tests.server.page.browser import (
    ANSWER,
    ask,
    messages,
    open_conversation,
    reload,
    sent_bodies,
    set_settings,
    wait_for,
)

TIP = "#tip:popover-open"
TOKEN_TEXTS = "[...document.querySelectorAll('.token')].map(token => token.textContent)"
FOCUSED_TOKEN = "[...document.querySelectorAll('.token')].indexOf(document.activeElement)"
# A language, code in it, and its pieces by colour.
CODE = [
    (
        "python",
        "def f(x): # note\n    return 'a\\'b' + 1.5",
        {
            "comment": ["# note"],
            "keyword": ["def", "return"],
            "string": ["'a\\'b'"],
            "number": ["1.5"],
        },
    ),
    ("py", '"""a\nb"""\nx = 0x1f', {"string": ['"""a\nb"""'], "number": ["0x1f"]}),
    (
        "js",
        "const a = `b\nc`; // d\n/* e",
        {"keyword": ["const"], "string": ["`b\nc`"], "comment": ["// d", "/* e"]},
    ),
    (
        "json",
        '{"a": [true, -1]}',
        {"string": ['"a"'], "keyword": ["true"], "number": ["1"]},
    ),
    (
        "bash",
        'for f in "$@"; do echo ${#f} # all\ndone',
        {"keyword": ["for", "in", "do", "done"], "string": ['"$@"'], "comment": ["# all"]},
    ),
    ("text", "for x in 1", {}),
    (
        "unknown",
        "fn f() { return 1 } // c",
        {"keyword": ["fn", "return"], "number": ["1"], "comment": ["// c"]},
    ),
]
SELECTION = """() => {
    const code = document.querySelector(".code code");
    getSelection().selectAllChildren(code.querySelector(".comment"));
    return getSelection().toString();
}"""


def choose_probabilities(page) -> None:
    page.click("#open-settings")
    page.check("#probabilities")
    page.click("#close-settings")


def test_tokens_of_an_answer_show_their_alternatives(page):
    bodies = sent_bodies(page)
    set_settings(page, max_tokens=8)
    ask(page, "without")
    assert "logprobs" not in bodies[0] and not page.locator(".token").count()
    choose_probabilities(page)
    page.click("#new")
    ask(page, "with")
    assert bodies[1]["logprobs"] is True and bodies[1]["top_logprobs"] == 5
    texts = page.evaluate(TOKEN_TEXTS)
    assert "".join(texts) == messages(page)[1] and len(texts) > 1
    page.hover(".token >> nth=1")
    assert len(page.inner_text(TIP).splitlines()) >= 5 and "%" in page.inner_text(TIP)
    page.mouse.move(640, 600)
    page.wait_for_selector(TIP, state="hidden")
    # By keyboard: one stop for Tab, arrow keys move.
    assert page.locator(".token[tabindex='0']").count() == 1
    page.focus(".token[tabindex='0']")
    page.wait_for_selector(TIP)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED_TOKEN) == 1
    assert json.dumps(texts[1], ensure_ascii=False) in page.inner_text(f"{TIP} .chosen")
    page.keyboard.press("End")
    assert page.evaluate(FOCUSED_TOKEN) == len(texts) - 1
    # Tab comes back to where the arrow keys have been.
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED_TOKEN) == len(texts) - 1
    page.keyboard.press("Escape")
    page.wait_for_selector(TIP, state="hidden")
    reload(page)
    assert page.evaluate(TOKEN_TEXTS) == texts
    page.click("[aria-label='Show as text']")
    assert not page.locator(".token").count() and page.inner_text(ANSWER).strip()
    page.click("[aria-label='Show token probabilities']")
    assert page.evaluate(TOKEN_TEXTS) == texts


def test_tokens_of_a_text_show_their_alternatives(text_page):
    page = text_page
    set_settings(page, max_tokens=8)
    choose_probabilities(page)
    page.fill("#text", "Once")
    page.click("#generate")
    page.wait_for_selector(".token")
    assert "Once" + "".join(page.evaluate(TOKEN_TEXTS)) == page.input_value("#text")
    page.hover(".token >> nth=0")
    assert len(page.inner_text(TIP).splitlines()) >= 5
    page.focus("#text")
    page.keyboard.press("End")
    page.keyboard.type("!")
    assert not page.locator(".token").count()


def test_code_has_colours_and_keeps_its_text(page):
    for language, code, expected in CODE:
        pieces = page.evaluate("([code, name]) => piecesOfCode(code, name)", [code, language])
        assert "".join(text for _, text in pieces) == code
        found = {kind: [text for name, text in pieces if name == kind] for kind, _ in pieces}
        found.pop("", None)
        assert found == expected, code


def test_a_selection_in_code_stays_while_more_arrives(page):
    open_conversation(page, "code", "question", "```python\n# note\nx = 1\n```")
    assert page.evaluate(SELECTION) == "# note"
    show = "text => showCode(document.querySelector('.code code'), text, 'python')"
    page.evaluate(show, "# note\nx = 12\ny = 'z'")
    assert page.evaluate("getSelection().toString()") == "# note"
    wait_for(page, "document.querySelector('.code code').textContent.endsWith(\"'z'\")")
