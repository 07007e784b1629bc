"""Learning curves compared: the table, the figures and the plot of several runs of each experiment.

A curve is the held-out bits per byte at some numbers of training tokens, in their order; curves
are given by experiment, and for each by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

Curve = Sequence[tuple[int, float]]
Curves = Mapping[str, Mapping[int, Curve]]

COLOURS = ("#666666", "#111111", "#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 780, 420, 60, 40, 16


def best(curve: Curve) -> tuple[int, float]:
    """Tokens and bits per byte where the held-out text was predicted best."""
    return min(curve, key=lambda point: (point[1], point[0]))


def ratio(curve: Curve, rival: Curve) -> float | None:
    """Tokens at a rival's best over the tokens that reach the same; None if nothing does."""
    tokens, value = best(rival)
    reached = next((at for at, bits in curve if bits <= value), None)
    return tokens / reached if reached else None


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean of what was reached, with smallest and largest."""
    there = [value for value in values if value is not None]
    if not there:
        return "never" if values else ""
    missed = f", {len(values) - len(there)} never" if len(there) < len(values) else ""
    mean = format(statistics.mean(there), form)
    if len(there) == 1:
        return mean + missed
    return f"{mean} ({min(there):{form}} to {max(there):{form}}){missed}"


def table(curves: Curves, rivals: Collection[str]) -> str:
    """For each experiment its best, and its `ratio` to each rival of the same seed."""
    lines = [
        "| experiment | seeds | best bits per byte | at tokens "
        + "".join(f"| times fewer tokens than `{rival}` " for rival in rivals)
        + "|",
        "|---|---|---|---|" + "---|" * len(rivals),
    ]
    for name, by_seed in curves.items():
        bests = [best(curve) for curve in by_seed.values()]
        cells = [
            spread([bits for _, bits in bests], ".4f"),
            spread([tokens for tokens, _ in bests], ",.0f"),
        ]
        for rival in rivals:
            others = curves.get(rival, {})
            ratios = [
                ratio(curve, others[seed]) for seed, curve in by_seed.items() if seed in others
            ]
            cells.append(spread(ratios, ".2f"))
        lines.append(f"| {name} | {len(bests)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def csv(curves: Curves) -> str:
    """Every point: experiment, seed, tokens, bits per byte."""
    lines = ["experiment,seed,tokens,bits_per_byte"]
    lines += [
        f'"{name}",{seed},{tokens},{bits:.5f}'
        for name, by_seed in curves.items()
        for seed, curve in by_seed.items()
        for tokens, bits in curve
    ]
    return "\n".join(lines) + "\n"


def plot(curves: Curves, highest: float) -> str:
    """All curves as SVG, a colour for each experiment; what lies above `highest` is left out."""
    shown = [point for by_seed in curves.values() for curve in by_seed.values() for point in curve]
    most = max(tokens for tokens, _ in shown)
    lowest = min(bits for _, bits in shown)

    def place(tokens: float, bits: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * tokens / most
        down = TOP + (HEIGHT - TOP - BOTTOM) * (highest - bits) / (highest - lowest)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for number in range(6):
        bits = lowest + (highest - lowest) * number / 5
        y = place(0, bits).partition(",")[2]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{bits:.3f}</text>')
        x = place(most * number / 5, lowest).partition(",")[0]
        label = f"{most * number / 5 / 1000:,.0f}k"
        parts.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>'
        )
    for number, (name, by_seed) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        for curve in by_seed.values():
            points = " ".join(place(*point) for point in curve if point[1] <= highest)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
            )
        y = TOP + 18 + 17 * number
        parts.append(
            f'<text x="{WIDTH - 14}" y="{y}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        "held-out bits per byte by training tokens</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
        + '<rect width="100%" height="100%" fill="white"/>'
        + "".join(f"\n{part}" for part in parts)
        + "\n</svg>\n"
    )
