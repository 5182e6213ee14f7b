"""The page is one file that needs no other and contains no way to execute text."""

import re

from tests.server.serving import ROOT

UNSAFE = [
    r"\sstyle=",
    r"\son[a-z]+=\"",
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    r"document\.write",
    r"eval\(",
    "new Function",
]


def test_the_page_loads_nothing_and_has_no_unsafe_code():
    text = (ROOT / "minigpt_jax/server/page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"<style\b", text)) == 1
    assert not re.search("|".join(UNSAFE), text)
    # The name of SVG, which is not loaded.
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
