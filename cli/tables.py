"""Lays out tables as plain text: every column left-aligned, names and numbers whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

_GAP = "  "
_ELLIPSIS = "…"

_LEAST_TEXT = 20
"""A column of text is not cut below this width, nor below its longest word of that or less."""

_LEAST_REST = 24
"""With less room beside the names, a row becomes lines below its name."""

_NUMBER = re.compile(r"[-−+<>~]?[\d.,:]+( ?(%|[kMGT]?B|bytes|[KMGT]iB))?|-|–|unknown|nan|")


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> Iterator[str]:
    """The lines of a table; the first line is the header.

    Columns of text are cut, widest first, at an ellipsis. If that is not enough, columns that do
    not fit follow in a further block, after the first column again. Beside long names there may be
    no room at all: then each row is its name, and below it a line for each other cell.

    Args:
        columns: titles; the first column has names and is never cut.
        rows: cells of one line each.
        width: columns of the terminal; None does not limit the lines.
    """
    cells = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    widths = [
        max(cell_len(text) for text in (title, *(row[index] for row in cells)))
        for index, title in enumerate(columns)
    ]
    if width is None or _total(widths) <= width:
        yield from _block(columns, cells, widths, range(len(columns)))
        return
    if len(columns) > 1 and widths[0] > width - _LEAST_REST:
        yield from _records(columns, cells, width)
        return
    room = width - widths[0] - len(_GAP)
    texts = [
        index
        for index in range(1, len(columns))
        if not all(_NUMBER.fullmatch(row[index]) for row in cells)
    ]
    least = {
        index: min(widths[index], max(_LEAST_TEXT, cell_len(columns[index]))) for index in texts
    }
    while _total(widths) > width:
        widest = max(texts, key=lambda index: widths[index] - least[index], default=None)
        if widest is None or widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
    for index in range(1, len(columns)):
        widths[index] = min(widths[index], room)
    blocks: list[list[int]] = [[0]]
    for index in range(1, len(columns)):
        together = _total([widths[each] for each in (*blocks[-1], index)])
        if together > width and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(index)
    for number, block in enumerate(blocks):
        if number:
            yield ""
        yield from _block(columns, cells, widths, block)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _block(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    shown: Sequence[int],
) -> Iterator[str]:
    for row in (columns, *rows):
        yield _GAP.join(_fitted(row[index], widths[index]) for index in shown).rstrip()


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    titles = [f"  {title}: " for title in columns]
    yield columns[0]
    for row in rows:
        yield row[0]
        for title, cell in zip(titles[1:], row[1:], strict=True):
            room = width - cell_len(title)
            yield f"{title}{_fitted(cell, min(cell_len(cell), room))}".rstrip()


def _fitted(text: str, width: int) -> str:
    """The text in exactly `width` columns of a terminal, cut at an ellipsis if it is longer."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    cut = set_cell_size(text, max(0, width - 1)).rstrip() + _ELLIPSIS
    return set_cell_size(cut, width)
