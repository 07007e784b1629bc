"""Learning curves in a terminal: plain ASCII, told apart by their markers, so without color too."""

from __future__ import annotations

from collections.abc import Mapping

from fusestore.report.learning_curves import Curve, best
from fusestore.report.plot_frame import PlotFrame, bits_at, decimals, short_number

MARKERS = "ox+*#@%&"
"""One for each curve, in order; more curves share them."""

AXIS = "|"
"""Stands between the labels of a line and the curves."""

_SAMPLES = 6


def text_plot(curves: Mapping[str, Curve], *, width: int = 80, height: int = 18) -> str:
    """The curves as lines of text.

    Where curves lie on one another, their markers take turns.

    Args:
        curves: by title, one or more, each with a point or more.
        width: columns, 40 at least.
        height: lines of the plot itself; axis and legend are further lines.
    """
    frame = PlotFrame.of(curves.values())
    ticks = frame.bits_ticks(max(2, height // 3))
    digits = decimals(ticks)
    margin = max((len(f"{tick:.{digits}f}") for tick in ticks), default=0)
    columns = width - margin - 3
    labels = {_line(tick, frame, height): f"{tick:.{digits}f}" for tick in ticks}
    shown = _markers(list(curves.values()), frame, columns, height)
    lines = ["held-out bits per byte by training tokens"]
    lines += [
        f"{labels.get(number, ''):>{margin}} {AXIS}{''.join(row)}".rstrip()
        for number, row in enumerate(shown)
    ]
    lines += _token_axis(frame, margin, columns)
    for number, (title, curve) in enumerate(curves.items()):
        tokens, bits = best(curve)
        marker = MARKERS[number % len(MARKERS)]
        lines.append(f"{marker:>{margin}} {title}: best {bits:.4f} after {tokens:,} tokens")
    return "\n".join(lines)


def _markers(curves: list[Curve], frame: PlotFrame, columns: int, height: int) -> list[list[str]]:
    """Lines of characters, the highest first."""
    owners: dict[tuple[int, int], list[int]] = {}
    for number, curve in enumerate(curves):
        # Several samples of a column, so that steep stretches have no gaps.
        for sample in range((columns - 1) * _SAMPLES + 1):
            tokens = frame.most * sample / ((columns - 1) * _SAMPLES)
            bits = bits_at(curve, tokens)
            if curve[0][0] <= tokens <= curve[-1][0] and bits <= frame.highest:
                cell = _line(bits, frame, height), round(sample / _SAMPLES)
                if number not in owners.setdefault(cell, []):
                    owners[cell].append(number)
    shown = [[" "] * columns for _ in range(height)]
    for (line, column), numbers in owners.items():
        shown[line][column] = MARKERS[numbers[column % len(numbers)] % len(MARKERS)]
    return shown


def _line(bits: float, frame: PlotFrame, height: int) -> int:
    share = (frame.highest - bits) / (frame.highest - frame.lowest)
    return min(height - 1, max(0, round(share * (height - 1))))


def _token_axis(frame: PlotFrame, margin: int, columns: int) -> list[str]:
    axis, labels = ["-"] * columns, [" "] * (columns + margin + 2)
    for tick in frame.token_ticks(max(2, columns // 12)):
        column = round(tick / frame.most * (columns - 1))
        axis[column] = "+"
        label = short_number(tick)
        # The last label may reach as far as the last column.
        start = min(margin + 2 + column - len(label) // 2, len(labels) - len(label))
        labels[start : start + len(label)] = label
    return [f"{'':>{margin}} {''.join(['+', *axis[1:]])}", "".join(labels).rstrip()]
