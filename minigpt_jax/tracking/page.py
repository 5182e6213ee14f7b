"""Build one HTML page that needs no other file and no network."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")


def document(name: str, sections: Mapping[str, str]) -> str:
    """The page of the run `name`; `sections` maps titles to HTML."""
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} - training report</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
<h1>{escape(name)}</h1>
<p>Training report, written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>
{body}
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds the names of its rows."""
    lines = []
    for head, *cells in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(head)}</th>{values}</tr>")
    return f"<table>{''.join(lines)}</table>"


def number_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers, in a panel of its own."""
    return f'<div class="panel numbers">{table(rows)}</div>'


def facts(boxes: Sequence[tuple[str, str, str]]) -> str:
    """A box for each (label, value, note)."""
    panels = []
    for label, value, note in boxes:
        lines = f'<span>{label}</span><b>{value}</b><span class="faint">{escape(note)}</span>'
        panels.append(f'<div class="panel">{lines}</div>')
    return f'<div class="grid facts">{"".join(panels)}</div>'


def figures(plots: Sequence[tuple[str, str]]) -> str:
    """A figure for each (title, SVG)."""
    panels = [f'<figure class="panel"><h3>{title}</h3>{svg}</figure>' for title, svg in plots]
    return f'<div class="grid plots">{"".join(panels)}</div>'


def samples(groups: Sequence[tuple[str, Sequence[dict]]]) -> str:
    """Prompts and generated texts under their titles; all groups but the first are folded away."""
    if not groups:
        return paragraph("No sample was written.")
    first, *older = (
        f"<h3>{escape(title)}</h3>{''.join(map(_sample, texts))}" for title, texts in groups
    )
    if older:
        summary = f"<summary>{len(older)} earlier evaluations</summary>"
        first += f"<details>{summary}{''.join(older)}</details>"
    return f'<div class="panel">{first}</div>'


def settings(values: Mapping) -> str:
    """A table for each section of `values`, preceded by one for the fields without a section."""
    if not values:
        return paragraph("Not recorded.")
    tables = {"general": {k: v for k, v in values.items() if not isinstance(v, dict)}}
    tables |= {k: v for k, v in values.items() if isinstance(v, dict)}
    panels = []
    for title, fields in tables.items():
        rows = [[name, _setting(value)] for name, value in fields.items()]
        panels.append(f'<div class="panel"><h3>{escape(title)}</h3>{table(rows)}</div>')
    return f'<div class="sections">{"".join(panels)}</div>'


def _sample(sample: dict) -> str:
    return f'<div class="sample"><b>{escape(sample["prompt"])}</b>{escape(sample["text"])}</div>'


def _setting(value) -> str:
    if value and isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
