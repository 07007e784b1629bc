"""Lays out tables as plain text: every column left-aligned, names and numbers whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from fusestore.store.shown_table import is_number

_GAP = "  "
_ELLIPSIS = "…"

_LEAST_TEXT = 20
"""A column of text is not cut below this width, nor below its longest word of that or less."""

_MOST_NAME = 0.4
"""Share of a terminal's width that the column of names takes; longer names get their own lines."""


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> Iterator[str]:
    """The lines of a table; the first line is the header.

    Where a table is too wide, a long name gets a line of its own above the rest of its row, and
    columns of text are cut at an ellipsis, widest first. If that is not enough, columns that do not
    fit follow in a further block, after the first column again.

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
    least = [
        widths[index]
        if all(is_number(row[index]) for row in cells)
        else min(widths[index], max(_LEAST_TEXT, cell_len(title)))
        for index, title in enumerate(columns)
    ]
    if len(columns) > 1:
        most = int(width * _MOST_NAME)
        names = (cell_len(row[0]) for row in cells)
        widths[0] = max(cell_len(columns[0]), *(each for each in names if each <= most), 0)
    while _total(widths) > width:
        widest = max(range(1, len(columns)), key=lambda i: widths[i] - least[i], default=0)
        if widest == 0 or widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
    room = width - widths[0] - len(_GAP)
    widths[1:] = [min(each, room) for each in widths[1:]]
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
        texts = [row[index] for index in shown]
        if cell_len(row[0]) > widths[0]:
            yield row[0].rstrip()
            texts[0] = ""
        line = _GAP.join(
            _fitted(text, widths[index]) for index, text in zip(shown, texts, strict=True)
        )
        if texts[0] or line.strip() or not row[0]:
            yield line.rstrip()


def _fitted(text: str, width: int) -> str:
    """The text in exactly `width` columns of a terminal, cut at an ellipsis if it is longer."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    cut = set_cell_size(text, max(0, width - 1)).rstrip() + _ELLIPSIS
    return set_cell_size(cut, width)
