"""The documents are one net of links, and `make docs` makes a site of it without a warning."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.harness import ROOT, tracked_files

DOCUMENTS = [
    ROOT / name for name in tracked_files() if re.fullmatch(r"[^/]+\.md|docs/.+\.md", name)
]
# The build in a process that then says whether it has loaded JAX.
BUILD = """
import sys
from mkdocs.__main__ import cli
try:
    cli(["build", "--strict", "--site-dir", sys.argv[1]])
finally:
    assert "jax" not in sys.modules
"""
# Attributes with addresses that a browser loads by itself; those of a link are followed by hand.
LOADED = {"src", "srcset", "data", "poster"}


def prose(document: Path) -> str:
    """The text of a document without its code."""
    text = re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]+`", "", text)


def anchors(document: Path) -> set[str]:
    """What a link to each heading of a document ends with, on a forge."""
    text = re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_in_the_navigation_once():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    listed = re.findall(r"[\w/]+\.md", navigation)
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path):
    text = prose(document)
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in links:
        if urlsplit(link).scheme:
            continue
        address, anchor = urldefrag(link)
        target = (document.parent / address).resolve() if address else document
        # Not a folder, which the site cannot show.
        assert target.is_file(), f"{document.name}: {link}"
        assert target.is_relative_to(ROOT.resolve()), (
            f"{document.name}: {link} leads out of the project"
        )
        # Where two hyphens would meet, the site has one.
        assert "--" not in anchor, f"{document.name}: {link} is another one on the site"
        assert not anchor or anchor in anchors(target), f"{document.name}: no heading for {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_forges_and_the_site_read_the_same(document: Path):
    """Two things that GitHub's Markdown and Python-Markdown read differently."""
    assert r"\|" not in document.read_text(), "the site shows the backslash"
    for before, line in zip(["", *(lines := prose(document).splitlines())], lines, strict=False):
        starts_list = re.match(r"[-*] ", line)
        in_list = re.match(r"[-*] | ", before)
        assert not (starts_list and before and not in_list), f"no empty line before: {line}"


class Addresses(HTMLParser):
    """The addresses in a page: those that a browser loads, and all of them."""

    def __init__(self, page: str):
        super().__init__()
        self.loaded: set[str] = set()
        self.all: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in LOADED or (tag == "link" and name == "href"):
                self.loaded.add(value or "")
            if name in LOADED | {"href"}:
                self.all.add(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_is_whole_and_loads_nothing_from_other_hosts(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(DOCUMENTS)
    for page in pages:
        addresses = Addresses(page.read_text())
        foreign = {address for address in addresses.loaded if urlsplit(address).netloc}
        assert not foreign, page
        for address in addresses.all:
            parts = urlsplit(address)
            # Addresses of the page for errors begin at the root of the server.
            if parts.scheme or not parts.path or page.name == "404.html":
                continue
            target = page.parent / unquote(parts.path)
            assert (target / "index.html").is_file() or target.is_file(), f"{page}: {address}"
        # For these the theme's program would ask other hosts.
        assert 'class="mermaid"' not in page.read_text()
        assert 'data-md-component="source"' not in page.read_text()
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s'\"]*(https?:)?//", style.read_text()), style


def test_the_reference_explains_what_users_import(site: Path):
    page = (site / "docs" / "api" / "use.html").read_text()
    for name in ("load_run", "loaded_run.LoadedRun.chat", "generate.Generator.stream"):
        assert f'id="minigpt_jax.{name}"' in page
    # The comment above a field.
    assert "Only the k most likely tokens; padded V: all." in page
    fields = (site / "docs" / "api" / "configs.html").read_text()
    assert "How many of the newest checkpoints to keep" in fields
