"""Prints two tokenizations of a text, the source's above the target's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from .console import output, print_json

if TYPE_CHECKING:
    from fusestore.align.report.columns import AlignedDocument, Cell, Column

_STYLES = {"span": "green", "inside": "cyan", "mined": "yellow", "none": "red"}
_LETTERS = {"span": "s", "inside": "i", "mined": "m", "none": "-"}


def print_document(
    document: AlignedDocument, around: int | None, count: int, *, as_json: bool
) -> None:
    """Show target positions around a position, or the first ones.

    Args:
        document: what to show.
        around: the position in the middle; None for the first tokens.
        count: number of target tokens to show.
        as_json: print the positions as JSON instead.
    """
    from fusestore.align.report.columns import ShownAlignment, explain, window

    num_tokens = len(document.target_ids)
    first = 0 if around is None else min(max(0, around - count // 2), max(0, num_tokens - count))
    last = min(first + count, num_tokens)
    explanations = [explain(document, position) for position in range(first, last)]
    if as_json:
        print_json(
            ShownAlignment(
                document=document.name,
                method=document.method,
                num_tokens=num_tokens,
                tokens=tuple(explanations),
            )
        )
        return
    output.print(
        f"{document.name}: target tokens {first} to {last - 1} of {num_tokens:,}, "
        f"method {document.method}",
        markup=False,
    )
    legend = Text("│ ends a token; the letter below a target token is its kind: ")
    for kind, letter in _LETTERS.items():
        legend.append(f"{letter} {kind}  ", style=_STYLES[kind])
    output.print(legend)
    for line in _lines(window(document, first, last), output.width):
        output.print(line)
    unpaired = [explanation for explanation in explanations if explanation.kind != "span"]
    if unpaired:
        output.print("Tokens without a span:")
    # A chat template writes many tokens in a row that are in no pair, for one reason.
    for _, group in groupby(unpaired, lambda each: (each.kind, each.source_pos, each.why)):
        explanation, *more = group
        partner = ""
        if explanation.source_pos is not None:
            partner = f" with source {explanation.source_pos} {explanation.source_token}"
        line = Text(f"  {explanation.target_pos} {explanation.target_token}")
        if more:
            line.append(f" to {more[-1].target_pos} {more[-1].target_token}")
        line.append(": ")
        line.append(explanation.kind, style=_STYLES[explanation.kind])
        line.append(f"{partner}; {explanation.why}")
        output.print(line)


def _lines(columns: Sequence[Column], width: int) -> Iterator[Text]:
    """Strips of three lines, each as long as the width allows."""
    margin = len("source 00000 ")
    strip: list[Column] = []
    used = margin
    for column in columns:
        needed = _width(column) + 1
        if strip and used + needed > width:
            yield from _strip(strip, margin)
            strip, used = [], margin
        strip.append(column)
        used += needed
    if strip:
        yield from _strip(strip, margin)


def _strip(columns: Sequence[Column], margin: int) -> Iterator[Text]:
    source = _label("source", [column.source for column in columns], margin)
    target = _label("target", [column.target for column in columns], margin)
    kinds = Text(" " * margin)
    for column in columns:
        width = _width(column)
        for line, cell in ((source, column.source), (target, column.target)):
            line.append(cell.text, style=_STYLES[cell.kind])
            line.append(" " * (width - cell_len(cell.text)))
            line.append("│" if cell.closes else " ", style="dim")
        letter = _LETTERS[column.target.kind] if column.target.closes else " "
        kinds.append(" " * (width - 1))
        kinds.append(letter, style=_STYLES[column.target.kind])
        kinds.append(" ")
    yield from (source, target, kinds)


def _label(side: str, cells: Sequence[Cell], margin: int) -> Text:
    """The side, and the position of the first token in the line."""
    first = next((str(cell.position) for cell in cells if cell.position >= 0), "")
    return Text(f"{side} {first}".ljust(margin), style="dim")


def _width(column: Column) -> int:
    return max(1, cell_len(column.source.text), cell_len(column.target.text))
