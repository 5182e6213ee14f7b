"""The page behind a real nginx, under a path of a name that is not this machine's own."""

from tests.server.page.browser import (
    ask,
    messages,
    reload,
    set_settings,
    wait_for,
    wait_until_connected,
)


def test_the_page_works_under_a_path_of_another_server(context, nginx):
    origin = f"http://chat.example:{nginx.port}"
    page = context.new_page()
    statuses: dict[str, int] = {}
    page.on("response", lambda reply: statuses.update({reply.url: reply.status}))
    # Without its slash, nginx leads to the page.
    page.goto(f"{origin}/chat")
    wait_until_connected(page)
    assert page.url == f"{origin}/chat/"
    assert statuses.pop(f"{origin}/chat") == 301
    set_settings(page, max_tokens=4)
    ask(page, "hello")
    asked = messages(page)
    assert len(asked) == 2 and asked[1]
    # Plain http: of a name that is not this machine's, the browser offers less.
    assert page.evaluate("isSecureContext") is False
    page.click(".message:last-child [aria-label=Copy]")
    wait_for(page, "document.getElementById('announcement').textContent === 'Copied'")
    reload(page)
    assert messages(page) == asked and page.inner_text("#list") == "hello"
    assert page.evaluate("document.styleSheets.length") == 3
    assert set(statuses.values()) == {200}
    paths = {url.removeprefix(origin).partition("#")[0] for url in statuses}
    assert all(path.startswith("/chat/") for path in paths)
    assert {"/chat/page/main.js", "/chat/page/style.css", "/chat/v1/chat/completions"} <= paths
