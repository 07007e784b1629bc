"""The part of learning curves that a plot shows, and where its ticks stand; pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fusestore.report.learning_curves import Curve

_BEGINNING = 0.1
"""Share of the tokens in which scores fall so steeply that they would flatten all that follows."""


@dataclass(frozen=True)
class PlotFrame:
    """What a plot shows: tokens from 0 to `most`, bits per byte from `lowest` to `highest`."""

    most: int
    lowest: float
    highest: float

    @classmethod
    def of(cls, curves: Iterable[Curve], highest: float | None = None) -> PlotFrame:
        """The frame of some curves, at least one, with a point or more each.

        Args:
            curves: what is shown.
            highest: most bits per byte that are shown. By default the most after a tenth of the
                tokens.
        """
        curves = list(curves)
        most = max(curve[-1][0] for curve in curves)
        lowest = min(bits for curve in curves for _, bits in curve)
        if highest is None:
            start = _BEGINNING * most
            late = [bits for curve in curves for tokens, bits in curve if tokens >= start]
            highest = max([*(bits_at(curve, start) for curve in curves), *late])
        # Curves that do not change still need a frame of some height.
        return cls(max(most, 1), lowest, max(highest, lowest + 1e-3))

    def token_ticks(self, count: int) -> list[int]:
        """About `count` round numbers of tokens, from 0 on."""
        step = max(1, round(_round_step(self.most / count)))
        return list(range(0, self.most + 1, step))

    def bits_ticks(self, count: int) -> list[float]:
        """About `count` round numbers of bits per byte, rising."""
        step = _round_step((self.highest - self.lowest) / count)
        first, last = math.ceil(self.lowest / step), math.floor(self.highest / step)
        return [number * step for number in range(first, last + 1)]


def bits_at(curve: Curve, tokens: float) -> float:
    """Bits per byte at a number of tokens, between points on a straight line."""
    return float(np.interp(tokens, [at for at, _ in curve], [bits for _, bits in curve]))


def short_number(tokens: int) -> str:
    """A number of tokens as an axis shows it: 0, 800, 50k, 2.5M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:g}{letter}"
    return str(tokens)


def decimals(ticks: list[float]) -> int:
    """Decimals that tell ticks apart."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=0.1)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _round_step(width: float) -> float:
    """The smallest of 1, 2, 5, 10, … times a power of ten that is not below a width."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
