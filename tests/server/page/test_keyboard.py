"""The focus stays where it was when the page is shown anew, and the keyboard reaches everything."""

from tests.server.page.browser import open_conversation, open_everything, wait_for

FOCUSED = "document.activeElement.ariaLabel ?? document.activeElement.id"


def press(page, name: str) -> None:
    """Press Enter on the first control of this name in the conversation."""
    page.focus(f"#log [aria-label='{name}']:enabled")
    page.keyboard.press("Enter")


def test_the_keyboard_stays_on_the_button_that_shows_tokens_or_text(page):
    open_everything(page)
    press(page, "Show as text")
    assert page.evaluate(FOCUSED) == "Show token probabilities"
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "Show as text"


def test_the_focus_stays_on_the_next_version(page):
    open_conversation(page, "versions", "question", "answer")
    versions = [{"content": name} for name in ("second", "third")]
    page.evaluate(
        """after => {
            state.document.messages[1].after = after;
            view.show();
        }""",
        versions,
    )
    for number in ("2/3", "3/3"):
        press(page, "Next version")
        assert page.inner_text(".versions") == number
        expected = "Next version" if number == "2/3" else "Previous version"
        assert page.evaluate(FOCUSED) == expected


def test_the_keyboard_goes_to_the_field_when_all_is_sent_again(page):
    open_everything(page)
    page.focus("#log >> text=Send them again")
    page.keyboard.press("Enter")
    assert not page.locator(".forgotten").count()
    assert page.evaluate(FOCUSED) == "message"


def test_two_answers_can_be_copied_repeated_and_told_apart(page, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_conversation(page, "two", "question", "first")
    tokens = [[" token", -0.1, []]]
    second = {"content": "second", "model": "other", "end": "stop", "tokenList": tokens}
    page.evaluate(
        """second => {
            const [question, answer] = state.document.messages;
            Object.assign(answer, { model: "one", after: [second], beside: true });
            view.show();
        }""",
        second,
    )
    stops = page.evaluate("""() => [...document.querySelectorAll(".assistant button")].map(
        node => node.ariaLabel)""")
    go = "Go on with this answer of"
    assert stops == [
        *(f"{go} one", "Copy"),
        *(f"{go} other", "Copy", "Show as text"),
        *("Retry", "Delete"),
    ]
    press(page, "Show as text")
    assert page.evaluate(FOCUSED) == "Show token probabilities"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED) == "Copy"
    page.keyboard.press("Enter")
    wait_for(page, "document.getElementById('announcement').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "second"
    press(page, f"{go} other")
    assert page.evaluate("state.document.messages[1].content") == "second"
    assert page.evaluate(FOCUSED) == "message"


def test_a_token_without_letters_can_be_seen_and_named(page):
    open_conversation(page, "tokens", "question", "a\n\nb")
    tokens = [[text, -0.1, []] for text in ("a", "\n\n", "b")]
    page.evaluate(
        """tokens => {
            state.document.messages[1].tokenList = tokens;
            view.show();
        }""",
        tokens,
    )
    assert page.locator(".token >> nth=1").bounding_box()["width"] > 4
    page.focus(".token >> nth=0")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(FOCUSED) == '"\\n\\n"'
    # A focused token is part of a list in which arrow keys move.
    role = "[document.activeElement.role, document.activeElement.parentElement.role]"
    assert page.evaluate(role) == ["option", "listbox"]
    # The sign is no part of the text.
    assert page.inner_text(".tokens") == "a\n\nb"


def test_a_token_that_the_keyboard_scrolls_to_keeps_its_alternatives(page):
    open_conversation(page, "tokens", "question", "a")
    page.evaluate(
        """tokens => {
            state.document.messages[1].tokenList = tokens;
            view.show();
        }""",
        [["line\n", -0.1, []]] * 100,
    )
    page.evaluate("scroller.scrollTop = 0")
    page.focus(".token >> nth=0")
    # After the page's own listener.
    page.evaluate(
        """() => scroller.addEventListener("scroll", () => {
            window.scrolled = scroller.scrollTop > 500;
        })"""
    )
    page.keyboard.press("End")
    wait_for(page, "window.scrolled")
    tip, token = (page.locator(s).bounding_box() for s in ("#tip", ".token >> nth=99"))
    assert abs(tip["y"] - token["y"]) < 200


def test_the_button_of_the_options_says_whether_they_are_open(page):
    open_conversation(page, "one", "question", "answer")
    expanded = "document.querySelector('#list button').ariaExpanded"
    assert page.evaluate(expanded) == "false"
    page.focus("#list button")
    page.keyboard.press("Enter")
    assert page.evaluate(expanded) == "true"
    assert page.get_by_role("group", name="Options").count()
    page.keyboard.press("Escape")
    wait_for(page, f"{expanded} === 'false'")


def test_a_failure_is_announced_once(page):
    """Screen readers read what is put into an alert."""
    open_conversation(page, "one", "question", "answer")
    show = """title => {
        state.failure = { title, remedy: "Try it." };
        view.show();
        window.notice = document.querySelector("[role=alert]");
    }"""
    page.evaluate(show, "It failed.")
    page.evaluate("view.show()")
    same = "window.notice === document.querySelector('[role=alert]')"
    assert page.evaluate(same)
    page.evaluate("() => { state.failure = { title: 'Another.', remedy: '' }; view.show(); }")
    assert not page.evaluate(same) and "Another" in page.inner_text("[role=alert]")
