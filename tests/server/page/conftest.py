"""A browser for the tests of the page, which fail on every error that the browser reports."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.server.page.browser import TIMEOUT_MS, open_page
from tests.server.serving import KEY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The name of the server behind nginx.
    "--host-resolver-rules=MAP chat.example 127.0.0.1",
]


@pytest.fixture(scope="package")
def chromium() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What the browser reported. A test that causes errors checks and clears them."""
    return []


@pytest.fixture
def context(chromium, errors) -> Iterator["BrowserContext"]:
    """An empty browser profile, in which no error, blocked script or dialog may occur."""
    context = chromium.new_context(
        viewport={"width": 1280, "height": 800},
        color_scheme="light",
        http_credentials={"username": "anyone", "password": KEY},
    )
    context.set_default_timeout(TIMEOUT_MS)

    def on_console(message) -> None:
        if message.type == "error":
            errors.append(message.text)

    def on_dialog(dialog) -> None:
        errors.append(dialog.message)
        dialog.dismiss()

    context.on("console", on_console)
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("dialog", on_dialog)
    yield context
    context.close()
    assert not errors


@pytest.fixture
def page(context, server) -> "Page":
    """The page of a chat model."""
    return open_page(context, server)


@pytest.fixture
def text_page(context, text_server) -> "Page":
    """The page of a base model, which needs a key."""
    return open_page(context, text_server)
