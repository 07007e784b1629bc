"""Learning curves as an SVG image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from fusestore.report.learning_curves import Curve, LearningCurve
from fusestore.report.output_file import check_output_file
from fusestore.report.plot_frame import PlotFrame, decimals, short_number
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_beside

COLORS = ("#666666", "#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98", "#111111")
"""One for each title, in order; more titles share them."""

_WIDTH, _HEIGHT = 780, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 16, 42


def check_plot_file(file: str, store: Location) -> None:
    """Check that a plot can be written to a file.

    Raises:
        InvalidInputError: the file is not called `….svg`, or lies in the store.
    """
    check_output_file(file, store, "plot", "an SVG image", ".svg")


def save_plot(file: str, curves: Sequence[LearningCurve]) -> None:
    """Write the curves to a file, replacing it.

    Raises:
        AccessDeniedError, StorageError: nothing was changed.
    """
    image = svg_plot({curve.title: [curve.points] for curve in curves})
    publish_beside(Location.parse(file), image.encode())


def svg_plot(
    curves: Mapping[str, Sequence[Curve]],
    highest: float | None = None,
    *,
    caption: str = "held-out bits per byte by training tokens",
    dots: bool = False,
) -> str:
    """The curves as SVG, a color for each title.

    Args:
        curves: one or more by title, such as one for each seed, each with a point or more.
        highest: most bits per byte that are shown; see `PlotFrame.of`.
        caption: says what is drawn, and by what.
        dots: whether each point has a dot, for curves of few points.
    """
    frame = PlotFrame.of([curve for group in curves.values() for curve in group], highest)

    def x(tokens: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * tokens / frame.most

    def y(bits: float) -> float:
        share = (frame.highest - bits) / (frame.highest - frame.lowest)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * share

    bottom, right = y(frame.lowest), _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<clipPath id="shown"><rect x="{_LEFT}" y="{_TOP - 2}" width="{right - _LEFT + 2}" '
        f'height="{bottom - _TOP + 4:.1f}"/></clipPath>',
    ]
    ticks = frame.bits_ticks(6)
    for tick in ticks:
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            'stroke="#dddddd"/>'
        )
        parts.append(_text(_LEFT - 6, y(tick) + 4, f"{tick:.{decimals(ticks)}f}", "end"))
    parts += [
        _text(x(tick), bottom + 17, short_number(tick), "middle") for tick in frame.token_ticks(6)
    ]
    for number, (title, group) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        for curve in group:
            points = " ".join(f"{x(tokens):.1f},{y(bits):.1f}" for tokens, bits in curve)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6" '
                'clip-path="url(#shown)"/>'
            )
            parts += [
                f'<circle cx="{x(tokens):.1f}" cy="{y(bits):.1f}" r="3" fill="{color}"/>'
                for tokens, bits in (curve if dots else ())
            ]
        parts.append(_text(right - 4, _TOP + 16 + 17 * number, title, "end", color))
    parts += [_text(_WIDTH / 2, _HEIGHT - 6, caption, "middle"), "</svg>\n"]
    return "\n".join(parts)


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333333") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )
