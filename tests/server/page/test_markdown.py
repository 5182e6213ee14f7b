"""Markdown of an answer: it becomes elements, none of it is executed, and it renders quickly."""

import random

import pytest

from tests.server.page.browser import (
    ANSWER,
    RICH_MARKDOWN,
    ask,
    name_modules,
    open_conversation,
    stub_answer,
)

ATTACK = """\
Hello <script>window.ran = 1</script> <img src=x onerror="window.ran = 2">
<svg onload="window.ran = 3"></svg>

[press](javascript:window.ran=4) [data](data:text/html,<script>window.ran=5</script>)
[ok](https://example.org/"onmouseover="window.ran=6)

# <img src=x onerror="window.ran = 7">

| <script>window.ran = 8</script> | b |
|---|---|
| <iframe srcdoc="<script>parent.ran = 9</script>"></iframe> | `<b>` |

```html"onclick="window.ran=10
</code></pre><script>window.ran = 11</script>
```
"""
EXECUTABLE = ", ".join(
    [
        "script",
        "img",
        "iframe",
        "svg:not(.icon)",
        "[onerror]",
        "[onload]",
        "[onclick]",
        "[onmouseover]",
    ]
)
# Parts of which random texts are made.
PARTS = [
    *("word", " ", " ", "\n", "\n\n"),
    *("- ", "* ", "1. ", "  ", "```", "```py\n", "~~~", "# ", "> "),
    *("|", "---", "|-|-|\n", "**", "*", "_", "`"),
    *("[a](https://b.c)", "[", "](", "<b>"),
]
NUM_TEXTS = 400
RENDER_IN_PARTS = """([texts, cuts]) => texts.filter((text, i) => {
    const [parts, whole] = [document.createElement("div"), document.createElement("div")];
    const render = incrementalRenderer(parts);
    for (const cut of [...cuts[i], text.length]) render(text.slice(0, cut));
    incrementalRenderer(whole)(text);
    return parts.innerHTML !== whole.innerHTML;
})"""
RENDER_TIME = """text => {
    const started = performance.now();
    incrementalRenderer(document.createElement("div"))(text);
    return performance.now() - started;
}"""
LONG = 100_000
# Time in the square of the length would be more than 30 seconds; less than 0.1 is normal.
MAX_RENDER_MS = 5000


@pytest.mark.parametrize("streamed", [True, False])
def test_nothing_in_an_answer_is_executed(page, streamed):
    if streamed:
        stub_answer(page, ATTACK)
        ask(page, "Attack me <img src=x onerror='window.ran = 12'>")
    else:
        open_conversation(page, "attack", "<script>window.ran = 12</script>", ATTACK)
    page.wait_for_selector(ANSWER)
    assert page.locator(f"#log :is({EXECUTABLE})").count() == 0
    links = page.evaluate(
        "[...document.querySelectorAll('#log a')].map(a => [a.protocol, a.rel, a.target])"
    )
    assert all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)
    text = page.inner_text(ANSWER)
    assert "<script>window.ran = 1</script>" in text
    assert "[press](javascript:window.ran=4)" in text
    assert "<script>window.ran = 11</script>" in text
    assert page.evaluate("window.ran") is None


def test_markdown_becomes_elements(page):
    open_conversation(page, "rich", "question", RICH_MARKDOWN)
    tags = page.evaluate(
        "[...document.querySelectorAll('.markdown *')].map(node => node.tagName.toLowerCase())"
    )
    expected = "h3 em code a strong ol ul li pre blockquote table th td"
    assert set(expected.split()) <= set(tags)
    assert "snake_case_name" in page.inner_text(ANSWER)
    assert page.inner_text(".code span") == "python"
    assert page.inner_text(".code code").startswith("print(")
    assert page.locator(".markdown li ul li strong").count() == 1


def test_a_streamed_answer_looks_like_a_complete_one(page):
    """Only the last blocks are rendered again when text arrives."""
    draw = random.Random(0)
    texts = []
    cuts = []
    for _ in range(NUM_TEXTS):
        text = "".join(draw.choice(PARTS) for _ in range(draw.randint(1, 60)))
        num_cuts = min(len(text), draw.randint(1, 30))
        texts.append(text)
        cuts.append(sorted(draw.sample(range(len(text) + 1), num_cuts)))
    assert page.evaluate(RENDER_IN_PARTS, [texts, cuts]) == []


@pytest.fixture(scope="module")
def render_time(chromium, server):
    """A function that measures how many milliseconds a text takes; all calls share one page."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    name_modules(page)
    yield lambda text: page.evaluate(RENDER_TIME, text)
    context.close()


@pytest.mark.parametrize(
    "unit",
    [
        *("word ", "\n\nword", "[", "*a ", "**", "**b ", "_a_ ", "`", "``a"),
        *("- a\n", "> ", ">", "|-", "a|b\n-|-\n", "```\n", "# ", "\t", "-   "),
    ],
)
def test_long_answers_render_in_linear_time(render_time, unit):
    assert render_time(unit * (LONG // len(unit))) < MAX_RENDER_MS
