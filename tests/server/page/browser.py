"""What a user does on the page and sees of it, and ways to answer in place of the server."""

import json
from typing import TYPE_CHECKING

from tests.server.serving import TIMEOUT, Client, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

TIMEOUT_MS = TIMEOUT * 1000
# The text of an answer.
ANSWER = ".message.assistant .markdown"
# What is shown below an answer.
NOTE = ".message.assistant .foot"
CHAT_ROUTE = "**/v1/chat/completions"
# Modules of the page whose names the expressions of the tests use.
MODULES = [
    *("chat", "documents", "dom", "highlight", "markdown", "sampling", "state", "stored_format"),
]
RICH_MARKDOWN = """# Head

A *first* `paragraph` with a [link](https://example.org/), **bold [inside](http://example.org)**
and a snake_case_name.

1. one
2. two
   - deeper **still**

```python
print("a line that is far too long for the width of any phone: the page must not scroll sideways")
```

> quoted

| a | b |
|---|---|
| 1 | wide-wide-wide-wide-wide-wide-wide-wide-wide-wide-wide-wide |
"""


def open_page(context: "BrowserContext", server: Client) -> "Page":
    """The page of `server`, when it knows the model."""
    page = context.new_page()
    page.goto(server.url)
    wait_until_connected(page)
    return page


def wait_for(page: "Page", expression: str, argument: object = None) -> None:
    """Wait until a JavaScript expression is true.

    Playwright's own function evaluates a string in the page, which the page's policy forbids.
    """
    wait_until(lambda: page.evaluate(expression, argument), lambda: expression)


def wait_until_connected(page: "Page") -> None:
    wait_for(page, "document.getElementById('facts').textContent.includes('context')")
    name_modules(page)


def name_modules(page: "Page") -> None:
    """Make what the page's modules export global, for the expressions of the tests."""
    page.evaluate(
        """async (names) => {
            for (const name of names)
                Object.assign(window, await import(`./page/${name}.js`));
        }""",
        MODULES,
    )


def wait_until_finished(page: "Page") -> None:
    page.wait_for_selector("#stop", state="hidden")


def reload(page: "Page") -> None:
    page.reload()
    wait_until_connected(page)


def set_settings(page: "Page", **values: object) -> None:
    """Store sampling settings. With temperature 0 the model generates until the limit."""
    page.evaluate("values => localStorage.setItem('minigpt.settings', values)", json.dumps(values))


def open_conversation(page: "Page", name: str, *contents: str) -> None:
    """Store a conversation of questions and answers in turn, and show it."""
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
    reload(page)


# Adds to a conversation of a question and an answer: a forgotten turn before it, versions, tokens
# of all probabilities, code, and two answers beside each other.
SHOW_EVERYTHING = """() => {
    const logprobs = [0.9, 0.3, 0.05, 0.001].map(Math.log);
    const tokens = logprobs.map((value) => [" token", value, [[" other", value]]]);
    const code = "```python\\n# note\\ndef f(): return 'text' + 1\\n```";
    const [question, answer] = state.document.messages;
    const turn = (changes) => [question, { ...answer, ...changes }];
    const other = { content: "Another.", model: "other", tokens: 7, seconds: 1 };
    state.document.messages = [
        ...turn({}).map((message) => ({ ...message, forgotten: true })),
        ...turn({ tokenList: tokens, before: [other] }),
        ...turn({ content: code, tokens: 123, seconds: 2, waited: 4, end: "length" }),
        ...turn({ model: "one", after: [other], beside: true }),
        question,
    ];
    view.show();
}"""


def open_everything(page: "Page", question: str = "question") -> None:
    """Show a conversation with all that a conversation can have."""
    open_conversation(page, "everything", question, RICH_MARKDOWN)
    page.evaluate(SHOW_EVERYTHING)


def export_of(*documents: dict, **changes: object) -> str:
    """A file of `documents` as the page exports it."""
    content = {"format": "minigpt-documents", "version": 1, "documents": documents}
    return json.dumps(content | changes)


def choose_file(page: "Page", content: str) -> None:
    """Choose a file to import."""
    file = {"name": "chosen.json", "mimeType": "application/json", "buffer": content.encode()}
    page.set_input_files("#import-file", file)


def send(page: "Page", text: str) -> None:
    """Send a message."""
    page.fill("#message", text)
    page.press("#message", "Enter")


def ask(page: "Page", text: str) -> None:
    """Send a message and wait until the answer is complete."""
    send(page, text)
    wait_until_finished(page)


def messages(page: "Page") -> list[str]:
    """The contents of the conversation on the screen, before Markdown is rendered."""
    return page.evaluate("state.document.messages.map(message => message.content)")


def fulfill_answer(route: "Route", text: str, **usage: int) -> None:
    """Answer one request with `text`, as a stream in one part; `usage`: numbers of tokens."""
    chunks = [
        {"choices": [{"delta": {"content": text}, "text": text}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        *([{"choices": [], "usage": usage}] if usage else []),
    ]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    route.fulfill(content_type="text/event-stream", body=events)


def fulfill_error(route: "Route", status: int, message: str, code: str | None = None) -> None:
    """Answer one request with an error in the format of the server."""
    error = {"message": message, "type": "", "param": None, "code": code}
    route.fulfill(status=status, json={"error": error})


def refuse_as_too_long(route: "Route") -> None:
    """Say that a request does not fit into the context."""
    fulfill_error(route, 400, "too many tokens", "context_length_exceeded")


def stub_answer(page: "Page", answer: str) -> None:
    """From now on every chat request gets this answer, as a stream in one part."""
    page.route(CHAT_ROUTE, lambda route: fulfill_answer(route, answer))


def sent_bodies(page: "Page") -> list[dict]:
    """A list that grows by the body of every request that the page sends from now on."""
    bodies = []

    def on_request(request) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", on_request)
    return bodies


def contents(body: dict) -> list[str]:
    """The texts of the messages of a request."""
    return [message["content"].strip() for message in body["messages"]]


def clear_expected(errors: list[str], expected: str) -> None:
    """The browser reports failed requests on its console."""
    assert [error for error in errors if expected not in error] == []
    errors.clear()


def stub_server(page: "Page") -> None:
    """From now on the test sends all answers, by `server_sends` or with `connection` in the page.

    They arrive byte by byte; `connection.error(...)` loses the connection.
    """
    page.evaluate(
        """() => {
            window.realFetch = window.fetch;
            window.fetch = async (path, { signal }) => new Response(new ReadableStream({
                start(connection) {
                    window.connection = connection;
                    signal.addEventListener("abort", () => connection.error(signal.reason));
                },
            }));
            window.sendText = (text) => {
                const chunk = { choices: [{ delta: { content: text }, text }] };
                const event = `data: ${JSON.stringify(chunk)}\\n\\n`;
                const bytes = new TextEncoder().encode(event);
                bytes.forEach((byte) => window.connection.enqueue(Uint8Array.of(byte)));
            };
        }"""
    )


def server_sends(page: "Page", text: str, shown: str) -> None:
    """Send a part of an answer and wait until the page shows `shown` as the answer."""
    page.evaluate("text => sendText(text)", text)
    wait_for(
        page,
        f"shown => document.querySelector('{ANSWER}').textContent === shown",
        shown,
    )
