"""The chat page does what it shows: a real browser on a real server, and nothing that a model writes is ever run."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import DEADLINE, Running, serving, until

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWER = ".message.assistant .markdown"
RICH = """# Head

A *first* `paragraph` with a [link](https://example.org/), **bold [inside](http://example.org)** and a snake_case_name.

1. one
2. two
   - deeper **still**

```python
print("a line that is far too long for the width of any phone, and must not make the page scroll sideways at all")
```

> quoted

| a | b |
|---|---|
| 1 | wide-wide-wide-wide-wide-wide-wide-wide-wide-wide-wide-wide |
"""
ATTACK = """Hello <script>window.ran = 1</script> <img src=x onerror="window.ran = 2"> <svg onload="window.ran = 3"></svg>

[press](javascript:window.ran=4) [data](data:text/html,<script>window.ran=5</script>) [ok](https://example.org/"onmouseover="window.ran=6)

# <img src=x onerror="window.ran = 7">

| <script>window.ran = 8</script> | b |
|---|---|
| <iframe srcdoc="<script>parent.ran = 9</script>"></iframe> | `<b>` |

```html"onclick="window.ran=10
</code></pre><script>window.ran = 11</script>
```
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What the browser complained of; a test that provokes a complaint takes it out."""
    return []


@pytest.fixture
def context(chromium, errors) -> Iterator["playwright.BrowserContext"]:
    """A browser that nobody used before. No error, refused script or dialog of a script may be left when the test ends."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    context.set_default_timeout(DEADLINE * 1000)
    context.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    yield context
    context.close()
    assert not errors


@pytest.fixture
def page(context, server) -> "playwright.Page":
    return visit(context, server)


@pytest.fixture(scope="module")
def text_server(text_run, tmp_path_factory) -> Iterator[Running]:
    with serving(text_run, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


def visit(
    context: "playwright.BrowserContext", server: Running, fragment: str = ""
) -> "playwright.Page":
    """The page, connected."""
    page = context.new_page()
    page.goto(f"{server.url}/{fragment}")
    connected(page)
    return page


def holds(page: "playwright.Page", expression: str) -> None:
    """Wait until it does. Playwright's own way would evaluate a string in the page, which the page's policy forbids."""
    until(lambda: page.evaluate(expression), lambda: expression)


def connected(page: "playwright.Page") -> None:
    holds(page, "document.getElementById('facts').textContent.includes('context')")


def settings(page: "playwright.Page", **values: float) -> None:
    """Set sampling controls; temperature 0 makes the small model write until its context is full."""
    page.evaluate(
        "given => localStorage.setItem('minigpt.settings', JSON.stringify(given))", values
    )


def store(page: "playwright.Page", name: str, *contents: str) -> None:
    """Put a conversation of questions and answers in turn where the page keeps them, and show it."""
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": content}
        for i, content in enumerate(contents)
    ]
    document = {
        "kind": "chat",
        "revision": "stored",
        "touched": 1,
        "system": "",
        "messages": messages,
    }
    page.evaluate(
        "([name, stored]) => localStorage.setItem('minigpt.document.' + name, stored)",
        [name, json.dumps(document)],
    )
    page.goto(page.url.partition("#")[0] + "#" + name)
    page.reload()
    connected(page)


def ask(page: "playwright.Page", words: str, *, wait: bool = True) -> None:
    page.fill("#message", words)
    page.press("#message", "Enter")
    if wait:
        finished(page)


def finished(page: "playwright.Page") -> None:
    page.wait_for_selector("#stop", state="hidden")


def said(page: "playwright.Page") -> list[str]:
    """Words of the conversation on the screen, as they were written."""
    return page.evaluate("state.document.messages.map(message => message.content)")


def answers_with(page: "playwright.Page", answer: str, **error: object) -> None:
    """From now on this answer comes for the server's, as a stream in one piece, or else an error status."""
    pieces = [
        {"choices": [{"delta": {"content": answer}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            **({"content_type": "text/event-stream", "body": body} | error)
        ),
    )


def takes_the_line(page: "playwright.Page") -> None:
    """From now on the test speaks for the server: `say(words)`, byte by byte, and `line.error(...)` when the connection is lost."""
    page.evaluate(
        """() => {
            window.realFetch = window.fetch;
            window.fetch = async (path, { signal }) => new Response(new ReadableStream({
                start(line) {
                    window.line = line;
                    signal.addEventListener("abort", () => line.error(signal.reason));
                },
            }));
            window.say = (words) => {
                const event = `data: ${JSON.stringify({ choices: [{ delta: { content: words }, text: words }] })}\\n\\n`;
                new TextEncoder().encode(event).forEach((byte) => window.line.enqueue(Uint8Array.of(byte)));
            };
        }"""
    )


def says(page: "playwright.Page", words: str, shown: str) -> None:
    """Say `words` as the server, and wait until `shown` is all that is written of the answer."""
    page.evaluate("words => say(words)", words)
    holds(
        page,
        f"document.querySelector('.message.assistant .markdown').textContent === {json.dumps(shown)}",
    )


# ---- a conversation ----


def test_a_conversation_streams_and_survives_a_reload(page):
    assert page.title() == page.inner_text("#name") == "small-chat"
    page.evaluate(
        """() => {
            const look = () => window.grown.push(document.querySelector(".message.assistant .markdown")?.textContent ?? "");
            new MutationObserver(look).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    settings(page, temperature=0, max_tokens=120)
    for _ in range(10):  # on a busy machine an answer may come in one piece
        page.evaluate("window.grown = []")
        page.click("#new")
        ask(page, "The river\nreads")
        grown = {text for text in page.evaluate("window.grown") if text}
        if len(grown) > 1:
            break
    else:
        pytest.fail("no answer was seen to grow")
    whole = page.inner_text(ANSWER)
    assert all(whole.startswith(text.rstrip()) for text in grown)
    assert "120 tokens, " in page.inner_text(
        ".message.assistant .foot"
    ) and "length limit" in page.inner_text(".message.assistant .foot")
    assert "of 256 tokens" in page.inner_text("#usage")
    assert (
        page.inner_text("#list").startswith("The river")
        and page.title() == "The river · small-chat"
    )
    assert page.inner_text("#spoken").startswith("Answer: ")
    before = said(page)
    page.reload()
    connected(page)
    assert said(page) == before and page.inner_text(ANSWER) == whole
    page.click("#new")
    assert not page.locator(".message").count()
    page.click("#list a >> nth=0")
    page.wait_for_selector(ANSWER)
    assert said(page) == before


def test_stop_keeps_what_was_written_and_frees_the_slot(page, server):
    settings(page, temperature=0)
    for words in "abcdefghij":  # an answer may be faster than we are
        page.click("#new")
        ask(page, words, wait=False)
        holds(page, "document.querySelector('.message.assistant .markdown')?.textContent")
        page.keyboard.press("Escape")
        finished(page)
        if "Stopped" in page.inner_text(".message.assistant .foot"):
            break
    else:
        pytest.fail("no answer could be stopped")
    assert said(page)[1] and page.evaluate("document.activeElement.id") == "message"
    until(lambda: server.health()["active"] == 0, server.health)


def test_a_reload_in_the_middle_of_an_answer_keeps_its_beginning(page):
    settings(page, temperature=0)
    for words in "abcdefghij":
        page.click("#new")
        ask(page, words, wait=False)
        holds(page, "document.querySelector('.message.assistant .markdown')?.textContent")
        page.reload()
        connected(page)
        if re.search("Incomplete|Stopped", page.inner_text(".message.assistant .foot")):
            break
    else:
        pytest.fail("no answer could be interrupted")
    assert said(page)[0] == words and said(page)[1]


def test_retry_and_edit_ask_for_what_they_show(page):
    asked = []
    page.on(
        "request",
        lambda request: (
            asked.append(request.post_data_json["messages"]) if request.method == "POST" else None
        ),
    )
    settings(page, max_tokens=8)
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.click("#close-settings")
    ask(page, "first")
    ask(page, "second")
    one, answer, two, last = said(page)
    system = {"role": "system", "content": "Be brief."}
    told = [
        system,
        {"role": "user", "content": one},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": two},
    ]
    assert asked == [told[:2], told]
    page.click("[aria-label=Retry]")
    finished(page)
    assert asked[2:] == [told] and said(page)[:3] == [one, answer, two] and said(page)[3] != last
    page.hover(".message.user")
    page.click("[aria-label=Edit] >> nth=0")
    assert "removes the 3 messages" in page.inner_text(".message form")
    page.keyboard.press("Escape")
    assert len(said(page)) == 4 and not page.locator(".message form").count()
    page.click("[aria-label=Edit] >> nth=0")
    page.fill(".message textarea", "changed")
    page.press(".message textarea", "Enter")
    finished(page)
    assert asked[3:] == [[system, {"role": "user", "content": "changed"}]]
    assert (
        said(page)[0] == "changed"
        and len(said(page)) == 2
        and page.inner_text("#list") == "changed"
    )
    page.click("#toast button")  # Undo
    assert (
        said(page)[:3] == [one, answer, two]
        and len(said(page)) == 4
        and page.inner_text("#list") == "first"
    )


def test_an_answer_is_drawn_while_it_comes(page):
    takes_the_line(page)
    ask(page, "hello", wait=False)
    page.wait_for_selector(".waiting")
    says(page, "Füße 🦆 **bo", "Füße 🦆 **bo")
    assert not page.locator(".waiting, .markdown strong").count()
    says(page, "ld**\n\n```py", "Füße 🦆 boldpyCopy")
    says(page, "thon\nx = 1", "Füße 🦆 boldpythonCopyx = 1")
    page.evaluate("window.kept = document.querySelector('.markdown pre')")
    # The conversation may be drawn anew in the meantime.
    says(page, "0", "Füße 🦆 boldpythonCopyx = 10")
    assert page.evaluate("window.kept.isConnected")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    page.wait_for_selector(".system")
    assert page.is_visible("#stop")
    says(page, "\n```\nEnd", "Füße 🦆 boldpythonCopyx = 10End")
    assert page.inner_text("#spoken") == "The model is writing"  # not every token
    page.keyboard.press("Escape")
    finished(page)
    assert said(page)[1] == "Füße 🦆 **bold**\n\n```python\nx = 10\n```\nEnd"


def test_another_conversation_ends_the_answer(page):
    takes_the_line(page)
    ask(page, "first", wait=False)
    page.wait_for_selector(".waiting")
    says(page, "half", "half")
    page.click("#new")
    finished(page)
    assert not page.locator(".message").count() and said(page) == []
    page.click("#list a")
    page.wait_for_selector(ANSWER)
    assert said(page) == ["first", "half"] and "Stopped" in page.inner_text(
        ".message.assistant .foot"
    )


def test_delete_and_its_undo(page):
    store(page, "kept", "one", "two", "three", "four")
    page.click(".message:last-child [aria-label=Delete]")
    assert said(page) == ["one", "two", "three"]
    page.click("#toast >> text=Undo")
    assert said(page) == ["one", "two", "three", "four"]
    page.hover("#list li")
    page.click("#list [aria-label^=Delete]")
    assert "Nothing yet" in page.inner_text("#list") and not page.locator(".message").count()
    page.click("#toast >> text=Undo")
    page.wait_for_selector(".message")
    page.click("#delete-all")
    page.click("#confirm >> text=Cancel")
    assert page.locator("#list a").count() == 1
    page.click("#delete-all")
    page.click("#confirm-yes")
    page.wait_for_selector("#list >> text=Nothing yet")
    assert (
        page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('minigpt.document'))")
        == []
    )


def test_copy(page, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    store(page, "rich", "question", RICH)
    page.click(".message:last-child .foot [aria-label=Copy]")
    holds(page, "document.getElementById('spoken').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == RICH
    page.evaluate("document.getElementById('spoken').textContent = ''")
    page.click(".code >> text=Copy")
    holds(page, "document.getElementById('spoken').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()").startswith("print(")


# ---- what the model wrote ----


@pytest.mark.parametrize("streamed", [True, False])
def test_nothing_that_the_model_wrote_is_run(page, streamed):
    if streamed:
        answers_with(page, ATTACK)
        ask(page, "Attack me <img src=x onerror='window.ran = 12'>")
    else:
        store(page, "attack", "<script>window.ran = 12</script>", ATTACK)
    page.wait_for_selector(ANSWER)
    assert (
        page.locator(
            "#log :is(script, img, iframe, #log svg:not(.icon), [onerror], [onload], [onclick], [onmouseover])"
        ).count()
        == 0
    )
    links = page.evaluate(
        "[...document.querySelectorAll('#log a')].map(a => [a.protocol, a.rel, a.target])"
    )
    assert all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)
    text = page.inner_text(ANSWER)
    assert (
        "<script>window.ran = 1</script>" in text
        and "[press](javascript:window.ran=4)" in text
        and "<script>window.ran = 11</script>" in text
    )
    assert page.evaluate("window.ran") is None


def test_markdown_becomes_elements(page):
    store(page, "rich", "question", RICH)
    shown = page.evaluate(
        "[...document.querySelectorAll('.markdown *')].map(node => node.tagName.toLowerCase())"
    )
    for tag in (
        "h3",
        "em",
        "code",
        "a",
        "strong",
        "ol",
        "ul",
        "li",
        "pre",
        "blockquote",
        "table",
        "th",
        "td",
    ):
        assert tag in shown, tag
    assert (
        "snake_case_name" in page.inner_text(ANSWER) and page.inner_text(".code span") == "python"
    )
    assert (
        page.inner_text(".code code").startswith("print(")
        and page.evaluate("document.querySelectorAll('.markdown li ul li strong').length") == 1
    )


def test_a_growing_answer_looks_like_the_whole_one(page):
    """Only the last blocks are drawn anew; random texts in random pieces must end as if drawn at once."""
    draw = random.Random(0)
    parts = [
        "word",
        " ",
        " ",
        "\n",
        "\n\n",
        "- ",
        "* ",
        "1. ",
        "  ",
        "```",
        "```py\n",
        "~~~",
        "# ",
        "> ",
        "|",
        "---",
        "|-|-|\n",
        "**",
        "*",
        "_",
        "`",
        "[a](https://b.c)",
        "[",
        "](",
        "<b>",
    ]
    texts = ["".join(draw.choice(parts) for _ in range(draw.randint(1, 60))) for _ in range(400)]
    cuts = [
        sorted(draw.sample(range(len(text) + 1), min(len(text), draw.randint(1, 30))))
        for text in texts
    ]
    different = page.evaluate(
        """([texts, cuts]) => texts.filter((text, i) => {
            const [slow, fast] = [document.createElement("div"), document.createElement("div")];
            const grow = growing(slow);
            for (const cut of [...cuts[i], text.length]) grow(text.slice(0, cut));
            growing(fast)(text);
            return slow.innerHTML !== fast.innerHTML;
        })""",
        [texts, cuts],
    )
    assert different == []


@pytest.mark.parametrize(
    "unit",
    [
        "word ",
        "\n\nword",
        "[",
        "*a ",
        "**",
        "**b ",
        "_a_ ",
        "`",
        "``a",
        "- a\n",
        "> ",
        ">",
        "|-",
        "a|b\n-|-\n",
        "```\n",
        "# ",
        "\t",
        "-   ",
    ],
)
def test_no_answer_takes_forever_to_draw(page, unit):
    """What took time in the square of the length would take half a minute; this takes a blink."""
    drawn = "text => { const began = performance.now(); growing(document.createElement('div'))(text); return performance.now() - began }"
    assert page.evaluate(drawn, unit * (100_000 // len(unit))) < 5000


# ---- the browser's storage ----


def test_two_tabs_keep_each_others_conversations(page, context, server):
    settings(page, max_tokens=4)
    other = visit(context, server)
    ask(page, "from one")
    ask(other, "from the other")
    for tab in (page, other):
        holds(tab, "document.querySelectorAll('#list a').length === 2")
    # The same conversation in both: an idle tab follows; one that is busy keeps what it has under a name of its own.
    other.click("#list >> text=from one")
    holds(other, "state.document.messages[0]?.content === 'from one'")
    ask(page, "again")
    holds(other, "state.document.messages.length === 4")
    other.route("**/v1/chat/completions", lambda route: None)
    ask(other, "never answered", wait=False)
    other.wait_for_selector("#stop")
    holds(page, "state.document.messages.length === 6")
    page.click(".message:first-child [aria-label=Delete]")
    other.keyboard.press("Escape")
    finished(other)
    holds(page, "document.querySelectorAll('#list a').length === 3")
    assert len(said(page)) == 5 and said(other)[-1] == "never answered" and page.url != other.url
    # What one tab deletes, the other does not bring back, even if it is writing there.
    other.click("#list >> text=from the other")
    page.click("#list >> text=from the other")
    for tab in (page, other):
        holds(tab, "state.document.messages[0]?.content === 'from the other'")
    ask(other, "never answered, too", wait=False)
    other.wait_for_selector("#stop")
    page.click("#delete-all")
    page.click("#confirm-yes")
    holds(other, "!state.document.messages.length")
    other.reload()
    connected(other)
    finished(other)
    assert "Nothing yet" in other.inner_text("#list")


@pytest.mark.parametrize(
    "broken",
    [
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }",
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('off', 'SecurityError') } })",
    ],
)
def test_a_storage_that_is_full_or_off_breaks_nothing(context, server, broken):
    context.add_init_script(broken)
    page = visit(context, server)
    answers_with(page, "An answer.")
    ask(page, "one")
    assert "reload will lose it" in page.inner_text("#toast")
    page.click("#new")
    ask(page, "two")
    page.click("#list >> text=one")
    holds(page, "state.document.messages[0]?.content === 'one'")
    assert len(said(page)) == 2 and page.locator("#list a").count() == 2


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "null",
        "[]",
        '{"kind": "chat"}',
        '{"kind": "chat", "system": "", "messages": [{"role": "x"}]}',
    ],
)
def test_what_is_damaged_in_the_storage_is_passed_over(page, damaged):
    page.evaluate(
        "text => ['document.bad', 'settings', 'theme'].forEach(name => localStorage.setItem('minigpt.' + name, text))",
        damaged,
    )
    store(page, "good", "question", "answer")
    assert page.inner_text("#list") == "question" and said(page) == ["question", "answer"]


# ---- when something goes wrong ----


def test_a_conversation_that_is_too_long_says_what_to_do(page, errors):
    ask(page, "word " * 400)
    assert "context of 256" in page.inner_text(
        "#trouble b"
    ) and "delete messages" in page.inner_text("#trouble")
    page.click("#trouble >> text=New conversation")
    page.wait_for_selector(".empty")
    assert not page.locator(".notice").count() and page.locator("#list a").count() == 1
    assert [error for error in errors if "400" not in error] == []
    errors.clear()


def test_a_busy_server_and_trying_again(page, errors):
    refusal = json.dumps(
        {"error": {"message": "too many requests", "type": "", "param": None, "code": None}}
    )
    answers_with(
        page,
        "",
        status=429,
        headers={"Retry-After": "7"},
        body=refusal,
        content_type="application/json",
    )
    settings(page, max_tokens=4)
    ask(page, "hello")
    assert (
        "too many requests" in page.inner_text("#trouble")
        and "in 7 s" in page.inner_text("#trouble")
        and said(page) == ["hello"]
    )
    page.unroute("**/v1/chat/completions")
    page.click("#trouble >> text=Try again")
    finished(page)
    assert len(said(page)) == 2 and not page.locator(".notice").count()
    assert [error for error in errors if "429" not in error] == []
    errors.clear()


def test_a_lost_connection_keeps_what_had_come(page):
    settings(page, max_tokens=4)
    takes_the_line(page)
    ask(page, "hello", wait=False)
    page.wait_for_selector(".waiting")
    says(page, "half of an", "half of an")
    page.evaluate("line.error(new TypeError('network error'))")
    finished(page)
    assert said(page) == ["hello", "half of an"] and "Incomplete" in page.inner_text(
        ".message.assistant .foot"
    )
    assert "connection was lost" in page.inner_text("#trouble")
    # A retry that brings nothing does not take away what there was; one that brings something does.
    page.evaluate("() => { window.fetch = async () => { throw new TypeError('no network') } }")
    page.click("#trouble >> text=Try again")
    page.wait_for_selector("#trouble >> text=cannot be reached")
    assert said(page) == ["hello", "half of an"]
    page.evaluate("() => { window.fetch = window.realFetch }")
    page.click("[aria-label=Retry]")
    finished(page)
    assert said(page)[1] not in ("", "half of an") and not page.locator(".notice").count()


def test_without_a_server_the_page_says_so(page, errors):
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#trouble >> text=cannot be reached")
    assert page.is_disabled("#send")
    page.unroute("**/v1/models")
    page.click("#trouble >> text=Try again")
    connected(page)
    assert page.is_enabled("#send") and not page.locator(".notice").count()
    assert [error for error in errors if "ERR_FAILED" not in error] == []
    errors.clear()


# ---- how it looks and how it is used ----


def test_light_and_dark(page, context):
    lightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert page.evaluate(lightness) > 200
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(lightness) < 60
    page.check("#themes [value=light]", force=True)
    assert page.evaluate(lightness) > 200
    page.reload()
    connected(page)
    assert page.evaluate(lightness) > 200 and page.is_checked("#themes [value=light]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page, scheme):
    """WCAG AA: a contrast of 4.5 for text of any size."""
    page.emulate_media(color_scheme=scheme)
    store(page, "rich", "question", RICH)
    page.evaluate("document.querySelectorAll('.foot button').forEach(button => button.focus())")
    faint = page.evaluate(
        """() => {
            const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const light = (colour) => numbers(colour).slice(0, 3).map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (node) => {
                const colour = node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
                return node && numbers(colour)[3] === 0 ? behind(node.parentElement) : colour;
            };
            return [...document.querySelectorAll("body *")].filter(node => node.checkVisibility()
                && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())).map(node => {
                const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
                return [(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 80)];
            }).filter(([contrast]) => contrast < 4.5);
        }"""
    )
    assert faint == []


def test_a_phone(chromium, server, errors):
    context = chromium.new_context(
        viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True
    )
    page = visit(context, server)
    store(page, "rich", "a_word_without_an_end" * 20, RICH)
    sideways = "['scrollWidth', 'clientWidth'].map(side => Math.max(document.documentElement[side], document.getElementById('scroller')[side]))"

    def fits() -> bool:
        wide, width = page.evaluate(sideways)
        return wide == width == 375

    assert fits()
    assert page.evaluate(
        "[document.querySelector('pre')].map(pre => { pre.scrollLeft = 50; return pre.scrollLeft })"
    ) == [50]
    small = page.evaluate(
        """[...document.querySelectorAll("button, .button, input, nav a")].filter(node => node.checkVisibility({ visibilityProperty: true }))
            .filter(node => node.getBoundingClientRect().height < 44).map(node => node.outerHTML)"""
    )
    assert small == []
    assert not page.is_visible("#list")
    page.tap("#menu")
    page.wait_for_selector("#list a", state="visible")
    holds(page, "document.getElementById('panel').getBoundingClientRect().left === 0")
    assert fits() and page.evaluate("document.activeElement.id") == "close-panel"
    page.tap("#list a")
    page.wait_for_selector("#list", state="hidden")
    page.tap("#open-settings")
    assert (
        fits()
        and page.evaluate("document.getElementById('settings').getBoundingClientRect().width")
        <= 375
    )
    context.close()


def test_the_keyboard_is_enough(page):
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    settings(page, max_tokens=4)
    page.reload()
    connected(page)
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "skip":
            break
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .foot button")
    assert said(page)[0] == "one\ntwo"
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate(focused) == "Retry":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    finished(page)
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.wait_for_selector("#settings[open]")
    page.focus("#set-temperature")
    page.keyboard.press("End")
    assert page.inner_text("#settings output >> nth=0") == "2"
    page.keyboard.press("Escape")
    assert (
        page.evaluate(focused) == "Settings"
        and page.evaluate("samplingSettings().temperature") == 2
    )
    page.focus("#delete-all")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list >> text=Nothing yet")


def test_enter_that_ends_a_composed_word_does_not_send(page):
    page.fill("#message", "にほん")
    for more in ("isComposing: true", "keyCode: 229"):
        page.evaluate(
            f"document.getElementById('message').dispatchEvent(new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, {more} }}))"
        )
    assert said(page) == [] and page.input_value("#message") == "にほん"


def test_everything_to_press_has_a_name(page):
    store(page, "rich", "question", RICH)
    page.evaluate("document.getElementById('settings').showModal()")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, a, [role=region], nav, dialog")].filter(node => !(node.textContent.trim()
            || node.ariaLabel || node.labels?.length || node.getAttribute("aria-labelledby"))).map(node => node.outerHTML)"""
    )
    assert nameless == []


def test_settings_stay_within_their_bounds(page):
    asked = []
    page.on(
        "request",
        lambda request: asked.append(request.post_data_json) if request.method == "POST" else None,
    )
    answers_with(page, "An answer.")
    settings(page, temperature=99, top_p="much", min_p=-1, max_tokens=10**9, seed=1.5)
    ask(page, "hello")
    sent = {
        name: asked[0].get(name)
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "top_k",
            "max_tokens",
            "seed",
        )
    }
    assert sent == {
        "temperature": 2,
        "top_p": 0.95,
        "min_p": 0,
        "repetition_penalty": 1,
        "top_k": None,
        "max_tokens": 256,
        "seed": 2,
    }
    page.click("#open-settings")
    page.click("#reset-all")
    assert page.evaluate("samplingSettings()") == {
        "temperature": 0.8,
        "top_p": 0.95,
        "min_p": 0,
        "repetition_penalty": 1,
    }


def test_the_reader_is_not_dragged_along(page):
    store(page, "long", "question", "paragraph\n\n" * 100, "another", "short")
    page.evaluate("document.getElementById('scroller').scrollTop = 0")
    page.wait_for_selector("#latest", state="visible")
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page, "more", wait=False)  # one's own message is shown in any case
    holds(page, "scroller.scrollTop > 100")
    page.evaluate("document.getElementById('scroller').scrollTop = 0")
    page.keyboard.press("Escape")
    finished(page)
    assert page.evaluate("document.getElementById('scroller').scrollTop") == 0
    page.click("#latest")
    page.wait_for_selector("#latest", state="hidden")


# ---- the page of a base run ----


def test_a_text_goes_on_and_its_continuation_is_marked(context, text_server):
    page = visit(context, text_server)
    assert page.title() == "small-text" and not page.is_visible("#message")
    settings(page, max_tokens=24)
    page.fill("#text", "Once upon")
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#halt", state="hidden")
    first = page.input_value("#text")
    assert (
        first.startswith("Once upon")
        and len(first) > 9
        and page.inner_text("#generate") == "Continue"
    )
    assert page.evaluate("document.querySelector('mark').textContent") == first[9:]
    page.click("#generate")
    page.wait_for_selector("#halt", state="hidden")
    second = page.input_value("#text")
    assert second.startswith(first) and len(second) > len(first)
    # What is typed into it moves the marks and is not marked.
    page.focus("#text")
    page.keyboard.press("Control+Home")
    page.keyboard.type("So: ")
    marks = page.evaluate("[...document.querySelectorAll('mark')].map(mark => mark.textContent)")
    assert marks == [first[9:], second[len(first) :]]
    assert page.evaluate(
        "document.getElementById('copy-of-text').textContent === document.getElementById('text').value + '\\n'"
    )
    page.click("#undo")
    assert page.input_value("#text") == "So: " + first
    page.reload()
    connected(page)
    assert page.input_value("#text") == "So: " + first and page.locator("mark").count() == 1
    page.click("#undo")
    assert page.input_value("#text") == "So: Once upon" and page.is_disabled("#undo")


def test_a_continuation_can_be_stopped(context, text_server):
    page = visit(context, text_server)
    settings(page, max_tokens=250)
    for _ in range(10):
        page.fill("#text", "Once")
        page.click("#generate")
        holds(page, "document.querySelector('mark')?.textContent")
        page.keyboard.press("Escape")
        page.wait_for_selector("#halt", state="hidden")
        if "Stopped" in page.inner_text("#usage"):
            break
    else:
        pytest.fail("no text could be stopped")
    assert len(page.input_value("#text")) > 4
    until(lambda: text_server.health()["active"] == 0, text_server.health)


def test_another_text_ends_the_continuation(context, text_server):
    page = visit(context, text_server)
    takes_the_line(page)
    page.fill("#text", "Once")
    page.click("#generate")
    page.wait_for_selector("#halt")
    page.evaluate("say(' upon\\r\\n')")
    holds(page, "document.getElementById('text').value === 'Once upon\\n'")
    assert not page.is_editable("#text")
    page.evaluate("say(' a time')")
    page.click("#new")
    page.wait_for_selector("#halt", state="hidden")
    assert page.input_value("#text") == "" and page.is_editable("#text")
    page.click("#list a")
    holds(page, "document.getElementById('text').value.startsWith('Once upon')")
    assert page.evaluate("document.querySelector('mark').textContent").startswith(" upon")


# ---- the file itself ----


def test_the_page_is_one_file_that_needs_no_other():
    text = (Path(__file__).parents[2] / "minigpt_jax/server/page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"<style\b", text)) == 1
    assert not re.search(
        r"\sstyle=|\son[a-z]+=\"|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function",
        text,
    )
    assert set(re.findall(r"https?://[\w.]+", text)) <= {
        "http://www.w3.org"
    }  # the name of SVG, not an address
