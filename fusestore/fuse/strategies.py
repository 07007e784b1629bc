"""Strategies: from the scores of several sources to the weights of their mixture.

A strategy is a pure function of arrays, see `Strategy`. Register your own with

    @register_strategy("best_two")
    def best_two(scores, fixed_weights):
        ...

and name it in a recipe: `strategy = "best_two"`. Name its module with `--plugin`. Helper processes,
such as a DataLoader's workers, import that module: see `fusestore.plugins`. The recipe's
granularity sets whether a unit is a document, a window or a token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fusestore import plugins
from fusestore.errors import InvalidInputError, did_you_mean
from fusestore.fuse.choices import LEARNED

FloatArray = npt.NDArray[np.float64]

Strategy = Callable[[FloatArray, FloatArray], FloatArray]
"""`(scores, fixed_weights) -> weights`.

scores: float64 [units, sources], smaller is better. NaN: the source takes no part in the unit.
    +inf: it takes part, but nothing of the unit could be scored.
fixed_weights: float64 [sources], the recipe's weights (by default 1).
weights: float64 [units, sources], not negative, 0 where the score is NaN. Each row sums to 1, or
    to 0 when no source takes part.
"""

_STRATEGIES: dict[str, Strategy] = {}

SCORE_FREE = frozenset({"weighted", "uniform", "single"})
"""Strategies that ignore scores, and so granularity."""


def register_strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Register the decorated function as the strategy of this name.

    Raises:
        InvalidInputError: the name is taken.
    """

    def add(function: Strategy) -> Strategy:
        if name in _STRATEGIES or name in LEARNED:
            raise InvalidInputError(
                f"A strategy named {name!r} is registered already. Choose another name."
            )
        _STRATEGIES[name] = function
        plugins.record(function)
        return function

    return add


def strategy_names() -> list[str]:
    """All names, registered and learned, sorted."""
    return sorted([*_STRATEGIES, *LEARNED])


def check_strategy(name: str) -> None:
    """Check that a strategy of this name exists, learned or registered.

    Raises:
        InvalidInputError: as for `get_strategy`.
    """
    if name not in LEARNED:
        get_strategy(name)


def get_strategy(name: str) -> Strategy:
    """The strategy of this name; an unknown name imports the plugins first.

    Raises:
        InvalidInputError: the name is unknown; the nearest names are suggested.
    """
    problems = [] if name in _STRATEGIES else plugins.load_expected_plugins()
    if name not in _STRATEGIES:
        raise InvalidInputError(
            f"No strategy is named {name!r}. {did_you_mean(name, strategy_names())} Strategies "
            f"are: {', '.join(strategy_names())}. Register your own with "
            "@fusestore.register_strategy in a module that helper processes can import, and "
            "name the module with --plugin or FUSESTORE_PLUGINS: helper processes lack strategies "
            f"that a script or a notebook registers. {' '.join(problems)}".rstrip()
        )
    return _STRATEGIES[name]


@register_strategy("mince")
def mince(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """MinCE (FuseLLM, section 3.3): the lowest score takes all; a tie goes to the first listed."""
    del fixed_weights
    takes_part = ~np.isnan(scores)
    # An unscored source still precedes one that takes no part.
    unscored = np.finfo(np.float64).max
    ranked = np.where(takes_part, np.minimum(scores, unscored), np.inf)
    weights = np.zeros_like(scores)
    weights[np.arange(len(scores)), ranked.argmin(axis=1)] = 1.0
    return np.where(takes_part, weights, 0.0)


@register_strategy("avgce")
def avgce(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """AvgCE (FuseLLM, section 3.3) by the public code's rule: softmax of the rewards exp(−score).

    The rewards lie in (0, 1] for scores that are not negative, so the weights of two sources
    differ by a factor of e at most.
    """
    del fixed_weights
    takes_part = ~np.isnan(scores)
    rewards = np.exp(-np.where(takes_part, scores, np.inf))
    return normalize_rows(np.where(takes_part, np.exp(rewards), 0.0))


@register_strategy("packllm")
def packllm(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """PackLLM-sim (arXiv 2404.11531, section 4.1): softmax of −score, that is of −log perplexity.

    The public code's temperature of 1. With nats as scores the weights of two sources are as the
    probabilities they give the average token; over many tokens that is far sharper than `avgce`.
    """
    del fixed_weights
    takes_part = ~np.isnan(scores)
    # Finite, so that sources that are all unscored get equal weights.
    capped = np.where(takes_part, np.minimum(scores, np.finfo(np.float64).max), np.inf)
    lowest = np.where(takes_part.any(axis=1), capped.min(axis=1, initial=np.inf), 0.0)
    return normalize_rows(np.where(takes_part, np.exp(lowest[:, None] - capped), 0.0))


@register_strategy("weighted")
def weighted(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """The recipe's fixed weights, over the sources that take part."""
    return normalize_rows(np.where(np.isnan(scores), 0.0, fixed_weights))


@register_strategy("uniform")
def uniform(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """Equal weights over the sources that take part: the ensemble baseline."""
    del fixed_weights
    return normalize_rows(np.where(np.isnan(scores), 0.0, 1.0))


@register_strategy("single")
def single(scores: FloatArray, fixed_weights: FloatArray) -> FloatArray:
    """Weight 1 for the only source: the distillation baseline."""
    del fixed_weights
    return np.where(np.isnan(scores), 0.0, 1.0)


def normalize_rows(weights: FloatArray) -> FloatArray:
    """Each row divided by its sum; rows that sum to 0 stay 0.

    Args:
        weights: float64 [n, sources], not negative.
    """
    # Summed by columns, which are few; NumPy is slow at summing short rows.
    total = np.zeros(len(weights))
    for column in weights.T:
        total += column
    normalized: FloatArray = weights / np.where(total > 0, total, 1.0)[:, None]
    return normalized
