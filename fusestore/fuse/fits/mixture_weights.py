"""Mixture weights by expectation maximization: those under which text is most probable.

Maximizes Σ log(Σ w_s p_s(label) / Σ w_s), both sums over the sources that have a row at the
position. Sources without one are treated as draws that were not seen (Dempster, Laird and Rubin,
1977, section 4.2), so the likelihood never falls.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import Float64Array

TOLERANCE = 1e-7
MOST_STEPS = 2_000
SMALLEST = 1e-6
"""Least weight of a source: where it is alone, its row is used."""


def fit_weights(
    label_logprob: Float64Array,
    allowed: npt.NDArray[np.bool_],
    group: npt.NDArray[np.int64],
    num_groups: int,
    prior: Float64Array | None = None,
) -> tuple[Float64Array, list[float]]:
    """Weights of each group of positions.

    Args:
        label_logprob: float64 [n, sources], of the next token.
        allowed: bool [n, sources], whether the source has a row.
        group: int64 [n], group of each position.
        num_groups: number of groups, G.
        prior: float64 [sources], positions by source that every group has beforehand; None: none.

    Returns:
        float64 [G, sources], each row's sum 1; and the log-likelihood with the prior after every
        step, which never falls. A group without positions has the prior's weights.
    """
    sources = allowed.shape[1]
    pseudo = np.zeros(sources) if prior is None else prior
    start = np.full(sources, 1.0 / sources) if prior is None else prior / prior.sum()
    weights = np.maximum(np.tile(start, (num_groups, 1)), SMALLEST)
    # One source alone says nothing about weights.
    compared = np.flatnonzero(allowed.sum(axis=1) > 1)
    logprob, present, where = label_logprob[compared], allowed[compared], group[compared]
    history = []
    for _ in range(MOST_STEPS):
        counts = np.tile(pseudo, (num_groups, 1))
        likelihood = _expect(logprob, present, where, weights, counts)
        history.append(likelihood + float((pseudo * np.log(weights)).sum()))
        totals = counts.sum(axis=1, keepdims=True)
        updated = np.where(totals > 0, counts / np.where(totals > 0, totals, 1.0), weights)
        updated = np.maximum(updated, SMALLEST)
        updated /= updated.sum(axis=1, keepdims=True)
        moved = float(np.abs(updated - weights).max(initial=0.0))
        weights = updated
        if moved < TOLERANCE:
            break
    return weights, history


@numba.njit(cache=True)
def _expect(label_logprob, allowed, group, weights, counts):
    """Add the expected draws of each source to `counts` [G, sources]; return the likelihood."""
    num_positions, num_sources = label_logprob.shape
    total = 0.0
    for position in range(num_positions):
        own = weights[group[position]]
        largest = -math.inf
        present = 0.0
        for source in range(num_sources):
            if allowed[position, source]:
                largest = max(largest, label_logprob[position, source])
                present += own[source]
        mass = 0.0
        for source in range(num_sources):
            if allowed[position, source]:
                mass += own[source] * math.exp(label_logprob[position, source] - largest)
        total += largest + math.log(mass) - math.log(present)
        for source in range(num_sources):
            if allowed[position, source]:
                likelihood = math.exp(label_logprob[position, source] - largest)
                counts[group[position], source] += own[source] * likelihood / mass
            else:
                counts[group[position], source] += own[source] / present
    return total
