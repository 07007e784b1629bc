"""The lineage of a store as SVG: arrows run from left to right, from inputs to what was made."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from fusestore.report.page.content import ReportArtifact

_BOX, _GAP, _STEP, _HEIGHT = 180, 44, 50, 36
_LONGEST = 26


def lineage_diagram(artifacts: Sequence[ReportArtifact]) -> str:
    """The artifacts as boxes, each to the right of all that it was made from.

    Args:
        artifacts: each after its inputs; inputs that are not among them are left out.
    """
    columns: dict[str, int] = {}
    for each in artifacts:
        columns[each.artifact] = max(
            (columns[name] + 1 for name in each.inputs if name in columns), default=0
        )
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for each in artifacts:
        column = columns[each.artifact]
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[each.artifact] = (10 + column * (_BOX + _GAP), 10 + row * _STEP)
    width = 20 + (max(rows, default=0) + 1) * (_BOX + _GAP) - _GAP
    height = 10 + max(rows.values(), default=1) * _STEP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--muted)"/></marker>'
        "</defs>",
    ]
    for each in artifacts:
        x, y = places[each.artifact]
        for name in each.inputs:
            # An input in the column before draws over no other box.
            if name not in places or places[name][0] >= x:
                continue
            left, top = places[name][0] + _BOX, places[name][1] + _HEIGHT / 2
            bend = _GAP / 2
            parts.append(
                f'<path d="M{left} {top} C{left + bend} {top} {x - bend} {y + _HEIGHT / 2} '
                f'{x} {y + _HEIGHT / 2}" fill="none" stroke="var(--muted)" '
                'stroke-width="1.4" marker-end="url(#tip)"/>'
            )
    for each in artifacts:
        x, y = places[each.artifact]
        dashes = "" if each.state == "complete" else ' stroke-dasharray="4 3"'
        kind, _, name = each.artifact.partition("/")
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}" rx="5" fill="var(--panel)" '
            f'stroke="var(--muted)"{dashes}/>'
            f'<text x="{x + 8}" y="{y + 14}" fill="var(--soft)" font-size="11">{escape(kind)}'
            f"{'' if each.state == 'complete' else f' ({escape(each.state)})'}</text>"
            f'<text x="{x + 8}" y="{y + 29}" fill="var(--text)">{escape(shown)}</text>'
        )
    return "".join([*parts, "</svg>"])
