"""The files of the page need no others and cannot execute text; the server serves only them."""

import re
from pathlib import Path

import pytest

from minigpt_jax.server.page_files import INDEX
from tests.server.serving import ROOT

FOLDER = ROOT / "minigpt_jax/server/page"
FILES = sorted(FOLDER.iterdir())
TYPES = {".js": "text/javascript", ".css": "text/css"}
UNSAFE = [
    r"\sstyle=",
    r"\son[a-z]+=\"",
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    r"document\.write",
    r"eval\(",
    "new Function",
    r"<style\b",
    "@import",
    # In JavaScript, modules are imported at the top, by their name.
    r"\bimport\(",
]
IMPORT = re.compile(r"^(?:import|\}) .*from \"(.*)\";$", re.MULTILINE)
MAX_LINES = 250
MAX_COLUMNS = 100


def imports_of(file: Path) -> set[str]:
    return set(IMPORT.findall(file.read_text(encoding="utf-8")))


def test_the_page_loads_nothing_else_and_has_no_unsafe_code():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search("|".join(UNSAFE), text), file
        # The name of SVG, which is not loaded.
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, file
    index = (FOLDER / INDEX).read_text(encoding="utf-8")
    scripts = re.findall(r"<script\b[^>]*>(.*?)</script>", index, re.DOTALL)
    assert scripts == [""]
    loaded = re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=\"(?!data:)(.*?)\"", index)
    # Relative, so that the page works under a path of another server.
    assert all(name.startswith("page/") and (FOLDER.parent / name).exists() for name in loaded)
    assert {f"page/{file.name}" for file in FILES if file.suffix == ".css"} < set(loaded)


def test_no_script_asks_for_an_absolute_address():
    """Behind a proxy the page may lie under a path."""
    for file in FILES:
        assert not re.search(r"[\"'`]/[a-z]", file.read_text(encoding="utf-8")), file


def test_scripts_import_each_other_without_a_cycle():
    graph = {f"./{file.name}": imports_of(file) for file in FILES if file.suffix == ".js"}
    assert sum(map(len, graph.values())) > 20
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, others in graph.items() if name not in done and others <= done}
        assert ready, f"a cycle or a missing file among {sorted(graph.keys() - done)}"
        done |= ready


def test_every_file_is_short_and_says_what_it_is_for():
    for file in FILES:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MAX_LINES, file
        assert file.name == INDEX or all(len(line) <= MAX_COLUMNS for line in lines), file
        purpose = lines[1] if file.name == INDEX else lines[0]
        assert re.match(r"(//|/\*|<!--) .{30}", purpose), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_server_serves_the_files_with_their_types(server, file):
    if file.name == INDEX:
        assert server.request(f"/page/{INDEX}").status == 404
        assert server.request("/").body == file.read_bytes()
        return
    reply = server.request(f"/page/{file.name}")
    assert (reply.status, reply.body) == (200, file.read_bytes())
    assert reply.headers["content-type"] == f"{TYPES[file.suffix]}; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *("/page", "/page/", "/page/.", "/page/..", "/page/../app.py", "/page/%2e%2e/app.py"),
        *("/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "/page//etc/passwd"),
        *("/page/%2fetc%2fpasswd", "/page/main.js/../../app.py", "/page/main.js%00", "/page/x.js"),
    ],
)
def test_no_other_file_is_served(server, path):
    assert server.request(path).status in (307, 404)
