"""The pages of the site are files of the repository, under the paths that they have there.

So a relative link leads to the same place on the site, on a forge and in an editor, and nothing is
copied. MkDocs alone would take what is inside docs/ and leave out the README, which is the home
page.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)")
# They have the words of all other pages, which are the ones to find first.
LAST_IN_THE_SEARCH = ("docs/log.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All files of the site: those of the theme, the documents, and what the documents link to."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in site_files():
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def site_files() -> list[Path]:
    """The documents, the files in docs/ that they use, and the source files that they link to."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    linked = {
        (document.parent / link).resolve()
        for document in documents
        for link in LINK.findall(document.read_text())
    }
    images = (ROOT / "docs").glob("images/*")
    styles = (ROOT / "docs").glob("site/*.css")
    found = {*documents, *images, *styles, *(path for path in linked if path.is_file())}
    return sorted(found)


def on_page_markdown(markdown: str, page: Page, **_) -> None:
    """Set the rank of a page in the search."""
    if page.file.src_uri in LAST_IN_THE_SEARCH:
        page.meta["search"] = {"boost": 0.1}
