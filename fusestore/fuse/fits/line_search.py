"""Line searches: deterministic, without derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusestore.fuse.project import Float64Array

_COARSE = (0.0, 0.25, 0.5, 0.75, 1.0)


def fit_order(
    nats: Callable[[float, Float64Array], float], start: Float64Array
) -> tuple[float, Float64Array]:
    """Order and weights of a generalized mean, by turns.

    Args:
        nats: of an order and of weights; smaller is better.
        start: float64 [S], weights of the mixture.
    """
    weights = start
    found = min(_COARSE, key=lambda order: nats(order, weights))
    reach = 0.25
    for _ in range(2):
        low, high = max(0.0, found - reach), min(1.0, found + reach)
        inner = golden(lambda order: nats(order, weights), low, high, 8)  # noqa: B023
        found = min((inner, low, high), key=lambda order: nats(order, weights))
        for index in range(1, len(weights)):

            def shifted(shift: float, index: int = index) -> Float64Array:
                logits = np.log(weights)  # noqa: B023
                logits[index] += shift
                odds = np.exp(logits - logits.max())
                moved: Float64Array = odds / odds.sum()
                return moved

            best = golden(lambda shift: nats(found, shifted(shift)), -1.5, 1.5, 9)  # noqa: B023
            if nats(found, shifted(best)) < nats(found, weights):
                weights = shifted(best)
        reach = 0.1
    # So near to a mixture that it is a mixture.
    return (1.0 if found > 0.995 else found), np.maximum(weights, 1e-6)


def golden(function: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """The least value of a function with one valley, by golden section: the middle at the end."""
    ratio = (np.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return float((low + high) / 2.0)
