"""Learning curves compared: the table and the figures of several runs of each experiment.

Curves are given by experiment, and for each by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

from fusestore.report.learning_curves import Curve, best, tokens_to_reach

Curves = Mapping[str, Mapping[int, Curve]]


def ratio(curve: Curve, rival: Curve) -> float | None:
    """Tokens at a rival's best over the tokens that reach the same; None if nothing does."""
    tokens, value = best(rival)
    reached = tokens_to_reach(curve, value)
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
