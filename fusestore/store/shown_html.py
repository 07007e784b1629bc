"""Tables for people as HTML, as a notebook shows an object at the end of a cell.

The table's own style is the notebook's, light or dark: nothing here has a color, and there is no
script. Titles, cells and notes are texts of strangers, so every one is escaped; what they hold of
control characters is written as an escape.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from fusestore.store.shown_table import ShownTable, is_number

ROWS_SHOWN = 50
"""Lines of a table; one more says how many are left out."""

_CHARACTERS_SHOWN = 400
"""Of a cell, a title or a note."""

_CAPTION = "caption-side:top;text-align:left;font-weight:bold"
_TEXT = "text-align:left;white-space:pre-wrap"
_NUMBER = "text-align:right"

# Notebooks set what stands between dollar signs as a formula, in the cells of tables too.
_CLASS = "tex2jax_ignore mathjax_ignore"


def tables_html(
    tables: Iterable[ShownTable], notes: Iterable[str] = (), *, folded: Iterable[ShownTable] = ()
) -> str:
    """Tables one below the other, as one HTML fragment.

    Args:
        tables: their titles become captions; a column of numbers is right-aligned. Where no column
            has a title, the first one names what is in its row.
        notes: paragraphs after them.
        folded: tables after these, behind their titles until someone opens them.
    """
    parts = [_table(table, table.title) for table in tables]
    parts += [f"<p>{_escaped(note)}</p>" for note in notes if note]
    parts += [
        f"<details><summary>{_escaped(table.title)}</summary>{_table(table, '')}</details>"
        for table in folded
        if table.rows
    ]
    return f'<div class="{_CLASS}">{"".join(parts)}</div>'


def _table(table: ShownTable, caption: str) -> str:
    shown = table.rows[:ROWS_SHOWN]
    columns = range(len(table.columns))
    numeric = [
        any(row[index] for row in shown) and all(is_number(row[index]) for row in shown)
        for index in columns
    ]
    styles = [_NUMBER if number else _TEXT for number in numeric]
    parts = ["<table>"]
    if caption:
        parts.append(f'<caption style="{_CAPTION}">{_escaped(caption)}</caption>')
    titled = any(table.columns)
    if titled:
        cells = (_cell("th", table.columns[index], styles[index], "col") for index in columns)
        parts.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    parts.append("<tbody>")
    for row in shown:
        cells = (
            _cell("td", row[index], styles[index])
            if titled or index
            else _cell("th", row[index], styles[index], "row")
            for index in columns
        )
        parts.append(f"<tr>{''.join(cells)}</tr>")
    if len(table.rows) > len(shown):
        more = f"… and {len(table.rows) - len(shown):,} more"
        parts.append(f'<tr><td colspan="{len(columns)}" style="{_TEXT}">{more}</td></tr>')
    parts.append("</tbody></table>")
    return "".join(parts)


def _cell(tag: str, text: str, style: str, scope: str = "") -> str:
    scoped = f' scope="{scope}"' if scope else ""
    return f'<{tag}{scoped} style="{style}">{_escaped(text)}</{tag}>'


def _escaped(text: str) -> str:
    if len(text) > _CHARACTERS_SHOWN:
        text = f"{text[:_CHARACTERS_SHOWN]}…"
    # Directions of text and lone surrogates too: what is read is what is there.
    shown = (c if c.isprintable() or c == "\n" else _as_escape(c) for c in text)
    return html.escape("".join(shown))


def _as_escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
